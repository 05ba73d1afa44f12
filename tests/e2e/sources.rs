//! Which sources a request may have: without `hairpin`, none that lies inside.
//!
//! ```text
//!  +-----------------------------------+
//!  |              router               |   begins connections in the name of others, by each NIC
//!  +-------+-------------------+-------+
//!        eth0                eth1
//!  +-------+-------------------+-------+   main: 10.99.0.0/16 and 2001:db8:99::/48 blackholed
//!  |     node: strict rp_filter        |   table 101: default by eth1, for pod1 and the node there
//!  +--+-------+-------+------+------+--+
//!    pod0   pod1   pod101  pod102  cni0, a bridge: pod 10.244.0.5
//! ```
//!
//! A connection comes about when the answer to its SYN leaves by an uplink. Strict `rp_filter` asks
//! for the way back to the source. Where the destination has a table of its own, that table knows
//! only a default route. There the way back is eth1 for every source, with the plugin or without.
//! Over IPv6 the SYN passes, and the answer stays inside.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::capture::Capture;
use crate::lab::forge::{self, ACK, SYN};
use crate::lab::netns::Netns;
use crate::lab::node::Pod;
use crate::lab::not_run::only_nftables;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{BRIDGED, NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};
use crate::lab::wire::Wire;

const STRANGER: [&str; 2] = ["198.51.100.66", "2001:db8:66::66"];
/// Sources inside the node, and what kind each is.
const INSIDE: [(&str, [&str; 2]); 6] = [
    ("a pod at a bridge", BRIDGED),
    ("nobody at the bridge", ["10.244.0.77", "2001:db8:244::77"]),
    ("a blackholed block", ["10.99.1.1", "2001:db8:99:1::1"]),
    ("a pod with rules", [POD[0], POD6[0]]),
    ("a pod without an attachment", ["10.21.0.101", "2001:db8:21::101"]),
    ("a pod without rules", ["10.21.0.102", "2001:db8:21::102"]),
];

fn settings() -> Value {
    json!({"uplinks": NICS})
}

struct Scene {
    layout: TwoNics,
    attached: Pod,
    _unattached: Pod,
    _at_bridge: Netns,
}

fn scene() -> Scene {
    let mut layout = two_nics();
    let (unattached, attached) = (layout.pod_behind_eth1(1), layout.pod_behind_eth1(2));
    let at_bridge = layout.pod_at_bridge();
    layout.node.ns.ip(&format!(
        "route add blackhole 10.99.0.0/16
         route add blackhole 2001:db8:99::/48
         rule add pref 1000 from {} lookup 101",
        NODE[1]
    ));
    layout.node.ns.ip6(&format!("rule add pref 1000 from {} lookup 101", NODE6[1]));
    Scene { layout, attached, _unattached: unattached, _at_bridge: at_bridge }
}

impl Scene {
    fn attach_pods(&self, settings: &Value) {
        for pod in self.layout.pods.iter().chain([&self.attached]) {
            self.layout.node.add(settings, pod);
        }
    }
}

/// Destinations that the router calls, by family.
fn destinations(family: usize) -> [SocketAddr; 5] {
    let pods = TwoNics::addresses_behind_eth1(1);
    let [plain, own_table] = [[POD, POD6][family][0], [POD, POD6][family][1]];
    let node = [NODE, NODE6][family];
    [(plain, 8080), (own_table, 8080), (&pods[family], 8080), (node[0], 10250), (node[1], 10250)]
        .map(|(address, port)| SocketAddr::new(ip(address), port))
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// One SYN: the NIC that it arrives on, the name of its source, and its destination.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug, Clone)]
struct Call {
    nic: &'static str,
    source: &'static str,
    to: SocketAddr,
}

#[derive(Default)]
struct Outcome {
    /// Forwarded or delivered.
    passed: BTreeSet<Call>,
    /// The answer left by an uplink, so the connection comes about.
    answered: BTreeSet<Call>,
    /// Bound to an uplink.
    bound: BTreeSet<Call>,
}

/// Calls each destination in the name of each source, by each NIC.
fn send_calls(layout: &TwoNics, family: usize, sources: &[(&'static str, [&str; 2])]) -> Outcome {
    let wire = Wire::new(&layout.router, &layout.node);
    // Each call has a port of its own: a half-open connection answers a second SYN in another way.
    let (mut outcome, mut ports) = (Outcome::default(), 40000_u16..);
    for nic in NICS {
        let mut calls = Vec::new();
        for (source, addresses) in sources {
            for to in destinations(family).into_iter().filter(|to| to.ip() != ip(addresses[family]))
            {
                let port = ports.next().expect("few calls");
                let from = SocketAddr::new(ip(addresses[family]), port);
                calls.push((from, Call { nic, source, to }));
            }
        }
        layout.node.ns.exec(&["conntrack", "-F"], "");
        let capture = Capture::start(&layout.router.ns);
        let syns: Vec<_> =
            calls.iter().map(|(from, call)| forge::tcp(*from, call.to, SYN)).collect();
        wire.send(nic, &syns);
        let packets = capture.stop();
        for (from, call) in calls {
            let mark = layout.node.mark_of(Proto::Tcp, from);
            let answers = |port: &str| NICS.contains(&port);
            let mut seen = packets.iter().filter(|p| answers(&p.port) && !p.outgoing);
            if seen.any(|p| (p.to, p.from, p.tcp_flags) == (from, call.to, SYN | ACK)) {
                outcome.answered.insert(call.clone());
            }
            if mark.is_some_and(|mark| mark != 0) {
                outcome.bound.insert(call.clone());
            }
            if mark.is_some() {
                outcome.passed.insert(call);
            }
        }
    }
    outcome
}

/// Panics with what the plugin lets in.
fn assert_none(calls: impl Iterator<Item = Call>, what: &str) {
    let list: Vec<String> = calls
        .map(|call| format!("in the name of {} by {} to {}", call.source, call.nic, call.to))
        .collect();
    assert!(list.is_empty(), "{what}:\n{}", list.join("\n"));
}

/// Another program that marks every packet, before symroute and after conntrack.
fn neighbour(layout: &TwoNics, mark: u32) {
    layout.node.ns.nft(&format!(
        "table inet neighbour {{
            chain neighbour_marks {{
                type filter hook prerouting priority -160; policy accept;
                meta mark set meta mark | {mark:#x}
            }}
        }}"
    ));
}

fn nobody_inside_is_let_in(family: usize, mark: u32) {
    let scenes = [scene(), scene()];
    for scene in &scenes {
        neighbour(&scene.layout, mark);
    }
    let [without, scene] = scenes;
    let without = send_calls(&without.layout, family, &INSIDE);
    scene.attach_pods(&settings());
    // With iptables symroute does not ask about a single address when the packet has another program's mark.
    let routed = if Backend::of_run().is_iptables() && mark != 0 { 3 } else { INSIDE.len() };
    let with = send_calls(&scene.layout, family, &INSIDE[..routed]);
    if family == 0 {
        let by_eth0 = without.passed.iter().filter(|call| call.nic == "eth0").cloned();
        assert_none(by_eth0, "strict rp_filter takes");
        let only = with.passed.difference(&without.passed).cloned();
        assert_none(only, &format!("let in by the plugin only, neighbour's mark {mark:#x}"));
    }
    let more = with.answered.difference(&without.answered).cloned();
    assert_none(more, &format!("comes about with the plugin only, neighbour's mark {mark:#x}"));
    // Connections that come about without symroute stay as they are.
    assert_none(with.bound.into_iter(), "bound");
}

#[test]
fn nobody_inside() {
    nobody_inside_is_let_in(0, 0);
}

#[test]
fn nobody_inside_over_ipv6() {
    nobody_inside_is_let_in(1, 0);
}

/// Marks of kube-proxy, AWS, and both.
#[test]
fn nobody_inside_where_a_neighbour_marks() {
    for mark in [0x4000, 0x80, 0x4080] {
        nobody_inside_is_let_in(0, mark);
        nobody_inside_is_let_in(1, mark);
    }
}

/// The same calls in the name of a stranger come about, each by its NIC.
#[test]
fn everybody_outside() {
    let strangers = [("a stranger", STRANGER)];
    for (family, mark) in [(0, 0), (1, 0), (0, 0x4000), (1, 0x80), (0, 0xff00_0000)] {
        let without = send_calls(&scene().layout, family, &strangers);
        assert_eq!(without.bound.len(), 0);
        let scene = scene();
        neighbour(&scene.layout, mark);
        scene.attach_pods(&settings());
        let with = send_calls(&scene.layout, family, &strangers);
        let all = 2 * destinations(family).len();
        assert_eq!((with.answered.len(), with.bound.len()), (all, all), "{:#?}", with.answered);
        assert!(without.answered.len() < all || family == 1, "{:#?}", without.answered);
    }
}

/// The second question about a source is asked of main alone.
#[test]
fn a_rule_asks_main_alone() {
    if !only_nftables("iptables can't ask the routing table") {
        return;
    }
    let rules = |layout: &TwoNics, family| {
        let text = layout.node.ns.exec(&["ip", family, "rule"], "");
        text.lines().map(|line| line.replace('\t', " ")).collect::<Vec<_>>()
    };
    for (mask, priority, rule) in [
        ("0x1f00", 400, "399: from all fwmark 0x1000 lookup main"),
        ("0x80000107", 300, "299: from all fwmark 0x80000000 lookup main"),
    ] {
        let layout = two_nics();
        let settings = json!({"uplinks": NICS, "markMask": mask, "rulePriority": priority});
        layout.node.up(&settings);
        for family in ["-4", "-6"] {
            let rules = rules(&layout, family);
            assert!(rules.iter().any(|line| line.trim() == rule), "{family}: {rules:#?}");
        }
        layout.node.down();
    }
}
