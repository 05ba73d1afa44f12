//! The agent is killed at each thing that it changes while it takes a node over: the node still
//! starts pods, and the next agent completes what was begun.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::adoption::entry as cached_as;
use crate::agent::conflist;
use crate::lab::agent::{Agent, until};
use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::strace::{Syscall, parse};
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

/// A node with a pod from before us, whose primary's conflist does not name us yet.
struct Scene {
    layout: TwoNics,
    before: Snapshot,
    file: PathBuf,
    found: String,
    arguments: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let layout = two_nics();
        let before = Snapshot::take(&layout.node);
        let dir = &layout.node.dir;
        let (folder, entry) = (dir.join("net.d"), dir.join("entry.json"));
        fs::create_dir(&folder).expect("make the folder");
        let file = folder.join("10-lab.conflist");
        let found = conflist(&layout.node, None);
        fs::write(&file, &found).expect("write the primary's conflist");
        let mut settings = json!({"type": "symroute", "uplinks": NICS});
        Backend::of_run().into_settings(&mut settings);
        fs::write(&entry, settings.to_string()).expect("write the entry");
        let places =
            [("--conf-dir", folder), ("--state-dir", dir.join("lasting")), ("--entry", entry)];
        let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        let arguments: Vec<String> =
            places.into_iter().flat_map(|(name, path)| [name.into(), text(path)]).collect();
        let cache = layout.node.dir.join("cache");
        fs::create_dir_all(&cache).expect("make the cache");
        let pod = &layout.pods[1];
        let cached = cached_as(&pod.id, &conflist(&layout.node, None), &pod.prev_result);
        fs::write(cache.join("lab-cached-eth0"), cached).expect("write the cache");
        Self { layout, before, file, found, arguments }
    }

    fn node(&self) -> &Node {
        &self.layout.node
    }

    fn arguments(&self) -> Vec<&str> {
        self.arguments.iter().map(String::as_str).collect()
    }

    /// Takes the node over; what was changed on the way.
    fn steps(&self) -> Vec<Syscall> {
        let file = self.node().dir.join("strace");
        let under = ["strace", "-f", "-y", "-o", file.to_str().expect("UTF-8")];
        let agent = Agent::spawn(self.node(), &under, &self.arguments(), &[]);
        until("the agent is ready", || agent.get("/readyz").0 == 200);
        self.node().kill_all();
        drop(agent);
        let steps = parse(&fs::read_to_string(&file).expect("strace wrote its file"));
        steps.into_iter().filter(|step| !step.of_tool && step.is_change()).collect()
    }

    /// Whether the agent was killed at this step; the event loop may take another turn.
    fn kill_at(&self, step: &Syscall) -> bool {
        let Syscall { name, nth, .. } = step;
        let (trace, inject) =
            (format!("trace={name}"), format!("inject={name}:signal=SIGKILL:when={nth}"));
        let under = ["strace", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let mut agent = Agent::spawn(self.node(), &under, &self.arguments(), &[]);
        let mut killed = false;
        until("the agent is killed or ready", || {
            killed = agent.has_ended();
            killed || agent.get("/readyz").0 == 200
        });
        self.node().kill_all();
        drop(agent);
        killed
    }

    /// The list is whole: the primary's alone, or with one entry of ours.
    fn assert_conflist_is_whole(&self, step: &Syscall) {
        let text = fs::read_to_string(&self.file).expect("read the conflist");
        let list: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("at {}: {error} in {text}", step.line));
        let ours = |plugin: &&Value| plugin["type"] == "symroute";
        let count = list["plugins"].as_array().expect("plugins").iter().filter(ours).count();
        assert!(count <= 1, "at {}: {text}", step.line);
    }

    /// Everything away again, for the next step.
    fn reset(&self) {
        self.node().symroute(&["down", "--force"]).assert_success("down --force");
        fs::write(&self.file, &self.found).expect("write the conflist");
        let _ = fs::remove_dir_all(self.node().dir.join("lasting"));
        self.before.assert_unchanged(&Snapshot::take(self.node()));
    }
}

#[test]
fn at_each_change() {
    let mut scene = Scene::new();
    let steps = scene.steps();
    assert!(steps.len() > 10, "{} steps", steps.len());
    scene = Scene::new();
    let another = scene.layout.pod_behind_eth1(1);
    scene.before = Snapshot::take(scene.node());
    let settings = json!({"uplinks": NICS});
    let mut struck = 0;
    for step in &steps {
        if !scene.kill_at(step) {
            scene.reset();
            continue;
        }
        struck += 1;
        scene.assert_conflist_is_whole(step);
        scene.node().add(&settings, &another);
        assert_all_work(&[scene.layout.flow_to_pod(1, "pod101 203.0.113.9")]);
        let agent = Agent::ready(scene.node(), &scene.arguments());
        let (status, text) = agent.get("/readyz");
        assert_eq!(status, 200, "after {}: {text}", step.line);
        agent.end(Signal::SIGTERM);
        let list = fs::read_to_string(&scene.file).expect("read the conflist");
        assert!(list.contains("symroute"), "after {}: {list}", step.line);
        scene.reset();
    }
    println!("killed at {struck} of {} changes", steps.len());
    assert!(struck * 10 >= steps.len() * 7, "{struck} of {} were struck", steps.len());
}
