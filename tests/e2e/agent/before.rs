//! Pods that were on the node before symroute. The agent serves them once it is ready, whatever the
//! runtime's cache says, and stores nothing about them.

use std::fs;

use serde_json::json;

use crate::agent::{answers, conflist};
use crate::lab::agent::Agent;
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::node::Pod;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

/// Writes the cache entry that libcni writes after an ADD by the primary alone.
fn remember(layout: &TwoNics, pod: &Pod) {
    let cache = layout.node.dir.join("cache");
    fs::create_dir(&cache).expect("make the cache");
    let result: serde_json::Value = serde_json::from_str(&pod.prev_result).expect("a result");
    let entry = json!({
        "kind": "cniCacheV1", "containerId": pod.id, "ifName": "eth0", "networkName": "lab",
        "config": "e30=", "result": result,
    });
    let file = cache.join(format!("lab-{}-eth0", pod.id));
    fs::write(file, entry.to_string()).expect("write the entry");
}

fn flows(layout: &TwoNics) -> [Flow<'_>; 2] {
    [("10.21.0.101", "pod101 203.0.113.9"), ("[2001:db8:21::101]", "pod101 2001:db8:9::9")].map(
        |(address, answer)| {
            let to = format!("{address}:8080");
            Flow::new(address, &layout.client, Proto::Tcp, &to, answer)
        },
    )
}

#[test]
fn pods_of_before_are_served_when_the_agent_is_ready() {
    for is_remembered in [true, false] {
        let mut layout = two_nics();
        let pod = layout.pod_behind_eth1(1);
        if is_remembered {
            remember(&layout, &pod);
        }
        let node = &layout.node;
        assert_only_these_fail(&flows(&layout), &["10.21.0.101", "[2001:db8:21::101]"]);
        let before = Snapshot::take(node);
        let conf_dir = node.dir.join("net.d");
        fs::create_dir(&conf_dir).expect("make the folder");
        let ours = conflist(node, Some(&json!({"uplinks": NICS})));
        fs::write(conf_dir.join("10-lab.conflist"), ours).expect("write the conflist");
        let agent = Agent::ready(node, &["--conf-dir", conf_dir.to_str().expect("UTF-8")]);
        // The time limit is too short for a retransmission.
        assert!(answers(&layout, "10.21.0.101", 8080), "the agent is ready, the pod not served");
        assert_all_work(&flows(&layout));
        assert_eq!(node.attachments(), [json!(null); 0], "no attachment is made up");
        assert_eq!(agent.metric("symroute_pods"), 0);
        drop(agent);
        // The pod has no attachment, because the conflist has named symroute only since then.
        node.del(&json!({"uplinks": NICS}), &pod);
        assert_all_work(&flows(&layout));
        node.symroute(&["down", "--force"]).assert_success("down --force");
        before.assert_unchanged(&Snapshot::take(node));
    }
}
