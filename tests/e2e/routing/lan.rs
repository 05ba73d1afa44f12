//! Networks with real neighbour resolution, as on a switch: no host answers for another, and no
//! neighbour entry is permanent.

use std::cell::Cell;

use crate::lab::netns::Netns;

/// A switch.
pub(crate) struct Lan {
    ns: Netns,
    ports: Cell<u32>,
}

impl Lan {
    pub(crate) fn new(name: &str) -> Self {
        let ns = Netns::new(name);
        ns.ip("link add br0 type bridge
             link set br0 up");
        Self { ns, ports: Cell::new(0) }
    }

    /// Plugs a new interface of a host in, with these addresses.
    pub(crate) fn plug(&self, host: &Netns, ifname: &str, addresses: &[&str]) {
        let port = self.ports.replace(self.ports.get() + 1);
        self.ns.ip(&format!(
            "link add p{port} type veth peer name {ifname} netns {}
             link set p{port} master br0 up",
            host.name()
        ));
        host.ip(&format!("link set {ifname} up"));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            host.ip(&format!("addr add {address} dev {ifname} {nodad}"));
        }
    }

    /// Has the switch drop IPv4 packets of a port, in the order of plugging, with other sources
    /// than this one: the source check of a cloud.
    pub(crate) fn check_source(&self, port: u32, address: &str) {
        self.ns.nft(&format!(
            "add table bridge check
             add chain bridge check p{port} {{ type filter hook prerouting priority -300; }}
             add rule bridge check p{port} iifname p{port} ip saddr != {address} counter drop"
        ));
    }
}

/// A stateful firewall: a host that forwards, and drops packets of connections whose beginning it has
/// not seen.
pub(crate) fn firewall(name: &str) -> Netns {
    let ns = Netns::new(name);
    ns.sysctl("ipv4/ip_forward", "1");
    ns.sysctl("ipv4/conf/all/send_redirects", "0");
    ns.sysctl("ipv4/conf/default/send_redirects", "0");
    ns.nft(
        "table inet firewall {
           chain forward {
             type filter hook forward priority 0;
             ct state invalid counter drop
             tcp flags & (syn | ack) == ack ct state new counter drop
           }
         }",
    );
    ns
}

/// A host with one NIC on this network and a default route.
pub(crate) fn host(lan: &Lan, name: &str, address: &str, gateway: &str) -> Netns {
    let ns = Netns::new(name);
    lan.plug(&ns, "eth0", &[address]);
    ns.ip(&format!("route add default via {gateway}"));
    ns
}

/// Has a node send what comes in for port 30080 of its own addresses to a pod: a `NodePort`.
pub(crate) fn node_port(node: &Netns, pod: &str) {
    node.nft(&format!(
        "table ip nodeport {{
           chain prerouting {{
             type nat hook prerouting priority -100;
             fib daddr type local tcp dport 30080 dnat to {pod}:8080
           }}
         }}"
    ));
}
