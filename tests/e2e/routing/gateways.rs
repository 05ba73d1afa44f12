//! `gateways`: networks without a router, addresses without a subnet, and addresses that are added and
//! removed.

use serde_json::{Value, json};

use super::lan::{Lan, firewall, host};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

/// Two nodes on an external network with a router and an internal one without. The other node calls
/// this one's internal address from its external one, as a process behind a `ClusterIP` does.
fn without_router(settings: &Value, health: i32) {
    let (node, neighbour, router) = (Node::new("node"), Node::new("neighbour"), firewall("router"));
    let (external, internal) = (Lan::new("external"), Lan::new("internal"));
    external.plug(&node.ns, "ext", &["198.51.100.1/26"]);
    external.plug(&neighbour.ns, "ext", &["198.51.100.71/26"]);
    external.plug(&router, "r", &["198.51.100.62/26", "198.51.100.126/26"]);
    internal.plug(&node.ns, "int", &["10.89.10.1/24"]);
    internal.plug(&neighbour.ns, "int", &["10.89.10.2/24"]);
    node.ns.ip("route add default via 198.51.100.62");
    neighbour.ns.ip("route add default via 198.51.100.126
         route add 10.89.10.1 dev int src 198.51.100.71");
    let _server = Server::start(&node.ns, Proto::Tcp, 6443, "host");
    let flow = Flow::new(
        "internal address",
        &neighbour.ns,
        Proto::Tcp,
        "10.89.10.1:6443",
        "host 198.51.100.71",
    );
    let flows = [flow];
    assert_only_these_fail(&flows, &["internal address"]);
    let before = Snapshot::take(&node);
    node.up(settings);
    assert_all_work(&flows);
    assert_eq!(node.symroute(&["status"]).code, Some(health));
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
}

#[test]
fn an_internal_network_has_no_router() {
    // Strict rp_filter drops packets from all sources that are not on the link.
    without_router(&json!({"uplinks": ["ext", "int"]}), 4);
    without_router(&json!({"uplinks": ["ext", "int"], "gateways": {"int": "onlink"}}), 0);
}

/// With loose `rp_filter` the node answers a client behind an unknown router by main's default route,
/// and goes on doing so.
#[test]
fn a_loose_node_without_a_gateway_is_as_before() {
    let (node, router) = (Node::new("node"), firewall("router"));
    router.nft("delete table inet firewall");
    for scope in ["all", "default"] {
        node.ns.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "2");
    }
    let (lan0, lan1, outside) = (Lan::new("lan0"), Lan::new("lan1"), Lan::new("outside"));
    lan0.plug(&node.ns, "eth0", &["10.50.0.10/24"]);
    lan1.plug(&node.ns, "eth1", &["10.51.0.10/24"]);
    lan0.plug(&router, "r0", &["10.50.0.1/24"]);
    lan1.plug(&router, "r1", &["10.51.0.1/24"]);
    outside.plug(&router, "r2", &["203.0.113.1/24"]);
    node.ns.ip("route add default via 10.50.0.1");
    let client = host(&outside, "client", "203.0.113.9/24", "203.0.113.1");
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let flows = [Flow::new("host", &client, Proto::Tcp, "10.51.0.10:10250", "host 203.0.113.9")];
    assert_all_work(&flows);
    node.up(&json!({"uplinks": ["eth0", "eth1"]}));
    assert_all_work(&flows);
    node.down();
}

/// A virtual address alone in its prefix, as kube-vip has them, is added, removed, and is the gateway
/// itself. The settings stay valid.
#[test]
fn no_state_of_an_address_makes_a_gateway_an_error() {
    let (node, router) = (Node::new("node"), firewall("router"));
    let (lan0, lan1, outside) = (Lan::new("lan0"), Lan::new("lan1"), Lan::new("outside"));
    lan0.plug(&node.ns, "eth0", &["10.50.0.10/24"]);
    lan1.plug(&node.ns, "eth1", &["10.51.0.100/32"]);
    lan1.check_source(0, "10.51.0.100");
    lan0.plug(&router, "r0", &["10.50.0.1/24"]);
    lan1.plug(&router, "r1", &["10.51.0.1/24"]);
    outside.plug(&router, "r2", &["203.0.113.1/24"]);
    node.ns.ip("route add default via 10.50.0.1");
    let client = host(&outside, "client", "203.0.113.9/24", "203.0.113.1");
    let _server = Server::start(&node.ns, Proto::Tcp, 6443, "host");
    let flows = [Flow::new("vip", &client, Proto::Tcp, "10.51.0.100:6443", "host 203.0.113.9")];
    assert_only_these_fail(&flows, &["vip"]);
    let settings = json!({"uplinks": ["eth0", "eth1"], "gateways": {"eth1": ["10.51.0.1"]}});
    let pod = node.pod("pod", &["10.244.0.5"]);
    node.add(&settings, &pod);
    assert_all_work(&flows);
    for (address, health) in [
        ("10.51.0.100/32", 0),
        ("10.77.0.1/24", 4),
        ("10.51.0.7/24", 0),
        // The node itself has become the router.
        ("10.51.0.1/24", 4),
    ] {
        node.ns.ip("addr flush dev eth1");
        node.up(&settings);
        node.ns.ip(&format!("addr add {address} dev eth1"));
        node.up(&settings);
        let status = node.symroute(&["status"]);
        assert_eq!(status.code, Some(health), "{address}: {}", status.stdout);
        // The next pod starts with any address.
        node.add(&settings, &pod);
    }
    node.ns.ip("addr flush dev eth1
         addr add 10.51.0.100/32 dev eth1");
    node.up(&settings);
    assert_all_work(&flows);
    node.down();
    node.del(&settings, &pod);
}
