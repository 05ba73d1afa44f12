//! A NIC whose routes are in a table of its own, which a rule by its address looks up. `NetworkManager`
//! (`ipv4.route-table`), networkd (`RouteTable=`) and MAAS set up nodes like this.

use serde_json::json;

use super::lan::{Lan, firewall, host, node_port};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

const SETTINGS: [&str; 2] = ["eth0", "eth1"];

/// A neighbour and a branch network are reached by the table alone, and a stateful router does not
/// let their replies pass.
#[test]
fn routes_of_the_own_table_are_kept() {
    let (node, router, branch) = (Node::new("node"), firewall("router"), firewall("branch"));
    let (lan0, lan1, outside) = (Lan::new("lan0"), Lan::new("lan1"), Lan::new("outside"));
    lan0.plug(&node.ns, "eth0", &["10.85.10.28/24"]);
    lan1.plug(&node.ns, "eth1", &[]);
    lan0.plug(&router, "r0", &["10.85.10.1/24"]);
    lan1.plug(&router, "r1", &["10.85.11.1/24"]);
    outside.plug(&router, "r2", &["203.0.113.1/24"]);
    lan1.plug(&branch, "b0", &["10.85.11.254/24"]);
    let inner = Lan::new("inner");
    inner.plug(&branch, "b1", &["10.60.0.1/16"]);
    node.ns.ip("addr add 10.85.11.28/24 dev eth1 noprefixroute
         route add default via 10.85.10.1 dev eth0
         route add 10.85.11.0/24 dev eth1 src 10.85.11.28 table 150
         route add 10.60.0.0/16 via 10.85.11.254 dev eth1 table 150
         route add default via 10.85.11.1 dev eth1 table 150
         rule add from 10.85.11.28 lookup 150 pref 32000");
    let client = host(&outside, "client", "203.0.113.9/24", "203.0.113.1");
    let neighbour = host(&lan1, "neighbour", "10.85.11.50/24", "10.85.11.1");
    let far = host(&inner, "far", "10.60.0.9/16", "10.60.0.1");
    let pod = node.pod("pod", &["10.244.0.5"]);
    let _servers = [
        Server::start(&node.ns, Proto::Tcp, 10250, "host"),
        Server::start(&pod.ns, Proto::Tcp, 8080, "pod"),
    ];
    node_port(&node.ns, "10.244.0.5");
    let flow = |name: &str, from, port: u16, answer| {
        Flow::new(name, from, Proto::Tcp, &format!("10.85.11.28:{port}"), answer)
    };
    let flows = [
        flow("client to host", &client, 10250, "host 203.0.113.9"),
        flow("neighbour to host", &neighbour, 10250, "host 10.85.11.50"),
        flow("branch to host", &far, 10250, "host 10.60.0.9"),
        flow("client to pod", &client, 30080, "pod 203.0.113.9"),
        flow("neighbour to pod", &neighbour, 30080, "pod 10.85.11.50"),
        flow("branch to pod", &far, 30080, "pod 10.60.0.9"),
    ];
    assert_only_these_fail(&flows, &["client to pod", "neighbour to pod", "branch to pod"]);
    node.ns.exec(&["conntrack", "-F"], "");
    let before = Snapshot::take(&node);
    let settings = json!({ "uplinks": SETTINGS });
    node.add(&settings, &pod);
    assert_all_work(&flows);
    node.del(&settings, &pod);
    before.assert_unchanged(&Snapshot::take(&node));
}

/// A default route by two stateful routers with weights. The uplink's table has the same route, so each
/// connection takes the hop that the kernel chooses for it, as without the plugin.
#[test]
fn a_multipath_default_is_copied_whole() {
    let node = Node::new("node");
    let lan = Lan::new("lan");
    lan.plug(&node.ns, "eth0", &["10.8.0.10/24", "2001:db8:8::10/64"]);
    lan.plug(&node.ns, "eth1", &["10.9.0.10/24"]);
    node.ns.ip(
        "route add default nexthop via 10.8.0.1 dev eth0 weight 3 nexthop via 10.8.0.2 dev eth0
         route add default nexthop via 2001:db8:8::1 dev eth0 nexthop via 2001:db8:8::2 dev eth0
         nexthop add id 1 via 10.9.0.1 dev eth1
         nexthop add id 2 via 10.9.0.2 dev eth1
         nexthop add id 10 group 1/2,2
         route add default nhid 10 table 150
         rule add from 10.9.0.10 lookup 150 pref 32000",
    );
    let before = Snapshot::take(&node);
    let settings = json!({ "uplinks": SETTINGS });
    for _ in 0..2 {
        node.up(&settings);
        let table = |family: &str, table: &str| {
            node.ns.exec(&["ip", family, "route", "show", "table", table, "default"], "")
        };
        for (family, table, hops) in [
            (
                "-4",
                table("-4", "47001"),
                ["via 10.8.0.1 dev eth0 weight 3", "via 10.8.0.2 dev eth0 weight 1"],
            ),
            (
                "-6",
                table("-6", "47001"),
                ["via 2001:db8:8::1 dev eth0", "via 2001:db8:8::2 dev eth0"],
            ),
            (
                "-4",
                table("-4", "47002"),
                ["via 10.9.0.1 dev eth1 weight 1", "via 10.9.0.2 dev eth1 weight 2"],
            ),
        ] {
            for hop in hops {
                assert!(table.contains(hop), "{family} {hop}: {table}");
            }
        }
        assert_eq!(node.symroute(&["status"]).code, Some(0), "nothing is left to do");
    }
    // One hop goes: the rest of the route stays.
    node.ns.ip("route replace default via 10.8.0.2 dev eth0");
    node.up(&settings);
    let table = node.ns.exec(&["ip", "route", "show", "table", "47001", "default"], "");
    assert_eq!(table.trim(), "default via 10.8.0.2 dev eth0 proto kernel");
    node.ns.ip("route replace default nexthop via 10.8.0.1 dev eth0 weight 3 nexthop via 10.8.0.2 dev eth0");
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
}
