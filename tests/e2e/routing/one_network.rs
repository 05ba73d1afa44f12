//! Which NICs are in one network, and which only look like it: counter-examples that the model found
//! (src/plan/tests/flows.rs), by packets.

use serde_json::json;

use super::lan::{Lan, firewall, host};
use crate::lab::flows::{Flow, assert_all_work};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

fn mac_of(ns: &Netns, ifname: &str) -> String {
    ns.exec(&["cat", &format!("/sys/class/net/{ifname}/address")], "").trim().to_owned()
}

/// The second NIC has no address, only a default route by a router in the subnet of the first: the
/// neighbours are its own as well. The router is a stateful firewall, so it would drop a reply to one.
#[test]
fn a_nic_without_an_address_beside_one_that_has_a_subnet() {
    let (node, router) = (Node::new("node"), firewall("router"));
    let lan = Lan::new("lan");
    let branch_lan = Lan::new("branch-lan");
    lan.plug(&node.ns, "eth0", &["10.10.0.10/24"]);
    lan.plug(&node.ns, "eth1", &[]);
    lan.plug(&router, "r0", &["10.10.0.1/24"]);
    let gate = firewall("gate");
    lan.plug(&gate, "g0", &["10.10.0.254/24"]);
    branch_lan.plug(&gate, "g1", &["10.60.0.1/24"]);
    let branch = host(&branch_lan, "branch", "10.60.0.9/24", "10.60.0.1");
    let near = host(&lan, "near", "10.10.0.50/24", "10.10.0.1");
    // A client of one host and a branch network reach the node by its second NIC.
    let second = mac_of(&node.ns, "eth1");
    near.ip(&format!("neigh replace 10.10.0.10 dev eth0 lladdr {second} nud permanent"));
    gate.ip(&format!("neigh replace 10.10.0.10 dev g0 lladdr {second} nud permanent"));
    for scope in ["all", "eth1"] {
        node.ns.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0");
    }
    node.ns.ip("route add default via 10.10.0.1 dev eth0
         route add default via 10.10.0.1 dev eth1 onlink metric 200
         route add 10.60.0.0/24 via 10.10.0.254 dev eth0");
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let to = "10.10.0.10:10250";
    let flows = [
        Flow::new("near", &near, Proto::Tcp, to, "host 10.10.0.50"),
        Flow::new("branch", &branch, Proto::Tcp, to, "host 10.60.0.9"),
    ];
    assert_all_work(&flows);
    let before = Snapshot::take(&node);
    node.up(&json!({"uplinks": ["eth*"]}));
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&flows);
    let table = node.ns.exec(&["ip", "route", "show", "table", "47002"], "");
    assert!(table.contains("10.10.0.0/24 dev eth1"), "{table}");
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
}

/// Two networks, each of which may have a router `fe80::1`: that of the first NIC is no router of the
/// second one, whose replies leave by main.
#[test]
fn a_link_local_router_of_another_network() {
    let node = Node::new("node");
    let lans: [Lan; 3] = ["lan0", "lan1", "outside"].map(Lan::new);
    lans[0].plug(&node.ns, "eth0", &["2001:db8:10::10/64"]);
    lans[1].plug(&node.ns, "eth1", &["2001:db8:11::10/64"]);
    // These routers keep no state, so a reply may take the other one.
    let router = |name: &str, lan: &Lan, near: &str, far: &str| {
        let router = Netns::new(name);
        router.sysctl("ipv6/conf/all/forwarding", "1");
        lan.plug(&router, "near", &[near]);
        lans[2].plug(&router, "far", &[far]);
        router
    };
    let first = router("router1", &lans[0], "fe80::1/64", "2001:db8:113::1/64");
    let second = router("router2", &lans[1], "2001:db8:11::1/64", "2001:db8:113::2/64");
    first.ip("route add 2001:db8:10::/64 dev near");
    let client = Netns::new("client");
    lans[2].plug(&client, "eth0", &["2001:db8:113::9/64"]);
    client.ip("route add 2001:db8:11::/64 via 2001:db8:113::2");
    node.ns.ip("route add default via fe80::1 dev eth0");
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let to = "[2001:db8:11::10]:10250";
    let flows = [Flow::new("second", &client, Proto::Tcp, to, "host 2001:db8:113::9")];
    assert_all_work(&flows);
    let before = Snapshot::take(&node);
    node.up(&json!({"uplinks": ["eth*"]}));
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&flows);
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
    drop(second);
}
