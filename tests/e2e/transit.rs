//! What merely passes through the node, and is for nobody whom it serves, is not ours to decide on.
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
//! marks behind DNAT, where it is known that the packet is not for us. The mangle table of iptables
//! comes before, so there every request that comes in by an uplink is let in.

use serde_json::json;

use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_only_these_fail};
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};
use crate::lab::two_nics::{NICS, two_nics};

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
    let connections = node.ns.exec(&["conntrack", "-L", "--dst", "198.51.100.7"], "");
    assert!(!connections.contains("mark=512"), "bound to nothing: {connections}");
    node.del(&settings, &layout.pods[1]);
    before.assert_unchanged(&Snapshot::take(node));
}
