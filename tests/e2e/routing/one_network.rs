//! Which NICs are in one network, and which only look like it: counter-examples that the model found
//! (src/plan/tests/flows.rs), by packets.

use serde_json::json;

use super::lan::{Lan, firewall, host};
use crate::lab::flows::{Flow, assert_all_work};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

/// The second NIC has no address, only a default route by a router in the first one's subnet. So that
/// subnet's neighbours are also neighbours of the second NIC. The router is a stateful firewall, so it
/// would drop a reply to one of them.
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
    let second = node.ns.mac("eth1");
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

/// Two networks may each have a router `fe80::1`. The first NIC's router is not one of the second NIC,
/// whose replies follow main.
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

/// IPv6 refuses an `onlink` router where main leads to the router by another NIC. The second NIC's
/// table gets its default route all the same.
#[test]
fn a_router_on_the_link_that_main_leads_to_by_another_nic() {
    let (node, router) = (Node::new("node"), firewall("router"));
    let (lan, outside) = (Lan::new("lan"), Lan::new("outside"));
    router.sysctl("ipv6/conf/all/forwarding", "1");
    lan.plug(&node.ns, "eth1", &[]);
    lan.plug(&node.ns, "eth0", &[]);
    lan.plug(&router, "r0", &["2001:db8:10::1/64"]);
    outside.plug(&router, "r1", &["2001:db8:113::1/64"]);
    let client = Netns::new("client");
    outside.plug(&client, "eth0", &["2001:db8:113::9/64"]);
    client.ip("route add 2001:db8:10::/64 via 2001:db8:113::1");
    // The second NIC was there first.
    node.ns.ip("addr add 2001:db8:10::11/64 dev eth1 noprefixroute nodad
         route add default via 2001:db8:10::1 dev eth1 table 111 onlink
         route add 2001:db8:60::/64 via 2001:db8:10::fe dev eth1 table 111 onlink");
    node.ns.ip("addr add 2001:db8:10::10/64 dev eth0 nodad
         route add default via 2001:db8:10::1 dev eth0");
    node.ns.ip6("rule add from 2001:db8:10::11 lookup 111");
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let flow = |to| Flow::new(to, &client, Proto::Tcp, to, "host 2001:db8:113::9");
    let flows = [flow("[2001:db8:10::10]:10250"), flow("[2001:db8:10::11]:10250")];
    assert_all_work(&flows);
    let before = Snapshot::take(&node);
    node.up(&json!({"uplinks": ["eth*"]}));
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&flows);
    assert_eq!(node.symroute(&["status"]).code, Some(0));
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
}

/// A VPN's wide prefix contains the second NIC's subnet. That does not make them one network: clients
/// in the prefix are behind the NIC's router.
#[test]
fn a_wide_network_of_a_vpn_is_none_of_the_nics() {
    let (node, router) = (Node::new("node"), firewall("router"));
    let (lan0, lan1, far) = (Lan::new("lan0"), Lan::new("lan1"), Lan::new("far"));
    lan0.plug(&node.ns, "eth0", &["10.10.0.10/24"]);
    lan1.plug(&node.ns, "eth1", &["10.11.0.10/24"]);
    lan0.plug(&router, "r0", &["10.10.0.1/24"]);
    lan1.plug(&router, "r1", &["10.11.0.1/24"]);
    far.plug(&router, "r2", &["10.50.0.1/24"]);
    let client = host(&far, "client", "10.50.0.9/24", "10.50.0.1");
    node.ns.ip("route add default via 10.10.0.1 dev eth0
         route add default via 10.11.0.1 dev eth1 table 111
         rule add from 10.11.0.10 lookup 111 pref 32000
         tuntap add vpn0 mode tun
         link set vpn0 up
         addr add 10.99.0.2/32 dev vpn0
         route add 10.0.0.0/8 dev vpn0");
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let flows = [Flow::new("far", &client, Proto::Tcp, "10.11.0.10:10250", "host 10.50.0.9")];
    assert_all_work(&flows);
    let before = Snapshot::take(&node);
    node.up(&json!({"uplinks": ["eth*"]}));
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&flows);
    let table = node.ns.exec(&["ip", "route", "show", "table", "47002"], "");
    assert!(!table.contains("10.0.0.0/8"), "{table}");
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
}
