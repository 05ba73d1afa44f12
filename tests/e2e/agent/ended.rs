//! Pods that ended without a DEL, because the conflist did not name symroute at that moment. Their
//! attachments would hold the node state for ever.

use std::fs;

use serde_json::json;

use crate::agent::plugin_object;
use crate::lab::agent::{Agent, until};
use crate::lab::flows::assert_all_work;
use crate::lab::node::{Node, Pod};
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, two_nics};

/// Writes the runtime's cache file for the pod. Only the file name matters.
fn remember(node: &Node, pod: &Pod) {
    let cache = node.dir.join("cache");
    fs::create_dir_all(&cache).expect("make the cache");
    fs::write(cache.join(format!("lab-{}-eth0", pod.id)), "{}").expect("write an entry");
}

#[test]
fn attachments_of_pods_that_ended_go() {
    let mut layout = two_nics();
    let lives = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let before = Snapshot::take(node);
    let ending = ["ended", "known"].map(|name| node.pod(name, &[]));
    let settings = json!({"uplinks": NICS});
    for pod in ending.iter().chain([&lives]) {
        node.add(&settings, pod);
    }
    remember(node, &ending[1]);
    let [ended, is_known] = ending.map(|pod| pod.id);
    // Both network namespaces are gone by now. The runtime still owes a DEL to the pod in its
    // cache.
    let ids = || -> Vec<String> {
        let all = node.attachments();
        let id = |pod: &serde_json::Value| pod["container"].as_str().map(str::to_owned);
        all.iter().filter_map(id).collect()
    };
    assert!(ids().contains(&ended), "{:?}", ids());
    let config = plugin_object(node, &settings);
    let agent = Agent::ready(node, &["--config", &config, "--resync", "2s"]);
    until("what ended is forgotten", || !ids().contains(&ended));
    let looks = agent.metric("symroute_looks_total");
    until("two more looks", || agent.metric("symroute_looks_total") >= looks + 2);
    assert!(ids().contains(&is_known) && ids().contains(&lives.id), "{:?}", ids());
    assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    drop(agent);
    fs::remove_dir_all(node.dir.join("cache")).expect("remove the cache");
    let network = node.network(&settings, None);
    node.cni("DEL", &network, &is_known, "", "eth0").assert_success("the DEL that was to come");
    node.del(&settings, &lives);
    node.symroute(&["down", "--force"]).assert_success("down --force");
    before.assert_unchanged(&Snapshot::take(node));
}
