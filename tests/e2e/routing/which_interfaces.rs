//! Interfaces other than plain NICs that `auto` takes, and what `status` says about the rest.

use serde_json::{Value, json};

use super::lan::{Lan, firewall, host};
use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

fn status(node: &Node) -> Value {
    let ran = node.symroute(&["status", "--json"]);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect()
}

/// The second NIC is the port of a bridge. The bridge has the address, and a default route in a table
/// of its own. Main's default route is by a veth, as in a container.
#[test]
fn a_bridge_and_a_veth_with_a_default_route() {
    let (node, router) = (Node::new("node"), firewall("router"));
    let (lan0, lan1, outside) = (Lan::new("lan0"), Lan::new("lan1"), Lan::new("outside"));
    lan0.plug(&node.ns, "eth0", &["10.99.0.236/24"]);
    lan1.plug(&node.ns, "eth1", &[]);
    lan0.plug(&router, "r0", &["10.99.0.254/24"]);
    lan1.plug(&router, "r1", &["10.164.0.94/28"]);
    outside.plug(&router, "r2", &["203.0.113.1/24"]);
    node.ns.ip("link add br1 type bridge
         link set br1 up
         link set eth1 master br1
         addr add 10.164.0.82/28 dev br1
         link add br2 type bridge
         link set br2 up
         addr add 10.244.0.1/24 dev br2
         route add default via 10.99.0.254 dev eth0
         route add default via 10.164.0.94 dev br1 table 125
         rule add from 10.164.0.82 lookup 125 pref 32000
         tuntap add wg0 mode tun
         link set wg0 up
         addr add 10.7.0.3/31 dev wg0");
    let client = host(&outside, "client", "203.0.113.9/24", "203.0.113.1");
    let pod = node.pod("pod", &["10.244.1.5"]);
    super::lan::node_port(&node.ns, "10.244.1.5");
    let _server = Server::start(&pod.ns, Proto::Tcp, 8080, "pod");
    let flow = |to: &str| Flow::new(to, &client, Proto::Tcp, to, "pod 203.0.113.9");
    let flows = [flow("10.164.0.82:30080"), flow("10.99.0.236:30080")];
    assert_only_these_fail(&flows, &["10.164.0.82:30080"]);
    let before = Snapshot::take(&node);
    let settings = json!({});
    node.add(&settings, &pod);
    assert_all_work(&flows);
    let report = status(&node);
    assert_eq!(names(&report["uplinks"]), ["eth0", "br1"]);
    let left_out = names(&report["leftOut"]);
    assert!(left_out.contains(&"br2") && left_out.contains(&"wg0"), "{left_out:?}");
    assert!(!left_out.iter().any(|name| name.starts_with("eni")), "no pod's: {left_out:?}");
    assert_eq!(node.symroute(&["status"]).code, Some(0), "that is nothing wrong");
    node.del(&settings, &pod);
    before.assert_unchanged(&Snapshot::take(&node));
}

/// A NIC without address and default route gets requests all the same: from a balancer that knows its
/// hardware address. They are dropped, and `status` names the NIC; named, it works.
#[test]
fn a_silent_nic_that_gets_requests_is_named() {
    let (node, router) = (Node::new("node"), firewall("router"));
    let (lan0, lan1, outside) = (Lan::new("lan0"), Lan::new("lan1"), Lan::new("outside"));
    lan0.plug(&node.ns, "eth0", &["10.99.0.236/24"]);
    // Never a veth: only pods have them.
    lan1.plug(&node.ns, "port", &[]);
    node.ns.ip("link add eth1 link port type macvlan mode passthru
         link set eth1 up
         addr add 198.51.100.1/32 dev lo
         route add default via 10.99.0.254 dev eth0");
    lan0.plug(&router, "r0", &["10.99.0.254/24"]);
    lan1.plug(&router, "r1", &["10.98.0.254/24"]);
    outside.plug(&router, "r2", &["203.0.113.1/24"]);
    let mac = node.ns.mac("eth1");
    router.ip(&format!(
        "route add 198.51.100.1 via 10.98.0.1
         neigh add 10.98.0.1 dev r1 lladdr {mac} nud permanent"
    ));
    let client = host(&outside, "client", "203.0.113.9/24", "203.0.113.1");
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let to = "198.51.100.1:10250";
    let flows = [Flow::new("silent", &client, Proto::Tcp, to, "host 203.0.113.9")];
    assert_only_these_fail(&flows, &["silent"]);
    let before = Snapshot::take(&node);
    let mut settings = json!({"uplinks": ["eth0"]});
    node.up(&settings);
    assert!(!names(&status(&node)["leftOut"]).contains(&"eth1"), "nothing has come in by it");
    assert_only_these_fail(&flows, &["silent"]);
    let left_out = status(&node)["leftOut"].clone();
    if Backend::of_run() == Backend::Nftables {
        let eth1 = left_out.as_array().expect("a list").iter().find(|one| one["name"] == "eth1");
        let why = eth1.expect("the NIC is named")["why"].as_str().expect("a text");
        assert!(why.contains("new connections from outside"), "{why}");
    }
    settings["uplinks"] = json!(["eth0", "eth1"]);
    settings["gateways"] = json!({"eth1": ["10.98.0.254"]});
    node.up(&settings);
    assert_all_work(&flows);
    assert!(!names(&status(&node)["leftOut"]).contains(&"eth1"));
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
}
