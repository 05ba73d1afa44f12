//! The real `portmap` and `bandwidth` of the CNI project in one chain with symroute, before it and behind it.

use serde_json::{Value, json};

use super::beside::{Scene, both_nics};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::plugin::Call;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::NODE;

const HOST_PORT: u16 = 30443;

/// A plugin of the chain, and what the runtime hands over to it.
struct Plugin {
    kind: &'static str,
    runtime: fn() -> Value,
}

const PORTMAP: Plugin = Plugin {
    kind: "portmap",
    runtime: || json!({"portMappings": [{"hostPort": HOST_PORT, "containerPort": 8080, "protocol": "tcp"}]}),
};
const BANDWIDTH: Plugin = Plugin {
    kind: "bandwidth",
    runtime: || {
        let (rate, burst) = (8_000_000, 8_000_000);
        json!({"bandwidth": {
            "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst
        }})
    },
};

impl Plugin {
    /// Calls the plugin for the attached pod with this prevResult. Returns its result.
    fn call(&self, scene: &Scene, verb: &str, prev_result: &str) -> String {
        let (node, pod) = (&scene.layout.node, &scene.attached);
        let prev: Value = serde_json::from_str(prev_result).expect("a result");
        let network = json!({
            "cniVersion": "1.0.0", "name": "lab", "type": self.kind, "runtimeConfig": (self.runtime)(), "prevResult": prev
        });
        let call = Call::cni(verb, &network.to_string(), &pod.id, &pod.ns.path(), "eth0");
        let ran = node.call_program(&[&format!("/usr/lib/cni/{}", self.kind)], &call);
        ran.assert_success(&format!("{verb} of {}", self.kind));
        ran.stdout
    }
}

/// One call of symroute for that pod with this prevResult.
fn symroute(scene: &Scene, verb: &str, prev_result: &str) -> String {
    let (node, pod) = (&scene.layout.node, &scene.attached);
    let network = node.network(&both_nics(), Some(prev_result));
    let ran = node.cni(verb, &network, &pod.id, &pod.ns.path(), "eth0");
    ran.assert_success(verb);
    ran.stdout
}

/// The client asks the pod and its host port by each NIC. Requests by eth1 need symroute.
fn flows(scene: &Scene, has_host_port: bool) -> (Vec<Flow<'_>>, Vec<&'static str>) {
    let mut flows = vec![scene.layout.flow_to_pod(1, "pod101 203.0.113.9")];
    let mut by_eth1 = vec!["pod 10.21.0.101:8080"];
    if has_host_port {
        for (address, name) in NODE.iter().zip(["host port by eth0", "host port by eth1"]) {
            let to = format!("{address}:{HOST_PORT}");
            let client = &scene.layout.client;
            flows.push(Flow::new(name, client, Proto::Tcp, &to, "pod101 203.0.113.9"));
        }
        by_eth1.push("host port by eth1");
    }
    (flows, by_eth1)
}

/// The plugin comes before symroute in the chain.
fn before_symroute(plugin: &Plugin) {
    let scene = Scene::new();
    let node = &scene.layout.node;
    let result = plugin.call(&scene, "ADD", &scene.attached.prev_result);
    let (own, by_eth1) = flows(&scene, plugin.kind == "portmap");
    assert_only_these_fail(&own, &by_eth1);
    node.ns.exec(&["conntrack", "-F"], "");
    let before = Snapshot::take(node);
    let ours = symroute(&scene, "ADD", &result);
    assert_eq!(ours.trim_end(), result.trim_end(), "the result goes on as it came");
    assert_all_work(&own);
    symroute(&scene, "CHECK", &ours);
    symroute(&scene, "DEL", &ours);
    before.assert_unchanged(&Snapshot::take(node));
    assert_only_these_fail(&own, &by_eth1);
    plugin.call(&scene, "DEL", &ours);
    println!("neighbour {} before symroute: shown by packets", plugin.kind);
}

/// The plugin comes after symroute in the chain.
fn behind_symroute(plugin: &Plugin) {
    let scene = Scene::new();
    let node = &scene.layout.node;
    let primary = &scene.attached.prev_result;
    if plugin.kind == "portmap" {
        // portmap leaves its own chains behind. They are not symroute's.
        plugin.call(&scene, "ADD", primary);
        plugin.call(&scene, "DEL", primary);
    }
    let before = Snapshot::take(node);
    let result = symroute(&scene, "ADD", primary);
    let last = plugin.call(&scene, "ADD", &result);
    assert_all_work(&flows(&scene, plugin.kind == "portmap").0);
    symroute(&scene, "CHECK", &last);
    plugin.call(&scene, "DEL", &last);
    symroute(&scene, "DEL", &last);
    before.assert_unchanged(&Snapshot::take(node));
    println!("neighbour {} behind symroute: shown by packets", plugin.kind);
}

#[test]
fn portmap_before_symroute() {
    before_symroute(&PORTMAP);
}

#[test]
fn portmap_behind_symroute() {
    behind_symroute(&PORTMAP);
}

#[test]
fn bandwidth_before_symroute() {
    before_symroute(&BANDWIDTH);
}

#[test]
fn bandwidth_behind_symroute() {
    behind_symroute(&BANDWIDTH);
}
