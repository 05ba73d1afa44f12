//! What `auto` takes beside plain NICs, and what `status` says of the rest.

use serde_json::{Value, json};

use super::lan::{Lan, firewall, host};
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

/// The second NIC is the port of a bridge, which has the address and a default route in a table of
/// its own; main's default is by a veth, as in a container.
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
