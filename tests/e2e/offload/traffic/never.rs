//! Connections that are never offloaded, each beside one that is.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use serde_json::json;

use crate::lab::agent::until;
use crate::lab::flowtable::{ENOUGH, Forwarded, is_offloaded, kernel_has_flowtables};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::not_run::{kernel_lacks, only_nftables};
use crate::lab::talk::{Listening, Talk};
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{CLIENT6, NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};

use super::super::settings;
use super::{assert_all_bypass_rules, assert_never, begin};

const POD1: [&str; 2] = [POD[1], POD6[1]];
/// Age from which a UDP connection is offloaded.
const LASTING: Duration = Duration::from_secs(2);

fn control(layout: &TwoNics) -> Vec<Talk> {
    begin(&layout.client, &layout.pods[1].ns, &POD1)
}

/// Sets `rp_filter` to loose and disables the source check, so that connections work that symroute
/// does not bind.
fn disable_source_checks(layout: &TwoNics) {
    for nic in NICS {
        layout.node.ns.sysctl(&format!("ipv4/conf/{nic}/rp_filter"), "2");
    }
    layout.router.check_sources(&[]);
}

/// Connections of the node's own sockets, and those that a pod opens.
#[test]
fn the_nodes_sockets_and_calls_outwards() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    node.up(&settings());
    let mut own = begin(&layout.client, &node.ns, &[NODE[1], NODE6[1]]);
    let mut outwards = begin(&layout.pods[1].ns, &layout.client, &["203.0.113.9", CLIENT6]);
    let mut control = control(&layout);
    assert_never(node, &mut own, &mut control, "the node's own");
    assert_never(node, &mut outwards, &mut control, "outwards");
    let forwarded = Forwarded::watch(&node.ns);
    for talk in &mut outwards {
        forwarded.assert_passes_rules(talk, "outwards");
    }
    assert_all_bypass_rules(&forwarded, &mut control, "to a pod");
    node.down();
}

#[test]
fn icmp() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    layout.node.up(&settings());
    let protocols = [("ipv4", "icmp"), ("ipv6", "icmpv6")];
    for (pod, (family, protocol)) in POD1.into_iter().zip(protocols) {
        let list = ["conntrack", "-L", "-f", family, "-p", protocol, "--orig-dst", pod];
        for _ in 0..5 {
            ask_for_echo(&layout.client, pod);
            until("an echo", || {
                let known = layout.node.ns.exec(&list, "");
                assert!(!known.contains("[OFFLOAD]"), "{known}");
                known.contains(pod) && !known.contains("[UNREPLIED]")
            });
        }
    }
    layout.node.down();
}

/// Sends one echo request from a socket of its own.
fn ask_for_echo(client: &Netns, pod: &str) {
    let (protocol, family, request) = if pod.contains(':') {
        // The kernel fills in the checksum.
        (SockProtocol::IcmpV6, AddressFamily::Inet6, [128, 0, 0, 0, 0, 1, 0, 1])
    } else {
        (SockProtocol::Icmp, AddressFamily::Inet, [8, 0, 0xf7, 0xfd, 0, 1, 0, 1])
    };
    let at: IpAddr = pod.parse().expect("an address");
    let to = SockaddrStorage::from(SocketAddr::new(at, 0));
    let raw = client.run(|| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol));
    let raw = raw.expect("a raw socket");
    assert_eq!(sendto(raw.as_raw_fd(), &request, &to, MsgFlags::empty()), Ok(8));
}

/// Connections of the client to another host, which pass through the node.
#[test]
fn transit() {
    const FAR: [&str; 2] = ["198.51.100.7", "2001:db8:51::7"];
    if !kernel_has_flowtables() {
        return;
    }
    let mut layout = two_nics();
    let far = layout.router.host("far", &FAR);
    disable_source_checks(&layout);
    layout.router.ns.ip("route add 198.51.100.7 via 10.21.0.10 dev eth1 table 77
         route add 2001:db8:51::7 via 2001:db8:21::10 dev eth1 onlink table 77
         rule add pref 100 iif client to 198.51.100.7 lookup 77");
    layout.router.ns.ip6("rule add pref 100 iif client to 2001:db8:51::7 lookup 77");
    let node = &layout.node;
    node.up(&settings());
    let forwarded = Forwarded::watch(&node.ns);
    let mut through = begin(&layout.client, &far, &FAR);
    for talk in &mut through {
        let before = forwarded.packets();
        talk.assert_goes_on("transit");
        assert!(forwarded.packets() > before, "it passes the node");
    }
    assert_never(node, &mut through, &mut control(&layout), "transit");
    node.down();
}

#[test]
fn excluded_destinations() {
    if !kernel_has_flowtables() {
        return;
    }
    let mut layout = two_nics();
    let another = layout.pod_behind_eth1(1);
    disable_source_checks(&layout);
    let mut settings = settings();
    settings["exclude"] = json!(POD1);
    layout.node.up(&settings);
    let mut excluded = control(&layout);
    let addresses = TwoNics::addresses_behind_eth1(1);
    let addresses = addresses.each_ref().map(String::as_str);
    let mut control = begin(&layout.client, &another.ns, &addresses);
    assert_never(&layout.node, &mut excluded, &mut control, "excluded");
    layout.node.down();
}

/// The uplink's table has no default route over IPv6.
#[test]
fn a_family_without_a_default_route() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    disable_source_checks(&layout);
    layout.node.ns.ip6("route del default via fe80::1 dev eth1 table 101");
    layout.node.up(&settings());
    let (mut over6, mut over4): (Vec<_>, Vec<_>) =
        control(&layout).into_iter().partition(|talk| talk.client().is_ipv6());
    assert_never(&layout.node, &mut over6, &mut over4, "no default route");
    layout.node.down();
}

/// Each connection has its own router among those of an uplink.
#[test]
fn an_uplink_with_several_routers() {
    if !kernel_has_flowtables() || !only_nftables("iptables does not tell several routers apart") {
        return;
    }
    let layout = two_nics();
    layout.router.ns.ip("link add second link eth1 type macvlan mode bridge
         link set second up
         addr add 10.21.0.2 dev second
         addr add fe80::2/64 dev second nodad");
    let node = &layout.node;
    let mut settings = settings();
    settings["gateways"] = json!({"eth1": ["10.21.0.1", "10.21.0.2", "fe80::1", "fe80::2"]});
    node.up(&settings);
    let mut by_eth1 = control(&layout);
    node.ns.ip(&format!("rule add pref 511 to {} lookup main", POD[0]));
    let mut by_eth0 = begin(&layout.client, &layout.pods[0].ns, &[POD[0], POD6[0]]);
    assert_never(node, &mut by_eth1, &mut by_eth0, "several routers");
    node.down();
}

/// A few questions and answers, like those of DNS.
#[test]
fn a_few_datagrams() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    layout.node.up(&settings());
    // A busy machine may need longer for them.
    let in_time = |address| {
        let asked = Instant::now();
        let mut talk = Talk::begin(&layout.client, &layout.pods[1].ns, Proto::Udp, address);
        (0..ENOUGH).for_each(|_| talk.assert_goes_on("a question"));
        let offloaded = is_offloaded(&layout.node.ns, &talk);
        (asked.elapsed() < LASTING).then_some(offloaded)
    };
    for address in POD1 {
        let offloaded = (0..10).find_map(|_| in_time(address)).expect("all questions in time");
        assert!(!offloaded, "{address}");
    }
    layout.node.down();
}

/// IPVS receives the packets as packets for the node, and sends them on itself.
#[test]
fn ipvs() {
    const SERVICE: &str = "10.99.0.20:80";
    if !kernel_has_flowtables() {
        return;
    }
    if !Path::new("/proc/net/ip_vs").exists() {
        return kernel_lacks("IPVS");
    }
    let mut layout = two_nics();
    layout.router.assign("eth1", "10.99.0.20");
    layout.router.check_sources(&NICS);
    let node = &layout.node;
    let service = Service {
        frontend: Frontend::Address(SERVICE.parse().expect("an address and port")),
        proto: Proto::Tcp,
        backend: format!("{}:9000", POD[1]).parse().expect("an address and port"),
        policy: Policy::Local,
    };
    kubeproxy::install(&node.ns, Flavour::Ipvs, &[service]);
    node.up(&settings());
    let listening = Listening::at(&layout.pods[1].ns, Proto::Tcp, POD[1], 9000);
    let to = SERVICE.parse().expect("an address and port");
    let mut balanced = [Talk::through(&layout.client, listening, to)];
    let known = node.ns.exec(&["ipvsadm", "-L", "-n", "-c"], "");
    assert!(known.contains(SERVICE), "{known}");
    assert_never(node, &mut balanced, &mut control(&layout), "IPVS");
    node.down();
}
