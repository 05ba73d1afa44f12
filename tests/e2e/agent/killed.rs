//! What an agent that was killed left behind.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::plugin_object;
use crate::lab::agent::{Agent, until};
use crate::lab::two_nics::{NICS, two_nics};

/// A change of settings was complete but for the record: a table that only the former settings
/// called ours is somebody else's again.
#[test]
fn a_change_of_settings_is_completed() {
    let layout = two_nics();
    let node = &layout.node;
    let config = plugin_object(node, &json!({"uplinks": NICS}));
    let start = || Agent::ready(node, &["--config", &config]);
    assert!(start().end(Signal::SIGTERM).success());
    let file = node.dir.join("run/node.json");
    let record = fs::read_to_string(&file).expect("read the record");
    let mut record: Value = serde_json::from_str(&record).expect("a record");
    record["previous"] = json!([record["settings"].clone()]);
    record["previous"][0]["tableBase"] = json!(48000);
    fs::write(&file, record.to_string()).expect("write the record");
    let agent = start();
    let reconciles = || agent.metric("symroute_reconciles_total{outcome=\"done\"}");
    let made = reconciles();
    node.ns.ip("route add 198.51.100.0/24 dev eth0 table 48001 proto kernel");
    node.lose_all_rules();
    until("repaired", || reconciles() > made);
    let routes = node.ns.exec(&["ip", "route", "show", "table", "48001"], "");
    assert!(routes.contains("198.51.100.0/24"), "{routes:?}");
}
