//! An entry with scope "pod" makes nothing on the node: symroute neither asks nor changes the node.

use std::fs;

use serde_json::{Value, json};

use super::Scene;
use crate::lab::agent::{Agent, until};
use crate::lab::backend::Backend;
use crate::lab::flows::{assert_all_work, assert_only_these_fail};
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::NICS;

const HOST: &str = "host on eth1";

impl Scene {
    /// Changes the list as its owner does, with an entry of these settings.
    fn rewrite(&self, mut settings: Value) {
        Backend::of_run().into_settings(&mut settings);
        settings["type"] = json!("symroute");
        let list =
            json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "ptp"}, settings]});
        let beside = self.conflist.with_extension("new");
        fs::write(&beside, list.to_string()).expect("write the new list");
        fs::rename(&beside, &self.conflist).expect("replace the list");
    }

    fn assert_broken(&self) {
        assert_only_these_fail(&[self.layout.flow_to_host()], &[HOST]);
    }

    fn agent_of_folder(&self) -> Agent<'_> {
        Agent::ready(
            self.node(),
            &self.places()[..2].iter().map(String::as_str).collect::<Vec<_>>(),
        )
    }
}

/// The settings would not work on this node, which has no default route. symroute refuses them with
/// both scopes.
#[test]
fn an_entry_for_pods_alone_does_not_ask_the_node() {
    let scene = Scene::new();
    let (_, there, gone, why) = &super::refusals()[3];
    scene.node().ns.ip(there);
    for more in [&["--dry-run"][..], &["--no-up"], &["--mode", "own-file"], &[]] {
        scene.want(json!({"scope": ["host", "pod"]}));
        let ran = scene.add(more);
        let said = ran.stdout + &ran.stderr;
        assert!(ran.code == Some(1) && said.contains(why), "{more:?}: {said}");
        let before = Snapshot::take(scene.node());
        scene.want(json!({"scope": "pod"}));
        scene.add(more).assert_success("add of an entry for pods");
        assert_eq!(
            scene.conflist("check", &[]).code,
            Some(if more == ["--dry-run"] { 3 } else { 0 })
        );
        before.assert_unchanged(&Snapshot::take(scene.node()));
        assert!(!scene.is_in_force());
        scene.conflist("remove", &[]).assert_success("remove");
    }
    scene.node().ns.ip(gone);
    scene.assert_broken();
    scene.want(json!({"uplinks": NICS, "scope": ["host", "pod"]}));
    scene.add(&[]).assert_success("add of an entry for both");
    assert!(scene.has_us() && scene.is_in_force());
    assert_all_work(&[scene.layout.flow_to_host()]);
    scene.undo();
}

/// symroute refuses by name what an operator names.
#[test]
fn up_refuses_settings_for_pods_alone() {
    let scene = Scene::new();
    scene.want(json!({"scope": "pod"}));
    scene.rewrite(json!({"scope": "pod"}));
    let before = Snapshot::take(scene.node());
    for file in [&scene.entry, &scene.conflist] {
        let file = file.to_str().expect("UTF-8");
        let ran = scene.node().symroute(&["up", "--config", file]);
        assert_eq!(ran.code, Some(1), "{}", ran.stdout);
        let names_it = ran.stderr.contains(file) && ran.stderr.contains("\"scope\": \"pod\"");
        assert!(names_it, "{}", ran.stderr);
        before.assert_unchanged(&Snapshot::take(scene.node()));
    }
}

/// A boot or an installation succeeds. Settings in force in the name of this list's network end.
/// Settings that the operator brought into force by other means stay.
#[test]
fn up_gives_up_a_node_whose_list_serves_pods_alone() {
    let scene = Scene::new();
    let before = Snapshot::take(scene.node());
    let places = scene.places();
    let boot = || scene.node().symroute(&["up", &places[0], &places[1]]);
    scene.rewrite(json!({"scope": "pod"}));
    let ran = boot();
    ran.assert_success("up");
    assert!(ran.stdout.contains("serves only pods"), "{}", ran.stdout);
    before.assert_unchanged(&Snapshot::take(scene.node()));
    scene.assert_broken();

    scene.rewrite(json!({"uplinks": NICS, "scope": ["host", "pod"]}));
    boot().assert_success("up with both scopes");
    assert_all_work(&[scene.layout.flow_to_host()]);
    scene.rewrite(json!({"scope": "pod"}));
    boot().assert_success("up");
    before.assert_unchanged(&Snapshot::take(scene.node()));
}

/// The agent is ready where it has nothing to do, and follows the list from one scope to the other.
#[test]
fn the_agent_gives_a_node_up_that_serves_pods_alone() {
    let scene = Scene::new();
    scene.rewrite(json!({"scope": "pod"}));
    let before = Snapshot::take(scene.node());
    let (agent, places) = (scene.agent_of_folder(), scene.places());
    for settings in [json!({"uplinks": NICS}), json!({"uplinks": NICS, "scope": ["pod", "host"]})] {
        assert!(!scene.is_in_force());
        before.assert_unchanged_but_files(&Snapshot::take(scene.node()));
        scene.assert_broken();
        scene.rewrite(settings);
        until("the node is in force", || scene.is_in_force());
        // As at a boot: in the name of the same network.
        scene.node().symroute(&["up", &places[0], &places[1]]).assert_success("up");
        assert_all_work(&[scene.layout.flow_to_host()]);
        until("the agent shows the uplinks", || agent.get("/metrics").1.contains("uplink_info{"));
        scene.rewrite(json!({"scope": "pod"}));
        until("the agent gives the node up", || !scene.is_in_force());
        until("the agent shows no uplink", || !agent.get("/metrics").1.contains("uplink_info{"));
        assert_eq!(agent.get("/readyz"), (200, "ready\n".into()));
    }
    before.assert_unchanged_but_files(&Snapshot::take(scene.node()));

    assert_eq!(
        agent.metric("symroute_repairs_total{cause=\"conflist\"}"),
        0,
        "a change is no repair"
    );

    // The list does not concern the operator's own settings.
    scene.node().up(&json!({"name": "other", "uplinks": NICS}));
    scene.rewrite(json!({"uplinks": NICS[..1], "scope": "pod"}));
    scene.node().ns.ip("rule add pref 5000 from 192.0.2.1 lookup main");
    let turns = agent.metric("symroute_looks_total");
    until("the agent looks", || agent.metric("symroute_looks_total") > turns);
    assert_all_work(&[scene.layout.flow_to_host()]);
    scene.node().ns.ip("rule del pref 5000");
    drop(agent);
    scene.undo();
    before.assert_unchanged_but_files(&Snapshot::take(scene.node()));
}

/// An agent that keeps the entry in the list, as a `DaemonSet` does. The node's own settings would not work.
#[test]
fn the_agent_keeps_an_entry_for_pods_alone() {
    let scene = Scene::new();
    scene.node().ns.ip(super::refusals()[3].1);
    let before = Snapshot::take(scene.node());
    scene.want(json!({"scope": "pod"}));
    let agent = scene.agent();
    until("the entry is in", || scene.has_us());
    until("the agent is ready", || agent.get("/readyz").0 == 200);
    fs::write(&scene.conflist, super::PRIMARY).expect("write the primary's list anew");
    until("the entry is back", || scene.has_us());
    until("the agent is ready again", || agent.get("/readyz").0 == 200);
    assert!(!scene.is_in_force());
    before.assert_unchanged_but_files(&Snapshot::take(scene.node()));
    drop(agent);
    scene.undo();
}

/// Pods that were attached on the node keep its state, until the last of them ends.
#[test]
fn attached_pods_keep_a_node_that_the_agent_has_given_up() {
    let mut scene = Scene::new();
    let pod = scene.layout.pod_behind_eth1(1);
    let before = Snapshot::take(scene.node());
    let settings = json!({ "uplinks": NICS });
    scene.rewrite(settings.clone());
    let agent = scene.agent_of_folder();
    scene.node().add(&settings, &pod);
    scene.rewrite(json!({"scope": "pod"}));
    let hold = scene.node().dir.join("run/hold/agent");
    until("the agent gives the node up", || !hold.exists());
    assert!(scene.is_in_force());
    assert_all_work(&[scene.layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    // The agent restores what another program removes, as long as the pod needs it.
    let rules = || scene.node().ns.exec(&["ip", "rule"], "");
    scene.node().ns.ip("rule del pref 402 lookup 47002");
    until("the rule is back", || rules().contains("lookup 47002"));
    assert_all_work(&[scene.layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    scene.node().del(&settings, &pod);
    assert!(!scene.is_in_force());
    assert_eq!(agent.get("/readyz").0, 200);
    drop(agent);
    before.assert_unchanged_but_files(&Snapshot::take(scene.node()));
}
