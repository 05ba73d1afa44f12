//! Rules of other programs before symroute's, as MAAS, netplan and Cilium have them. `status` names
//! them, and a priority that comes first.

use serde_json::json;

use crate::lab::agent::PATIENT;
use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::traffic::{Connection, Proto};
use crate::lab::two_nics::{NICS, NODE, POD, two_nics};

#[test]
fn a_rule_before_ours_is_named_with_the_remedy() {
    let layout = two_nics();
    let node = &layout.node;
    let mut settings = json!({"uplinks": NICS});
    let flows = || [layout.flow_to_host()];
    node.up(&settings);
    assert_all_work(&flows());
    assert_eq!(node.symroute(&["status"]).code, Some(0));
    // All that is sent from the node's addresses goes by main.
    node.ns.ip("rule add pref 100 from 10.16.0.0/12 lookup main");
    node.ns.exec(&["conntrack", "-F"], "");
    assert_only_these_fail(&flows(), &["host on eth1"]);
    let status = node.symroute(&["status"]);
    assert_eq!(status.code, Some(4), "{}", status.stdout);
    assert!(status.stdout.contains("100: from 10.16.0.0/12 lookup 254"), "{}", status.stdout);
    assert!(status.stdout.contains("\"rulePriority\": 96 or"), "{}", status.stdout);
    settings["rulePriority"] = json!(96);
    node.up(&settings);
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&flows());
    assert_eq!(node.symroute(&["status"]).code, Some(0));
    node.down();
    node.ns.ip("rule del pref 100");
}

#[test]
fn the_plugin_chooses_a_place_before_them() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({"uplinks": NICS}));
    node.ns.ip("rule add pref 100 from 10.16.0.0/12 lookup main");
    assert_only_these_fail(&[layout.flow_to_host()], &["host on eth1"]);
    let settings = json!({"uplinks": NICS, "rulePriority": "auto"});
    node.up(&settings);
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&[layout.flow_to_host()]);
    let places = || {
        let rules = node.ns.exec(&["ip", "rule"], "");
        let numbers = rules.lines().filter_map(|line| line.split(':').next()?.parse().ok());
        numbers.filter(|&place| place != 0 && place < 500).collect::<Vec<u32>>()
    };
    let ours: Vec<u32> = places().into_iter().filter(|place: &u32| *place != 100).collect();
    assert!(ours.iter().all(|place| (94..100).contains(place)), "{ours:?}");
    let report: serde_json::Value =
        serde_json::from_str(&node.symroute(&["status", "--json"]).stdout).expect("a report");
    assert_eq!(report["settings"]["rulePriority"], json!(96));
    assert_eq!(report["automatic"], json!(["markMask", "rulePriority"]));
    // The rule moves to the front. The plugin's rules follow, and an open connection goes on.
    let to = format!("{}:10250", NODE[1]).parse().expect("an address");
    let mut connection = Connection::open(&layout.client, to, PATIENT).expect("a connection");
    node.ns.ip("rule del pref 100
         rule add pref 50 from 10.16.0.0/12 lookup main");
    node.up(&settings);
    connection.ask().expect("the connection goes on");
    assert!(places().iter().all(|place| (44..=50).contains(place)), "{:?}", places());
    // "auto" never moves symroute's rules before another program's rule that denies.
    node.ns.ip("rule del pref 50
         rule add pref 20 from 10.16.0.0/12 lookup main
         rule add pref 30 from 198.18.0.0/15 prohibit");
    node.up(&settings);
    assert!(
        places().iter().all(|&place| place == 20 || place == 30 || place >= 44),
        "{:?}",
        places()
    );
    let status = node.symroute(&["status"]);
    assert!(status.stdout.contains("also before the rule that denies"), "{}", status.stdout);
    node.ns.ip("rule del pref 20
         rule del pref 30");
    node.down();
    assert!(places().is_empty(), "{:?}", places());
}

/// netplan's rule sends packets from eth1's address to eth1's own table. It also answers the question
/// by which iptables recognises local pods, so a request for a pod is not bound. nftables asks another
/// question.
#[test]
fn a_rule_by_an_address_of_the_node() {
    let layout = two_nics();
    let node = &layout.node;
    crate::routing::lan::node_port(&node.ns, POD[0]);
    node.ns.ip("route add 10.21.0.0/24 dev eth1 table 101
         rule add pref 100 from 10.21.0.10 lookup 101");
    let to = format!("{}:30080", NODE[1]);
    let flows = || [Flow::new("NodePort", &layout.client, Proto::Tcp, &to, "pod0 203.0.113.9")];
    assert_only_these_fail(&flows(), &["NodePort"]);
    node.up(&json!({"uplinks": NICS}));
    let broken: &[&str] = if Backend::of_run().is_iptables() { &["NodePort"] } else { &[] };
    assert_only_these_fail(&flows(), broken);
    assert_all_work(&[layout.flow_to_host()]);
    let status = node.symroute(&["status"]);
    let is_named = status.stdout.contains("100: from 10.21.0.10/32 lookup 101");
    assert_eq!(is_named, Backend::of_run().is_iptables(), "{}", status.stdout);
    node.up(&json!({"uplinks": NICS, "rulePriority": "auto"}));
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&flows());
    assert_all_work(&[layout.flow_to_host()]);
    node.down();
}
