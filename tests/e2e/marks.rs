//! Where another program steers by bits of the mark, the plugin takes other bits by itself, and keeps
//! them while they are in force.

use serde_json::{Value, json};

use crate::lab::flows::{assert_all_work, assert_only_these_fail};
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, two_nics};

/// An ip rule for a part of the mark, of an unknown program.
const CLASH: &str = "pref 90 fwmark 0x200/0xf00 lookup 77";

fn mask(node: &Node) -> Value {
    let ran = node.symroute(&["status", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect("a report");
    assert!(report["automatic"].as_array().is_some_and(|keys| keys.contains(&json!("markMask"))));
    report["settings"]["markMask"].clone()
}

#[test]
fn free_bits_are_taken_and_kept() {
    let layout = two_nics();
    let node = &layout.node;
    let flows = [layout.flow_to_host()];
    assert_only_these_fail(&flows, &["host on eth1"]);
    // Table 77 leads elsewhere, so the clash would show.
    node.ns.ip(&format!("rule add {CLASH}\nroute add blackhole default table 77"));
    let before = Snapshot::take(node);
    let settings = json!({ "uplinks": NICS });
    node.up(&settings);
    assert_eq!(mask(node), "0x1f0000");
    assert_all_work(&flows);
    // The settings in force stay, and the next call finds nothing to do.
    node.ns.ip(&format!("rule del {CLASH}"));
    node.up(&settings);
    assert_eq!(mask(node), "0x1f0000");
    assert_eq!(node.symroute(&["status"]).code, Some(0));
    node.ns.ip(&format!("rule add {CLASH}"));
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}

#[test]
fn a_clash_that_comes_later_is_evaded() {
    let layout = two_nics();
    let node = &layout.node;
    let settings = json!({ "uplinks": NICS });
    let before = Snapshot::take(node);
    node.up(&settings);
    assert_eq!(mask(node), "0x1f00");
    node.ns.ip(&format!("rule add {CLASH}\nroute add blackhole default table 77"));
    assert_only_these_fail(&[layout.flow_to_host()], &["host on eth1"]);
    // The next pod's ADD repairs the node, and the pod is served.
    node.add(&settings, &layout.pods[1]);
    assert_all_work(&[layout.flow_to_host()]);
    assert_eq!(mask(node), "0x1f0000");
    node.del(&settings, &layout.pods[1]);
    node.ns.ip(&format!("rule del {CLASH}\nroute del blackhole default table 77"));
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}

/// Cilium's identities and magic marks leave two bits: enough for one uplink.
#[test]
fn beside_cilium_one_uplink_is_served() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.ip("rule add pref 9 fwmark 0x200/0xf00 lookup 2004");
    node.ns.ip("tuntap add cilium_host mode tap");
    let before = Snapshot::take(node);
    let flows = [layout.flow_to_host()];
    assert_only_these_fail(&flows, &["host on eth1"]);
    node.up(&json!({ "uplinks": ["eth1"] }));
    assert_eq!(mask(node), "0x3000");
    assert_all_work(&flows);
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}
