//! Strict `rp_filter` also judges ARP requests. Those for the address of a second NIC in the same
//! subnet get no answer, so no packet arrives.

use serde_json::json;

use super::lan::{Lan, firewall, host, node_port};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

#[test]
fn two_nics_in_one_subnet() {
    let (node, router) = (Node::new("node"), firewall("router"));
    let (lan, outside) = (Lan::new("lan"), Lan::new("outside"));
    for nic in ["eth0", "eth1"] {
        lan.plug(&node.ns, nic, &[]);
        // Each NIC answers ARP for its own addresses only.
        node.ns.sysctl(&format!("ipv4/conf/{nic}/arp_ignore"), "1");
        node.ns.sysctl(&format!("ipv4/conf/{nic}/arp_announce"), "2");
    }
    lan.check_source(0, "10.0.0.10");
    lan.check_source(1, "10.0.0.20");
    lan.plug(&router, "r0", &["10.0.0.1/24"]);
    outside.plug(&router, "r1", &["203.0.113.1/24"]);
    node.ns.ip("addr add 10.0.0.10/24 dev eth0 noprefixroute
         addr add 10.0.0.20/24 dev eth1 noprefixroute
         route add 10.0.0.0/24 dev eth0 src 10.0.0.10 metric 512
         route add 10.0.0.0/24 dev eth1 src 10.0.0.20 metric 612
         route add default via 10.0.0.1 dev eth0 metric 512
         route add default via 10.0.0.1 dev eth1 metric 612");
    let client = host(&outside, "client", "203.0.113.9/24", "203.0.113.1");
    let neighbour = host(&lan, "neighbour", "10.0.0.99/24", "10.0.0.1");
    let pod = node.pod("pod", &["10.244.0.5"]);
    let _servers = [
        Server::start(&node.ns, Proto::Tcp, 10250, "host"),
        Server::start(&pod.ns, Proto::Tcp, 8080, "pod"),
    ];
    node_port(&node.ns, "10.244.0.5");
    let flow = |name: &str, from, to: &str, answer| Flow::new(name, from, Proto::Tcp, to, answer);
    let flows = [
        flow("eth0", &client, "10.0.0.10:10250", "host 203.0.113.9"),
        flow("eth1", &client, "10.0.0.20:10250", "host 203.0.113.9"),
        flow("eth1, pod", &client, "10.0.0.20:30080", "pod 203.0.113.9"),
        flow("eth1, neighbour", &neighbour, "10.0.0.20:10250", "host 10.0.0.99"),
        flow("eth1, neighbour, pod", &neighbour, "10.0.0.20:30080", "pod 10.0.0.99"),
    ];
    let broken: Vec<_> = flows[1..].iter().map(|flow| flow.name.as_str()).collect();
    assert_only_these_fail(&flows, &broken);
    let settings = json!({"uplinks": ["eth0", "eth1"]});
    for ns in [&router, &neighbour] {
        ns.ip("neigh flush all");
    }
    let before = Snapshot::take(&node);
    node.add(&settings, &pod);
    assert_all_work(&flows);
    node.del(&settings, &pod);
    before.assert_unchanged(&Snapshot::take(&node));
}
