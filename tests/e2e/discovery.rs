//! Which interfaces are uplinks and where their gateways come from, according to `status --json`
//! and to packets.

use serde_json::{Value, json};

use crate::lab::flows::{Flow, assert_only_these_fail};
use crate::lab::node::Node;
use crate::lab::proof::Proof;
use crate::lab::router::Router;
use crate::lab::traffic::{Proto, Server};
use crate::lab::two_nics::{NICS, two_nics};

fn status(node: &Node) -> Value {
    let ran = node.symroute(&["status", "--json"]);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
}

/// Name, id, table, IPv4 gateway and its source of each uplink.
pub(crate) fn uplinks(node: &Node) -> Vec<String> {
    let report = status(node);
    let list = report["uplinks"].as_array().expect("a list").iter();
    list.map(|u| {
        let way = &u["ipv4"];
        let text = |value: &Value| value.as_str().unwrap_or("none").to_string();
        let (gateway, source) = (text(&way["gateway"]), text(&way["learnedFrom"]));
        format!("{} {} {} {gateway}, {source}", text(&u["name"]), u["id"], u["table"])
    })
    .collect()
}

#[test]
fn auto_takes_what_leads_outside_and_nothing_else() {
    let (mut router, node) = (Router::new(), Node::new("node"));
    // `"auto"` takes a veth only with main's default route, so the NICs are macvlans on veths. eth2
    // and eth3 have no route yet.
    for n in 0..4 {
        router.plug(&format!("eth{n}"), &node.ns, &format!("wire{n}"), &[&format!("10.2{n}.0.1")]);
        node.ns.ip(&format!(
            "link add eth{n} link wire{n} type macvlan mode bridge
             addr add 10.2{n}.0.10/24 dev eth{n}
             link set eth{n} up"
        ));
    }
    node.ns.ip("route add default via 10.20.0.1 dev eth0
         route add default via 10.21.0.1 dev eth1 table 101
         route add default dev wire2 table 102
         link add br0 type bridge
         link set br0 up
         addr add 172.17.0.1/16 dev br0
         tuntap add tun0 mode tun
         link set tun0 up
         route add 192.0.2.0/24 dev tun0
         route add default dev tun0 table 103");
    let settings = json!({});
    node.up(&settings);
    assert_eq!(
        uplinks(&node),
        [
            "eth0 1 47001 10.20.0.1, default route in main",
            "eth1 2 47002 10.21.0.1, default route in table 101",
            "tun0 3 47003 none, point-to-point",
        ]
    );
    // Ids stay although eth3 sorts before tun0.
    node.ns.ip("route add default via 10.23.0.1 dev eth3 metric 50");
    node.up(&settings);
    assert_eq!(uplinks(&node)[2], "tun0 3 47003 none, point-to-point");
    assert_eq!(uplinks(&node)[3], "eth3 4 47004 10.23.0.1, default route in main");
    node.down();
}

#[test]
fn a_gateway_comes_from_the_settings_where_none_can_be_found() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.ip("route flush table 101");
    node.ns.ip6("route flush table 101");
    let to_host =
        || [Flow::new("host", &layout.client, Proto::Tcp, "10.21.0.10:10250", "host 203.0.113.9")];
    assert_only_these_fail(&to_host(), &["host"]);
    let without = json!({"uplinks": NICS});
    node.up(&without);
    assert_eq!(uplinks(node)[1], "eth1 2 47002 none, not found");
    let report = status(node);
    let off = report["off"].as_array().expect("a list");
    let (what, remedy) = (off[0]["what"].to_string(), off[0]["wayOut"].to_string());
    assert!(what.contains("eth1 has no IPv4 gateway"), "{what}");
    assert!(remedy.contains("gateways") && remedy.contains("eth1"), "{remedy}");
    let table = node.symroute(&["status"]).stdout;
    assert!(table.contains("What is wrong:") && table.contains("eth1 has no IPv4"), "{table}");
    let gateways = json!({"eth1": ["10.21.0.1", "fe80::1"]});
    node.up(&json!({"uplinks": NICS, "gateways": gateways}));
    assert_eq!(uplinks(node)[1], "eth1 2 47002 10.21.0.1, configured");
    let proof = Proof::begin(node, &layout.router);
    proof.assert_flows_work(&to_host(), &NICS, 1);
    node.down();
}

/// Fifteen uplinks, the most that the default mask has ids for. Each answers through itself.
#[test]
fn fifteen_uplinks_each_answer_by_themselves() {
    let (mut router, node) = (Router::new(), Node::new("node"));
    let names: Vec<String> = (1..=15).map(|n| format!("eth{n}")).collect();
    for (name, n) in names.iter().zip(1..) {
        router.plug(name, &node.ns, name, &[&format!("10.30.{n}.1")]);
        node.ns.ip(&format!(
            "addr add 10.30.{n}.10/24 dev {name}
             route add default via 10.30.{n}.1 dev {name} metric {n}"
        ));
        router.assign(name, &format!("10.30.{n}.10"));
    }
    let client = router.host("client", &["203.0.113.9"]);
    let nics: Vec<&str> = names.iter().map(String::as_str).collect();
    router.check_sources(&nics);
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let flows: Vec<_> = (1..=15)
        .map(|n| {
            let to = format!("10.30.{n}.10:10250");
            Flow::new(&to, &client, Proto::Tcp, &to, "host 203.0.113.9")
        })
        .collect();
    let broken: Vec<_> = flows[1..].iter().map(|flow| flow.name.as_str()).collect();
    assert_only_these_fail(&flows, &broken);
    // Half-open connections of the baseline still send packets, which are not part of this test.
    node.ns.exec(&["conntrack", "-F"], "");
    let proof = Proof::begin(&node, &router);
    node.up(&json!({"uplinks": ["eth*"]}));
    proof.assert_flows_work(&flows, &nics, 15);
    node.down();
    proof.assert_as_before();
}

/// Any mask, priority and table base work equally well.
#[test]
fn other_masks_priorities_and_tables() {
    for (mask, priority, base) in
        [("0x80000107", 1, 255), ("0xf0000000", 504, 4_294_967_280_u32), ("0x7", 300, 9_999_000)]
    {
        let layout = two_nics();
        let settings = json!({
            "uplinks": NICS, "markMask": mask, "rulePriority": priority, "tableBase": base
        });
        let proof = Proof::begin(&layout.node, &layout.router);
        layout.node.add(&settings, &layout.pods[1]);
        let flow = |name, to, answer| Flow::new(name, &layout.client, Proto::Tcp, to, answer);
        let flows = [
            flow("host", "10.21.0.10:10250", "host 203.0.113.9"),
            flow("host over IPv6", "[2001:db8:21::10]:10250", "host 2001:db8:9::9"),
            flow("pod", "10.21.0.50:8080", "pod1 203.0.113.9"),
        ];
        proof.assert_flows_work(&flows, &NICS, 3);
        layout.node.del(&settings, &layout.pods[1]);
        proof.assert_as_before();
    }
}
