//! Settings come into force before a conflist names them. Settings that can't work on the node change
//! neither the conflist, nor the node, nor the pods, whichever command brings them.

mod for_pods;

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::lab::agent::{Agent, until};
use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Node;
use crate::lab::plugin::{Call, Ran};
use crate::lab::snapshot::Snapshot;
use crate::lab::strace::Blow;
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

const PRIMARY: &str = r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "ptp"}]}"#;

/// A node of two NICs with a primary's conflist.
struct Scene {
    layout: TwoNics,
    conflist: PathBuf,
    entry: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let layout = two_nics();
        let folder = layout.node.dir.join("net.d");
        fs::create_dir(&folder).expect("make the folder");
        let (conflist, entry) =
            (folder.join("10-lab.conflist"), layout.node.dir.join("entry.json"));
        fs::write(&conflist, PRIMARY).expect("write the primary's conflist");
        Self { layout, conflist, entry }
    }

    fn node(&self) -> &Node {
        &self.layout.node
    }

    /// Sets the entry that the conflist is to have.
    fn want(&self, mut settings: Value) {
        Backend::of_run().into_settings(&mut settings);
        settings["type"] = json!("symroute");
        fs::write(&self.entry, settings.to_string()).expect("write the entry");
    }

    /// The arguments that name the folders of this scene.
    fn places(&self) -> [String; 4] {
        let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        let folder = self.conflist.parent().expect("a folder").to_path_buf();
        [
            "--conf-dir".into(),
            text(folder),
            "--state-dir".into(),
            text(self.node().dir.join("lasting")),
        ]
    }

    fn words(&self, verb: &str, more: &[&str]) -> Vec<String> {
        let words = ["conflist", verb].into_iter().chain(more.iter().copied());
        words.map(String::from).chain(self.places()).collect()
    }

    fn conflist(&self, verb: &str, more: &[&str]) -> Ran {
        let words = self.words(verb, more);
        self.node().symroute(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn add(&self, more: &[&str]) -> Ran {
        let entry = self.entry.to_str().expect("UTF-8");
        self.conflist("add", &[&["--config", entry], more].concat())
    }

    fn agent(&self) -> Agent<'_> {
        let entry = self.entry.to_str().expect("UTF-8").to_owned();
        let words: Vec<String> =
            ["--entry".into(), entry].into_iter().chain(self.places()).collect();
        Agent::start(self.node(), &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.conflist).expect("read the conflist")
    }

    fn has_us(&self) -> bool {
        self.text().contains("symroute")
    }

    fn is_in_force(&self) -> bool {
        self.node().symroute(&["status"]).code == Some(0)
    }

    fn undo(&self) {
        self.node().symroute(&["down", "--force"]).assert_success("down");
        self.conflist("remove", &[]).assert_success("conflist remove");
        let _ = fs::remove_dir_all(self.node().dir.join("lasting"));
    }
}

/// Settings that can't work on the node, how to cause and remove the reason, and words of the error.
pub(crate) fn refusals() -> [(Value, &'static str, &'static str, &'static str); 4] {
    [
        (json!({"uplinks": ["wan*"]}), "", "", "no interface matches"),
        (
            json!({ "uplinks": NICS }),
            "rule add pref 401 from 192.0.2.1 lookup main",
            "rule del pref 401",
            "another program has a rule at 401",
        ),
        (
            json!({ "uplinks": NICS }),
            "rule add pref 9 fwmark 0x200/0xf00 lookup 2004",
            "rule del pref 9",
            "Cilium's",
        ),
        // A container's NICs are veths, and main has no default route.
        (
            json!({}),
            "route del default via 10.20.0.1 dev eth0\nroute del default via fe80::1 dev eth0",
            "route add default via 10.20.0.1 dev eth0\nroute add default via fe80::1 dev eth0",
            "no interface leads outside",
        ),
    ]
}

#[test]
fn what_cannot_work_comes_into_no_conflist() {
    let scene = Scene::new();
    let ns = &scene.node().ns;
    for (settings, there, gone, why) in refusals() {
        scene.want(settings);
        ns.ip(there);
        let before = Snapshot::take(scene.node());
        for more in [&[][..], &["--dry-run"], &["--no-up"], &["--mode", "own-file"]] {
            let ran = scene.add(more);
            assert_eq!(ran.code, Some(1), "{more:?}: {}", ran.stdout);
            let said = ran.stdout + &ran.stderr;
            assert!(said.contains(why) && said.contains("left as it is"), "{more:?}: {said}");
        }
        let agent = scene.agent();
        until("the agent says why", || agent.get("/readyz").1.contains(why));
        assert_eq!(agent.get("/readyz").0, 503);
        drop(agent);
        assert_eq!(scene.text(), PRIMARY);
        assert_eq!(
            fs::read_dir(scene.conflist.parent().expect("a folder")).expect("read").count(),
            1
        );
        scene.node().symroute(&["down", "--force"]);
        before.assert_unchanged(&Snapshot::take(scene.node()));
        ns.ip(gone);
    }
    scene.undo();
}

/// Valid settings come into force first, and then into the conflist.
#[test]
fn what_works_is_in_force_when_the_entry_comes() {
    let scene = Scene::new();
    let before = Snapshot::take(scene.node());
    scene.want(json!({ "uplinks": NICS }));
    scene.add(&["--dry-run"]).assert_success("a dry run");
    assert!(!scene.has_us() && !scene.is_in_force());
    scene.add(&["--no-up"]).assert_success("add --no-up");
    assert!(scene.has_us() && !scene.is_in_force());
    scene.conflist("remove", &[]).assert_success("remove");
    scene.add(&[]).assert_success("add");
    assert!(scene.has_us() && scene.is_in_force());
    assert_all_work(&[scene.layout.flow_to_host()]);
    scene.undo();
    before.assert_unchanged(&Snapshot::take(scene.node()));
}

/// When the cause is gone, the agent continues by itself.
#[test]
fn the_agent_waits_until_it_can_work() {
    let scene = Scene::new();
    let (settings, there, gone, why) = &refusals()[1];
    scene.want(settings.clone());
    scene.node().ns.ip(there);
    let agent = scene.agent();
    until("the agent says why", || agent.get("/readyz").1.contains(why));
    scene.node().ns.ip(gone);
    until("the entry is in", || scene.has_us());
    until("the agent is ready", || agent.get("/readyz").0 == 200);
    assert_all_work(&[scene.layout.flow_to_host()]);
    drop(agent);
    scene.undo();
}

/// Other settings that can't work leave the old ones in force: a changed `ConfigMap`, or another `add`.
#[test]
fn what_cannot_follow_leaves_what_is_in_force() {
    let scene = Scene::new();
    scene.want(json!({ "uplinks": NICS }));
    scene.add(&[]).assert_success("add");
    let (old, state) = (scene.text(), Snapshot::take(scene.node()));
    for (settings, why) in [
        (json!({"uplinks": ["wan*"]}), "no interface matches"),
        (json!({"uplinks": NICS, "markMask": "0x3"}), "a wider markMask"),
    ] {
        scene.want(settings);
        let ran = scene.add(&[]);
        let said = ran.stdout + &ran.stderr;
        assert!(ran.code == Some(1) && said.contains(why), "{said}");
        let agent = scene.agent();
        until("the agent says why", || agent.get("/readyz").1.contains(why));
        drop(agent);
        assert_eq!(scene.text(), old);
        assert_all_work(&[scene.layout.flow_to_host()]);
    }
    for left in ["agent", "hold/agent"] {
        let _ = fs::remove_file(scene.node().dir.join("run").join(left));
    }
    state.assert_unchanged(&Snapshot::take(scene.node()));
    scene.undo();
}

/// After a kill at any change: if a conflist names symroute, its settings are in force.
#[test]
fn a_kill_leaves_no_entry_without_its_node_state() {
    let scene = Scene::new();
    let before = Snapshot::take(scene.node());
    for settings in [json!({ "uplinks": NICS }), json!({"uplinks": ["wan*"]})] {
        scene.want(settings);
        let entry = scene.entry.to_str().expect("UTF-8");
        let words = scene.words("add", &["--config", entry]);
        let call = || Call::tool(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let (_, calls) = scene.node().traced(&call());
        scene.undo();
        let changes: Vec<_> = calls.iter().filter(|c| c.is_change() && !c.of_tool).collect();
        for change in &changes {
            scene.node().struck(&call(), change, Blow::Kill);
            assert!(!scene.has_us() || scene.is_in_force(), "killed at {}", change.line);
            scene.undo();
            assert_eq!(scene.text(), PRIMARY, "killed at {}", change.line);
            before.assert_unchanged(&Snapshot::take(scene.node()));
        }
        println!("killed at {} changes", changes.len());
    }
}

/// In a container the reason is in the container's log.
#[test]
fn the_agents_log_says_why_on_stderr() {
    let scene = Scene::new();
    let (settings, there, gone, why) = &refusals()[1];
    scene.want(settings.clone());
    scene.node().ns.ip(there);
    let log = scene.node().dir.join("stderr");
    let entry = scene.entry.to_str().expect("UTF-8").to_owned();
    let words: Vec<String> = ["--log-to-stderr".into(), "--entry".into(), entry]
        .into_iter()
        .chain(scene.places())
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = scene.node().agents_command(&[], &words);
    let mut child = command
        .stderr(fs::File::create(&log).expect("make a file"))
        .spawn()
        .expect("start the agent");
    until("the log says why", || fs::read_to_string(&log).is_ok_and(|text| text.contains(why)));
    child.kill().expect("end the agent");
    child.wait().expect("wait for the agent");
    scene.node().ns.ip(gone);
    scene.undo();
}
