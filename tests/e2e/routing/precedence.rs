//! Rules of other programs before ours, as MAAS, netplan and Cilium have them: `status` names them,
//! and a priority that comes first.

use serde_json::json;

use crate::lab::flows::{assert_all_work, assert_only_these_fail};
use crate::lab::two_nics::{NICS, two_nics};

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
    assert!(status.stdout.contains("\"rulePriority\": 96"), "{}", status.stdout);
    settings["rulePriority"] = json!(96);
    node.up(&settings);
    node.ns.exec(&["conntrack", "-F"], "");
    assert_all_work(&flows());
    assert_eq!(node.symroute(&["status"]).code, Some(0));
    node.down();
    node.ns.ip("rule del pref 100");
}
