//! ADD and DEL twice, late, and with incomplete input.

use serde_json::json;

use super::{assert_silent, call, settings};
use crate::lab::flows::assert_all_work;
use crate::lab::netns::Netns;
use crate::lab::plugin::Call;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::two_nics;

#[test]
fn add_twice_converges() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let (node, settings) = (&layout.node, settings());
    let before = Snapshot::take(node);
    node.add(&settings, &pod);
    let once = Snapshot::take(node);
    node.add(&settings, &pod);
    once.assert_unchanged(&Snapshot::take(node));
    assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    node.del(&settings, &pod);
    before.assert_unchanged(&Snapshot::take(node));
}

#[test]
fn add_twice_with_other_addresses() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    let add = |id: &str, addresses: &[&str]| {
        node.call(&call(&layout, "ADD", id, addresses)).assert_success("ADD");
    };
    add("other", &["10.21.0.200"]);
    add("pod", &["10.21.0.201", "10.21.0.202"]);
    add("pod", &["10.21.0.202", "10.21.0.203"]);
    for (last, is_attached) in [(200, true), (201, false), (202, true), (203, true)] {
        let address = format!("10.21.0.{last}");
        assert_eq!(node.is_attached(&address), is_attached, "{address} is enrolled");
    }
    // Another pod has got the old address meanwhile.
    add("other", &["10.21.0.200", "10.21.0.202"]);
    add("pod", &["10.21.0.203"]);
    assert!(node.is_attached("10.21.0.202"), "it is the other pod's now");
    assert_silent(node, &call(&layout, "DEL", "pod", &[]), "DEL");
    assert!(node.is_attached("10.21.0.202") && !node.is_attached("10.21.0.203"));
    assert_silent(node, &call(&layout, "DEL", "other", &[]), "DEL");
    before.assert_unchanged(&Snapshot::take(node));
}

/// A failing second ADD leaves the attachment as the first one made it.
#[test]
fn add_twice_of_which_the_second_fails() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    node.call(&call(&layout, "ADD", "pod", &["10.21.0.200"])).assert_success("ADD");
    let once = Snapshot::take(node);
    let other = json!({"uplinks": ["nic7"]});
    let result = "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.21.0.201/32\"}]}";
    let network = node.network(&other, Some(result));
    let netns = layout.pods[0].ns.path();
    let ran = node.cni("ADD", &network, "pod", &netns, "eth0");
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    once.assert_unchanged(&Snapshot::take(node));
    assert_silent(node, &call(&layout, "DEL", "pod", &[]), "DEL");
    before.assert_unchanged(&Snapshot::take(node));
}

/// The only network of the node changes one setting after the other while its pod runs.
#[test]
fn add_twice_with_other_settings() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let before = Snapshot::take(node);
    node.add(&settings(), &pod);
    let mut wrong = Vec::new();
    for (key, value) in [
        ("gateways", json!({"eth1": ["10.21.0.1"]})),
        ("uplinks", json!(["eth*"])),
        ("hairpin", json!(true)),
        ("masquerade", json!("off")),
        ("backend", json!("nftables")),
        ("markMask", json!("0x700")),
        ("markMask", json!("0x1f0000")),
        ("rulePriority", json!(300)),
        ("tableBase", json!(48000)),
    ] {
        let mut other = settings();
        other[key] = value.clone();
        let add = node.call(&node.call_of("ADD", &other, &pod));
        if add.success {
            assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
            let status = node.symroute(&["status"]);
            assert_eq!(status.code, Some(0), "{key} {value}:\n{}", status.stdout);
        } else {
            wrong.push(format!("{key} {value}: {}", add.stdout));
        }
        node.add(&settings(), &pod);
    }
    node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(node));
    assert!(wrong.is_empty(), "settings that can't be changed:\n{}", wrong.join("\n"));
}

#[test]
fn del_with_little_to_go_by() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    let gone = Netns::new("gone").path();
    let bare = node.network(&settings(), None);
    let garbage = format!("{},\"prevResult\":[7]}}", bare.strip_suffix('}').expect("an object"));
    let wrong =
        json!({"cniVersion": "1.0.0", "name": "lab", "uplinks": 5, "markMask": [], "log": 1});
    let scope = json!({"cniVersion": "1.0.0", "name": "lab", "scope": "pod"});
    let networks = [bare, garbage, wrong.to_string(), scope.to_string()];
    for network in &networks {
        for netns in ["", "/", &gone, &node.ns.path()] {
            let del = Call::cni("DEL", network, "pod", netns, "eth0");
            assert_silent(node, &del, "DEL of an attachment that never was");
            before.assert_unchanged(&Snapshot::take(node));
            node.call(&call(&layout, "ADD", "pod", &["10.21.0.200"])).assert_success("ADD");
            for other in [
                Call::cni("DEL", network, "other", netns, "eth0"),
                Call::cni("DEL", network, "pod", netns, "eth1"),
                Call::cni("DEL", &network.replace("lab", "bal"), "pod", netns, "eth0"),
            ] {
                assert_silent(node, &other, "DEL of another attachment");
                assert!(node.is_attached("10.21.0.200"), "the pod is not meant");
            }
            assert_silent(node, &del, "DEL");
            before.assert_unchanged(&Snapshot::take(node));
            assert_silent(node, &del, "DEL again");
            before.assert_unchanged(&Snapshot::take(node));
        }
    }
}

/// The runtime's second DEL comes when another pod has the address already.
#[test]
fn a_late_del() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let before = Snapshot::take(node);
    let addresses = ["10.21.0.101", "10.21.0.210"];
    node.call(&call(&layout, "ADD", "old", &addresses)).assert_success("ADD of the old pod");
    node.add(&settings(), &pod);
    let flows = || [layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")];
    for _ in 0..2 {
        assert_silent(node, &call(&layout, "DEL", "old", &addresses), "a late DEL");
        assert!(node.is_attached("10.21.0.101") && !node.is_attached("10.21.0.210"));
        assert_all_work(&flows());
    }
    let status = node.symroute(&["status"]);
    assert_eq!(status.code, Some(0), "{}", status.stdout);
    node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(node));
}

/// A container id of any length fits the name of a file.
#[test]
fn long_container_ids() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    let ids = ["a", "b"].map(|last| format!("{}{last}", "i".repeat(999)));
    for (id, address) in ids.iter().zip(["10.21.0.200", "10.21.0.201"]) {
        node.call(&call(&layout, "ADD", id, &[address])).assert_success("ADD");
    }
    assert_silent(node, &call(&layout, "DEL", &ids[0], &[]), "DEL");
    assert!(!node.is_attached("10.21.0.200") && node.is_attached("10.21.0.201"));
    assert_silent(node, &call(&layout, "DEL", &ids[1], &[]), "DEL");
    before.assert_unchanged(&Snapshot::take(node));
}

/// `up` holds the node state beyond the last pod, until `down`.
#[test]
fn up_holds_until_down() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let before = Snapshot::take(node);
    node.up(&settings());
    let held = Snapshot::take(node);
    for _ in 0..2 {
        node.add(&settings(), &pod);
        node.up(&settings());
        assert_all_work(&[layout.flow_to_pod(1, "pod101 203.0.113.9")]);
        node.del(&settings(), &pod);
        held.assert_unchanged(&Snapshot::take(node));
        assert_all_work(&[layout.flow_to_host()]);
    }
    // While a pod is attached, `down` leaves the removal to its DEL.
    node.add(&settings(), &pod);
    node.down();
    assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(node));
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
    // Without a configuration, `up` holds the settings in force.
    node.add(&settings(), &pod);
    node.symroute(&["up"]).assert_success("up");
    node.del(&settings(), &pod);
    assert_all_work(&[layout.flow_to_host()]);
    assert_eq!(node.attachments().len(), 0);
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}
