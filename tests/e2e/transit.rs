//! Packets that merely pass through the node: symroute does not decide about them.
//!
//! ```text
//!   client 203.0.113.9             far 198.51.100.7
//!  +---------+-----------------------------+--------+
//!  |                    router                      |   sends what is for far to the node by eth1
//!  +---------+-----------------------------+--------+
//!          eth0, main's default          eth1
//!  +---------+-----------------------------+--------+
//!  |          node: strict rp_filter                |
//!  +------------------------------------------------+
//! ```
//!
//! The way back to the client is eth0, so strict `rp_filter` drops what comes in by eth1. nftables
//! marks after DNAT, when it is known that the packet is not for this node. The mangle table of
//! iptables comes before DNAT, so it lets in every request that comes in by an uplink.

use std::net::SocketAddr;

use serde_json::json;

use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_only_these_fail};
use crate::lab::forge::{self, SYN};
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};
use crate::lab::two_nics::{CLIENT, CLIENT6, NICS, two_nics};
use crate::lab::wire::Wire;

/// Asserts that no connection to this address has a conntrack mark.
fn assert_bound_to_nothing(node: &Node, to: &str) {
    let family = if to.contains(':') { "ipv6" } else { "ipv4" };
    let list = node.ns.exec(&["conntrack", "-L", "-f", family, "--orig-dst", to], "");
    let bound: Vec<_> = list.lines().filter(|line| !line.contains(" mark=0 ")).collect();
    assert!(bound.is_empty(), "bound: {bound:#?}");
}

#[test]
fn strict_rp_filter_judges_what_is_not_for_us() {
    let mut layout = two_nics();
    let far = layout.router.host("far", &["198.51.100.7"]);
    // The node forwards the client's packets, with the client's address.
    layout.router.check_sources(&[]);
    layout.router.ns.ip("route add 198.51.100.7 via 10.21.0.10 dev eth1 table 77
         rule add pref 100 iif client to 198.51.100.7 lookup 77");
    let _server = Server::start(&far, Proto::Tcp, 8080, "far");
    let node = &layout.node;
    let flow =
        || [Flow::new("far", &layout.client, Proto::Tcp, "198.51.100.7:8080", "far 203.0.113.9")];
    let drops = node.rp_filter_drops();
    assert_only_these_fail(&flow(), &["far"]);
    assert!(node.rp_filter_drops() > drops, "strict rp_filter saw nothing wrong");

    let before = Snapshot::take(node);
    let settings = json!({"uplinks": NICS});
    node.add(&settings, &layout.pods[1]);
    let drops = node.rp_filter_drops();
    if Backend::of_run().is_iptables() {
        assert_only_these_fail(&flow(), &[]);
        assert_eq!(node.rp_filter_drops(), drops, "let in, as documented");
    } else {
        assert_only_these_fail(&flow(), &["far"]);
        assert!(node.rp_filter_drops() > drops, "dropped as before");
    }
    assert_bound_to_nothing(node, "198.51.100.7");
    node.del(&settings, &layout.pods[1]);
    before.assert_unchanged(&Snapshot::take(node));
}

/// Over IPv6 the packets pass without symroute, and also with it, by the same ways. These are: out of
/// the other uplink, out of an interface that leads outside and is no uplink, and out of the uplink of
/// arrival.
#[test]
fn what_passes_over_ipv6_is_bound_to_nothing() {
    for plugin in [false, true] {
        let mut layout = two_nics();
        layout.router.plug("eth2", &layout.node.ns, "eth2", &["10.22.0.1"]);
        let node = &layout.node;
        node.ns.ip("addr add 2001:db8:22::10/64 dev eth2 nodad
             route add default via fe80::1 dev eth2 metric 4096");
        let wire = Wire::new(&layout.router, node);
        let settings = json!({"uplinks": NICS});
        if plugin {
            node.add(&settings, &layout.pods[1]);
        }
        for (far, port) in ["2001:db8:77::7", "2001:db8:22::77", "2001:db8:21::77"].iter().zip(1..)
        {
            let from = SocketAddr::new(CLIENT6.parse().expect("an address"), 40000 + port);
            let to = SocketAddr::new(far.parse().expect("an address"), 8080);
            let seen = wire.send("eth1", &[forge::tcp(from, to, SYN)]);
            assert_eq!(seen.passed, 1, "{far} with the plugin: {plugin}");
            assert_bound_to_nothing(node, far);
        }
        if plugin {
            node.del(&settings, &layout.pods[1]);
        }
    }
}

/// Nor are they bound over IPv4, where iptables lets them in.
#[test]
fn what_passes_over_ipv4_is_bound_to_nothing() {
    for plugin in [false, true] {
        let mut layout = two_nics();
        layout.router.plug("eth2", &layout.node.ns, "eth2", &["10.22.0.1"]);
        let node = &layout.node;
        node.ns.ip("addr add 10.22.0.10/24 dev eth2
             route add default via 10.22.0.1 dev eth2 metric 500");
        let wire = Wire::new(&layout.router, node);
        let settings = json!({"uplinks": NICS});
        if plugin {
            node.add(&settings, &layout.pods[1]);
        }
        // eth0 is the way back to the client.
        for (nic, far, port) in [
            ("eth0", "198.51.100.7", 1),
            ("eth0", "10.22.0.77", 2),
            ("eth0", "10.21.0.77", 3),
            ("eth1", "198.51.100.7", 4),
            ("eth1", "10.22.0.77", 5),
        ] {
            let from = SocketAddr::new(CLIENT.parse().expect("an address"), 40000 + port);
            let to = SocketAddr::new(far.parse().expect("an address"), 8080);
            let seen = wire.send(nic, &[forge::tcp(from, to, SYN)]);
            let passes = nic == "eth0" || (plugin && Backend::of_run().is_iptables());
            assert_eq!(seen.passed, u64::from(passes), "{far} by {nic}, plugin {plugin}");
            assert_bound_to_nothing(node, far);
        }
        if plugin {
            node.del(&settings, &layout.pods[1]);
        }
    }
}
