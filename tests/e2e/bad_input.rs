//! Bad input gets a CNI error that names the key, the value and the remedy. Nothing changes on the
//! node, whether it has pods or not.

mod calls;
mod files;
mod neighbours;
mod results;
mod unknown;

use std::fs;

use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Node;
use crate::lab::plugin::Call;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

/// State of the node before the bad calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Nothing of symroute is on the node.
    Empty,
    /// A pod of the same network is attached.
    InUse,
}

/// The settings of the pod that is already attached.
fn valid_settings() -> Value {
    json!({"uplinks": NICS})
}

/// Prepares a node, runs `work` with it and proves that the earlier pod is still served.
fn on_a_node(start: Start, work: impl FnOnce(&TwoNics)) {
    let mut layout = two_nics();
    let attached = (start == Start::InUse).then(|| layout.pod_behind_eth1(1));
    let before = Snapshot::take(&layout.node);
    if let Some(pod) = &attached {
        layout.node.add(&valid_settings(), pod);
    }
    work(&layout);
    if let Some(pod) = &attached {
        let pod_name = "pod101 203.0.113.9";
        assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, pod_name)]);
        layout.node.del(&valid_settings(), pod);
    }
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// Lists what is wrong with an answer that has to be a CNI error with this code and these words.
fn complaints(node: &Node, call: &Call, code: u64, words: &[&str]) -> Vec<String> {
    let ran = node.call(call);
    let mut wrong = Vec::new();
    if ran.code != Some(1) {
        wrong.push(format!("exit code {:?}\n{}", ran.code, ran.stderr));
    }
    let document: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
    let keys: Vec<_> = document.as_object().into_iter().flat_map(|o| o.keys()).collect();
    if keys != ["cniVersion", "code", "msg", "details"] {
        wrong.push(format!("no CNI error on stdout: {}", ran.stdout));
    }
    if document["code"] != json!(code) {
        wrong.push(format!("code {} instead of {code}", document["code"]));
    }
    let text = ["msg", "details"].map(|key| document[key].as_str().unwrap_or_default()).join("; ");
    let missing = words.iter().filter(|word| !text.contains(*word));
    wrong.extend(missing.map(|word| format!("does not say {word}: {text}")));
    wrong
}

/// Asserts that each call gets an error with this code and these words, and leaves the node as it
/// is. A panic lists all faults.
fn assert_refused(layout: &TwoNics, cases: &[(Call, u64, &[&str])]) {
    let node = &layout.node;
    let before = Snapshot::take(node);
    let mut wrong = Vec::new();
    for (at, (call, code, words)) in cases.iter().enumerate() {
        let mut found = complaints(node, call, *code, words);
        found.push(before.difference(&Snapshot::take(node)));
        found.retain(|text| !text.is_empty());
        wrong.extend(found.iter().map(|text| format!("case {at} {words:?}: {text}")));
    }
    assert!(wrong.is_empty(), "{} complaints:\n{}", wrong.len(), wrong.join("\n"));
}

/// The ADD of a second pod with these settings.
fn add(layout: &TwoNics, settings: &Value) -> Call {
    layout.node.call_of("ADD", settings, &layout.pods[0])
}

fn refuses_settings(start: Start, table: &[(Value, &'static [&'static str])]) {
    on_a_node(start, |layout| {
        let case =
            |(settings, words): &(Value, &'static [&str])| (add(layout, settings), 7, *words);
        assert_refused(layout, &table.iter().map(case).collect::<Vec<_>>());
    });
}

/// Not with an iptables backend: there the plugin first reports that masquerade steering by name is
/// impossible.
fn wrong_name_of_an_uplink() -> Option<(Value, &'static [&'static str])> {
    (!Backend::of_run().is_iptables()).then(|| {
        let settings = json!({"uplinks": NICS, "masquerade": {"via": "eth7"}});
        (settings, &["\"masquerade\"", "eth7", "uplinks are: eth0, eth1"][..])
    })
}

/// Settings with one wrong value each, and words that the error has to contain.
fn wrong_values() -> Vec<(Value, &'static [&'static str])> {
    vec![
        (json!({"uplinks": "eth0"}), &["\"uplinks\"", "\"eth0\"", "allowed: a list"]),
        (json!({"uplinks": []}), &["\"uplinks\"", "[]", "allowed"]),
        (json!({"uplinks": [5]}), &["\"uplinks\"", "5", "allowed"]),
        (json!({"uplinks": [""]}), &["\"uplinks\"", "\"\"", "allowed"]),
        (json!({"uplinks": ["!eth0"]}), &["\"uplinks\"", "!eth0", "at least one"]),
        (json!({"uplinks": ["name-of-16-bytes"]}), &["\"uplinks\"", "name-of-16-bytes"]),
        (json!({"uplinks": ["eth/0"]}), &["\"uplinks\"", "eth/0", "allowed"]),
        (json!({"uplinks": null}), &["\"uplinks\"", "null", "allowed"]),
        (json!({"uplinks": ["eth0", "wlan*"]}), &["\"uplinks\"", "wlan*", "there are: ", "eth1"]),
        (json!({"uplinks": ["eth*", "!eth*"]}), &["\"uplinks\"", "!eth*", "at least one uplink"]),
        (json!({"gateways": []}), &["\"gateways\"", "[]", "allowed"]),
        (json!({"gateways": {"eth1": "10.21.0.1"}}), &["\"gateways.eth1\"", "10.21.0.1", "list"]),
        (json!({"gateways": {"eth1": ["10.21.0"]}}), &["\"gateways.eth1\"", "10.21.0", "allowed"]),
        (json!({"gateways": {"eth1": [1]}}), &["\"gateways.eth1\"", "1", "allowed"]),
        (json!({"gateways": {"eth1": ["0.0.0.0"]}}), &["\"gateways.eth1\"", "0.0.0.0"]),
        (json!({"gateways": {"eth1": ["ff02::1"]}}), &["\"gateways.eth1\"", "ff02::1"]),
        (json!({"gateways": {"a/b": ["10.21.0.1"]}}), &["\"gateways.a/b\"", "uplink names"]),
        (json!({"gateways": {"eth1": "on-link"}}), &["\"gateways.eth1\"", "on-link", "onlink"]),
        (json!({"exclude": "10.0.0.0/8"}), &["\"exclude\"", "10.0.0.0/8", "list"]),
        (json!({"exclude": ["10.0.0.0/33"]}), &["\"exclude\"", "10.0.0.0/33", "prefixes"]),
        (json!({"host": "yes"}), &["\"host\"", "\"yes\"", "true, false"]),
        (json!({"host": 1}), &["\"host\"", "1", "true, false"]),
        (json!({"hairpin": null}), &["\"hairpin\"", "null", "true, false"]),
        (json!({"hairpin": "false"}), &["\"hairpin\"", "\"false\"", "true, false"]),
        (json!({"masquerade": true}), &["\"masquerade\"", "true", "\"auto\", \"off\""]),
        (json!({"masquerade": "on"}), &["\"masquerade\"", "\"on\"", "\"auto\", \"off\""]),
        (json!({"masquerade": {"mark": "0x4000/0"}}), &["\"masquerade\"", "0x4000/0", "allowed"]),
        (json!({"masquerade": {"mark": "0x3/0x1"}}), &["\"masquerade\"", "0x3/0x1", "allowed"]),
        (json!({"masquerade": {"mark": 16384}}), &["\"masquerade\"", "16384", "allowed"]),
        (json!({"masquerade": {"via": 1}}), &["\"masquerade\"", "\"via\":1", "allowed"]),
        (json!({"masquerade": {"by": "eth0"}}), &["\"masquerade\"", "\"by\"", "allowed"]),
        (json!({"backend": "ipfw"}), &["\"backend\"", "\"ipfw\"", "\"nftables\""]),
        (json!({"backend": 1}), &["\"backend\"", "1", "\"nftables\""]),
        (json!({"markMask": 7936}), &["\"markMask\"", "7936", "as text"]),
        (json!({"markMask": "0x100"}), &["\"markMask\"", "\"0x100\"", "at least 2 bits"]),
        (json!({"markMask": "0"}), &["\"markMask\"", "\"0\"", "at least 2 bits"]),
        (json!({"markMask": "-1"}), &["\"markMask\"", "\"-1\"", "allowed"]),
        (json!({"markMask": "0x1ffffffff"}), &["\"markMask\"", "\"0x1ffffffff\"", "allowed"]),
        (json!({"markMask": "bits"}), &["\"markMask\"", "\"bits\"", "allowed"]),
        (
            json!({"uplinks": NICS, "markMask": "0x3"}),
            &["\"uplinks\"", "eth0", "eth1", "0x3", "ids for 1", "a wider markMask"],
        ),
        (json!({"rulePriority": "400"}), &["\"rulePriority\"", "\"400\"", "from 1 to 32762"]),
        (json!({"rulePriority": 0}), &["\"rulePriority\"", "0", "from 1 to 32762"]),
        (json!({"rulePriority": 32763}), &["\"rulePriority\"", "32763", "from 1 to 32762"]),
        (json!({"rulePriority": 400.5}), &["\"rulePriority\"", "400.5", "from 1 to 32762"]),
        (json!({"rulePriority": -1}), &["\"rulePriority\"", "-1", "from 1 to 32762"]),
        (json!({"offload": 1}), &["\"offload\"", "1", "allowed: true, false"]),
        (json!({"tableBase": "47000"}), &["\"tableBase\"", "\"47000\"", "a number from"]),
        (json!({"tableBase": 254}), &["\"tableBase\"", "254", "a number from 255"]),
        (json!({"tableBase": 4_294_967_295_u32}), &["\"tableBase\"", "4294967295", "a number"]),
        (json!({"tableBase": 1e20}), &["\"tableBase\"", "1e+20", "a number from"]),
        (json!({"scope": "node"}), &["\"scope\"", "\"node\"", "\"host\", \"pod\""]),
        (
            json!({"scope": ["host", "node"]}),
            &["\"scope\"", "[\"host\",\"node\"]", "\"host\", \"pod\""],
        ),
        (json!({"log": "debug"}), &["\"log\"", "\"debug\"", "an object like"]),
        (json!({"log": {"level": "loud"}}), &["\"log.level\"", "\"loud\"", "\"warn\""]),
        (json!({"log": {"level": 3}}), &["\"log.level\"", "3", "\"warn\""]),
        (json!({"log": {"file": "here.log"}}), &["\"log.file\"", "\"here.log\"", "absolute"]),
        (json!({"log": {"file": null}}), &["\"log.file\"", "null", "absolute"]),
    ]
}

#[test]
fn a_wrong_value_on_an_empty_node() {
    let mut table = wrong_values();
    table.extend(wrong_name_of_an_uplink());
    refuses_settings(Start::Empty, &table);
}

#[test]
fn a_wrong_value_on_a_node_in_use() {
    let mut table = wrong_values();
    table.extend(wrong_name_of_an_uplink());
    refuses_settings(Start::InUse, &table);
}

/// Two networks that disagree: the error names both and the key, and the settings of the first stay
/// in force.
#[test]
fn networks_that_disagree() {
    let keys = [
        ("uplinks", json!(["eth*"])),
        ("gateways", json!({"eth1": ["10.21.0.1"]})),
        ("host", json!(false)),
        ("hairpin", json!(true)),
        ("masquerade", json!("off")),
        ("backend", json!("nftables")),
        ("markMask", json!("0x3f00")),
        ("rulePriority", json!(300)),
        ("tableBase", json!(48000)),
        ("offload", json!(true)),
    ];
    on_a_node(Start::InUse, |layout| {
        for (key, value) in keys {
            let mut settings = json!({"uplinks": NICS, "name": "other"});
            settings[key] = value.clone();
            let (key, value) = (format!("\"{key}\""), value.to_string());
            let words = ["\"other\"", "\"lab\"", "in force", &key, &value, "the same value"];
            assert_refused(layout, &[(add(layout, &settings), 7, &words)]);
        }
        // The same values in another spelling: the plugin serves the second network as well.
        let settings = json!({"uplinks": NICS, "name": "other", "markMask": "7936", "host": true});
        layout.node.add(&settings, &layout.pods[0]);
        layout.node.del(&settings, &layout.pods[0]);
    });
}

/// A network without a pod counts as long as a conflist names it.
#[test]
fn a_network_that_disagrees_with_up() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    let mut entry = valid_settings();
    entry["type"] = json!("symroute");
    entry["log"] = json!({"level": "debug", "file": node.log()});
    Backend::of_run().into_settings(&mut entry);
    let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "ptp"}, entry]});
    let file = node.dir.join("10-lab.conflist");
    fs::write(&file, list.to_string()).expect("write the conflist");
    node.symroute(&["up", "--config", file.to_str().expect("UTF-8")]).assert_success("up");
    let settings = json!({"uplinks": NICS, "name": "other", "hairpin": true});
    let words: &[&str] = &["\"other\"", "\"lab\"", "\"hairpin\"", "true", "false"];
    assert_refused(&layout, &[(add(&layout, &settings), 7, words)]);
    assert_all_work(&[layout.flow_to_host()]);
    // The conflist of another network takes its place.
    fs::remove_file(&file).expect("remove the conflist");
    node.add(&settings, &layout.pods[0]);
    assert_all_work(&[layout.flow_to_host()]);
    node.down();
    node.del(&settings, &layout.pods[0]);
    before.assert_unchanged(&Snapshot::take(node));
}

#[test]
fn unknown_keys_are_ignored() {
    on_a_node(Start::InUse, |layout| {
        let settings = json!({
            "uplinks": NICS, "Uplinks": 5, "uplink": [], "args": {"cni": {}}, "runtimeConfig": null,
            "log": {"level": "debug", "file": layout.node.log(), "colour": true},
            "capabilities": {"ips": true}, "ipMasq": "what", "dns": {}, "plugins": 7,
        });
        layout.node.add(&settings, &layout.pods[0]);
        let status = layout.node.symroute(&["status"]);
        assert!(status.success, "{}{}", status.stdout, status.stderr);
        assert_eq!(layout.node.attachments().len(), 2);
        layout.node.del(&settings, &layout.pods[0]);
    });
}
