//! Another network's conflist replaces that of a network. Settings in force under the old name, without
//! a pod, do not block the new network.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::lab::agent::Agent;
use crate::lab::flows::assert_all_work;
use crate::lab::node::{Node, Pod};
use crate::lab::plugin::Ran;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

/// The settings of the network `kindnet`, and those of `cbr0`.
fn settings(network: &str) -> Value {
    json!({"uplinks": NICS, "hairpin": network == "cbr0", "name": network})
}

/// The conf dir with one network's conflist, as a primary plugin leaves it.
fn conf_dir(node: &Node, network: &str) -> PathBuf {
    let folder = node.dir.join("net.d");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("make the folder");
    let mut plugin: Value =
        serde_json::from_str(&node.network(&settings(network), None)).expect("an object");
    let object = plugin.as_object_mut().expect("an object");
    object.retain(|key, _| key != "name" && key != "cniVersion");
    let plugins = json!([{"type": "ptp"}, plugin]);
    let list = json!({"cniVersion": "1.0.0", "name": network, "plugins": plugins});
    let file = folder.join(format!("10-{network}.conflist"));
    fs::write(file, list.to_string()).expect("write the conflist");
    folder
}

fn up(node: &Node, network: &str) {
    let folder = conf_dir(node, network);
    let ran = node.symroute(&["up", "--conf-dir", folder.to_str().expect("UTF-8")]);
    ran.assert_success("up");
}

fn call(node: &Node, verb: &str, network: &str, pod: &Pod) -> Ran {
    node.call(&node.call_of(verb, &settings(network), pod))
}

fn network_in_force(node: &Node) -> Value {
    let text = node.symroute(&["status", "--json"]).stdout;
    let status: Value = serde_json::from_str(&text).expect("JSON");
    json!([status["network"], status["settings"]["hairpin"]])
}

/// The pods of `cbr0` start, and end, on a node where `kindnet` is in force.
fn assert_cbr0_takes_over(layout: &TwoNics, pod: &Pod) {
    let node = &layout.node;
    call(node, "ADD", "cbr0", pod).assert_success("ADD of the new network");
    call(node, "CHECK", "cbr0", pod).assert_success("CHECK of the new network");
    assert_eq!(network_in_force(node), json!(["cbr0", true]));
    assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    let status = node.symroute(&["status"]);
    assert_eq!(status.code, Some(0), "{}", status.stdout);
}

#[test]
fn settings_that_up_brought() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let before = Snapshot::take(node);
    up(node, "kindnet");
    assert_eq!(network_in_force(node), json!(["kindnet", false]));
    conf_dir(node, "cbr0");
    assert_cbr0_takes_over(&layout, &pod);
    call(node, "DEL", "cbr0", &pod).assert_success("DEL");
    // The next boot, or an operator, does this.
    up(node, "cbr0");
    assert_eq!(network_in_force(node), json!(["cbr0", true]));
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}

#[test]
fn settings_that_an_agent_brought() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let folder = conf_dir(node, "kindnet");
    let ready = || Agent::ready(node, &["--conf-dir", folder.to_str().expect("UTF-8")]);
    let agent = ready();
    assert_eq!(network_in_force(node), json!(["kindnet", false]));
    // An upgrade replaces the primary plugin while no agent runs.
    drop(agent);
    conf_dir(node, "cbr0");
    assert_cbr0_takes_over(&layout, &pod);
    let agent = ready();
    assert_eq!(network_in_force(node), json!(["cbr0", true]));
    call(node, "DEL", "cbr0", &pod).assert_success("DEL");
    assert_eq!(agent.get("/readyz").0, 200);
    assert_all_work(&[layout.flow_to_host()]);
}

/// `up` of the new network, before any pod starts.
#[test]
fn settings_that_up_brings_anew() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    up(node, "kindnet");
    up(node, "cbr0");
    assert_eq!(network_in_force(node), json!(["cbr0", true]));
    assert_all_work(&[layout.flow_to_host()]);
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}

/// A network with a running pod still counts. Two networks with different settings can't both be in force.
#[test]
fn a_network_with_a_pod_blocks_one_with_other_settings() {
    let mut layout = two_nics();
    let (first, second) = (layout.pod_behind_eth1(1), layout.pod_behind_eth1(2));
    let node = &layout.node;
    let before = Snapshot::take(node);
    up(node, "kindnet");
    call(node, "ADD", "kindnet", &first).assert_success("ADD");
    conf_dir(node, "cbr0");
    let served = Snapshot::take(node);
    let ran = call(node, "ADD", "cbr0", &second);
    let error: Value = serde_json::from_str(&ran.stdout).expect("a CNI error");
    let said = format!("{}; {}", error["msg"], error["details"]);
    assert!(ran.code == Some(1) && error["code"] == json!(7), "{error}");
    for word in ["kindnet", "cbr0", "hairpin"] {
        assert!(said.contains(word), "does not say {word}: {error}");
    }
    served.assert_unchanged(&Snapshot::take(node));
    assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    // Its last pod ends.
    call(node, "DEL", "kindnet", &first).assert_success("DEL");
    call(node, "ADD", "cbr0", &second).assert_success("ADD of the new network");
    assert_eq!(network_in_force(node), json!(["cbr0", true]));
    call(node, "DEL", "cbr0", &second).assert_success("DEL");
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}
