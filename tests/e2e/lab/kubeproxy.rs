//! The rules that kube-proxy writes for a few Services, in its iptables, nftables and IPVS modes.
//! The iptables variant is that of the run's backend.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::backend::Backend;
use super::netns::Netns;
use super::traffic::Proto;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    Iptables,
    Nftables,
    /// Only Services with addresses, over TCP and IPv4.
    Ipvs,
}

/// `externalTrafficPolicy` of a Service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Every node accepts requests, and masquerades them.
    Cluster,
    /// Only the backend's node accepts requests, and keeps the client's address.
    Local,
}

/// Where clients reach a Service.
#[derive(Clone, Copy)]
pub(crate) enum Frontend {
    /// This port on every address of the node.
    NodePort(u16),
    /// A cluster or load balancer address.
    Address(SocketAddr),
}

/// One port of a Service with one backend.
pub(crate) struct Service {
    pub(crate) frontend: Frontend,
    pub(crate) proto: Proto,
    pub(crate) backend: SocketAddr,
    pub(crate) policy: Policy,
}

/// Writes the rules that kube-proxy would write in this namespace.
pub(crate) fn install(ns: &Netns, flavour: Flavour, services: &[Service]) {
    match flavour {
        Flavour::Iptables => {
            for v6 in [false, true] {
                let restore = Backend::of_run().tool(v6, "-restore");
                ns.exec(&[&restore, "--noflush"], &iptables(services, v6, true));
            }
        }
        Flavour::Nftables => ns.nft(&nftables(services)),
        Flavour::Ipvs => ipvs(ns, services),
    }
}

/// Rules for the marks and the masquerade, and with `dnat` those that lead to the backends.
fn iptables(services: &[Service], v6: bool, dnat: bool) -> String {
    let mut rules = String::from(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
",
    );
    for service in services.iter().filter(|service| service.backend.is_ipv6() == v6) {
        let (proto, backend) = (service.proto.word(), service.backend);
        let frontend = match service.frontend {
            Frontend::NodePort(port) => {
                format!("-m addrtype --dst-type LOCAL -p {proto} --dport {port}")
            }
            Frontend::Address(address) => {
                format!("-d {} -p {proto} --dport {}", address.ip(), address.port())
            }
        };
        if service.policy == Policy::Cluster {
            let _ = writeln!(rules, "-A KUBE-SERVICES {frontend} -j KUBE-MARK-MASQ");
        }
        if dnat {
            let _ =
                writeln!(rules, "-A KUBE-SERVICES {frontend} -j DNAT --to-destination {backend}");
        }
    }
    rules.push_str("COMMIT\n");
    rules
}

/// Binds each address to `kube-ipvs0` and lets the kernel's balancer do the DNAT.
fn ipvs(ns: &Netns, services: &[Service]) {
    ns.ip("link add kube-ipvs0 type dummy");
    ns.sysctl("ipv4/vs/conntrack", "1");
    let restore = Backend::of_run().tool(false, "-restore");
    ns.exec(&[&restore, "--noflush"], &iptables(services, false, false));
    for service in services {
        let Frontend::Address(frontend) = service.frontend else {
            panic!("IPVS in this lab balances addresses only");
        };
        let (frontend, backend) = (frontend.to_string(), service.backend.to_string());
        let (address, _) = frontend.split_once(':').expect("an IPv4 address and port");
        ns.ip(&format!("addr add {address}/32 dev kube-ipvs0"));
        ns.exec(&["ipvsadm", "--add-service", "--tcp-service", &frontend, "--scheduler", "rr"], "");
        ns.exec(
            &[
                "ipvsadm",
                "--add-server",
                "--tcp-service",
                &frontend,
                "--real-server",
                &backend,
                "--masquerading",
            ],
            "",
        );
    }
}

fn nftables(services: &[Service]) -> String {
    let mut rules = String::from(
        "table inet kube-proxy {
chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
chain nat-output { type nat hook output priority -100; policy accept; jump services; }
chain nat-postrouting {
  type nat hook postrouting priority srcnat; policy accept;
  meta mark & 0x4000 == 0 return
  meta mark set meta mark ^ 0x4000
  masquerade fully-random
}
chain services {
",
    );
    for service in services {
        let (proto, backend) = (service.proto.word(), service.backend);
        let family = if backend.is_ipv6() { "ip6" } else { "ip" };
        let nfproto = if backend.is_ipv6() { "ipv6" } else { "ipv4" };
        let frontend = match service.frontend {
            Frontend::NodePort(port) => {
                format!("meta nfproto {nfproto} fib daddr type local {proto} dport {port}")
            }
            Frontend::Address(address) => {
                format!("{family} daddr {} {proto} dport {}", address.ip(), address.port())
            }
        };
        let mark =
            if service.policy == Policy::Cluster { "meta mark set meta mark | 0x4000" } else { "" };
        let _ = writeln!(rules, "{frontend} {mark} dnat {family} to {backend}");
    }
    rules.push_str("}\n}\n");
    rules
}
