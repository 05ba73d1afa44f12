//! Kills the agent at each change that it makes. Pods still start, the next agent completes the
//! work, and the operator can remove everything before or after that.
//!
//! Each task runs once undisturbed to list its changes, and then once for each of them.

mod refused;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::{conflist, plugin_object};
use crate::lab::agent::{Agent, program, until};
use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::kill::{self, Change, GATE, Run};
use crate::lab::node::{Node, Pod};
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

/// Number of nodes on which a task runs in parallel.
const NODES: usize = 2;

/// A node whose conflist names the primary alone, without the plugin's binary.
struct Scene {
    layout: TwoNics,
    /// The pod that starts after the kill.
    another: Pod,
    folders: [PathBuf; 3],
    before: State,
}

/// The node's kernel state, and symroute's files on its disk.
struct State(Snapshot, String);

impl Scene {
    fn new() -> Self {
        let mut layout = two_nics();
        let another = layout.pod_behind_eth1(2);
        let node = &layout.node;
        let folders = ["net.d", "bin", "lasting"].map(|name| node.dir.join(name));
        for folder in &folders[..2] {
            fs::create_dir(folder).expect("make a folder");
        }
        fs::write(folders[0].join("10-lab.conflist"), conflist(node, None)).expect("write it");
        fs::write(folders[1].join("ptp"), "a program").expect("write the primary's program");
        fs::write(node.dir.join("plugin"), "a program").expect("write the plugin");
        let before = State::of(node, &folders);
        Self { layout, another, folders, before }
    }

    fn node(&self) -> &Node {
        &self.layout.node
    }

    /// Writes the entry with these uplinks for the agent.
    fn want(&self, uplinks: &[&str]) {
        self.want_settings(json!({ "uplinks": uplinks }));
    }

    fn want_settings(&self, mut settings: Value) {
        settings["type"] = json!("symroute");
        // Log lines would count as changes.
        settings["log"] = json!({"level": "off", "file": self.node().log()});
        Backend::of_run().into_settings(&mut settings);
        fs::write(self.node().dir.join("entry.json"), settings.to_string()).expect("write it");
    }

    fn arguments(&self) -> Vec<String> {
        let [conf_dir, bin_dir, state_dir] = &self.folders;
        let dir = &self.node().dir;
        let places = [
            ("--conf-dir", conf_dir),
            ("--state-dir", state_dir),
            ("--entry", &dir.join("entry.json")),
            ("--install", &dir.join("plugin")),
            ("--bin-dir", bin_dir),
        ];
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        places.map(|(name, path)| [name.to_owned(), text(path)]).concat()
    }

    /// Starts an agent, and kills it at this change or, without one, when it is ready.
    fn run(&self, strike_at: Option<usize>) -> Run {
        self.run_until(strike_at, || self.node().agents_page("/readyz").0 == 200)
    }

    /// Starts an agent, and kills it at this change or, without one, when `is_done` holds.
    fn run_until(&self, strike_at: Option<usize>, is_done: impl Fn() -> bool) -> Run {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let command = self.node().agents_command(&GATE, &arguments);
        let run = kill::run(command, Path::new(&program()), strike_at, is_done);
        // Tools that the agent has started outlive it.
        self.node().await_tools();
        run
    }

    fn start_a_pod(&self, settings: &Value) {
        self.node().add(settings, &self.another);
        assert_all_work(&[self.layout.flow_to_pod(2, "pod102 203.0.113.9")]);
    }

    /// Starts an agent that runs undisturbed, and waits until it is ready.
    fn agent(&self) -> Agent<'_> {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let agent = Agent::ready(self.node(), &arguments);
        assert_all_work(&[self.layout.flow_to_host()]);
        agent
    }

    /// Ends this agent and returns the state of the node.
    fn end_agent(&self, agent: Agent<'_>) -> State {
        assert!(agent.end(Signal::SIGTERM).success());
        let run = self.node().dir.join("run");
        // The process id differs each time.
        fs::write(run.join("agent"), "").expect("write the agent's file");
        // Temporary files of a killed agent do not count. The next or the last reconcile removes
        // them.
        for folder in ["hold", "pods"] {
            let files = fs::read_dir(run.join(folder)).into_iter().flatten().flatten();
            let is_temporary = |name: &OsStr| name.as_bytes()[0] == b'.';
            for file in files.filter(|file| is_temporary(&file.file_name())) {
                fs::remove_file(file.path()).expect("remove a temporary file");
            }
        }
        State::of(self.node(), &self.folders)
    }

    /// Removes everything and asserts that the node is as before.
    fn clean_up(&self) {
        let node = self.node();
        node.symroute(&["down", "--force"]).assert_success("down --force");
        let [conf_dir, bin_dir, state_dir] =
            self.folders.each_ref().map(|folder| folder.to_str().expect("UTF-8"));
        let remove = ["conflist", "remove", "--conf-dir", conf_dir, "--state-dir", state_dir];
        node.symroute(&remove).assert_success("conflist remove");
        // Uninstalling symroute removes the rest.
        let _ = fs::remove_dir_all(state_dir);
        for name in ["symroute", ".symroute.new"] {
            let _ = fs::remove_file(Path::new(bin_dir).join(name));
        }
        self.before.assert_same(&State::of(node, &self.folders));
    }
}

impl State {
    fn of(node: &Node, folders: &[PathBuf]) -> Self {
        let mut files = String::new();
        for folder in folders {
            list(folder, &mut files);
        }
        Self(Snapshot::take(node), files)
    }

    fn assert_same(&self, now: &Self) {
        self.0.assert_unchanged(&now.0);
        assert_eq!(self.1, now.1, "the files on the disk are not as they should be");
    }
}

/// Appends path, mode and content of the files below a folder. The journal contains times, so its
/// content is left out.
fn list(folder: &Path, lines: &mut String) {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            list(&path, lines);
            continue;
        }
        let content = fs::read_to_string(&path).expect("read a file");
        let mode = fs::metadata(&path).expect("look at a file").permissions().mode();
        let content = if path.ends_with("journal") { "" } else { &content };
        let _ = writeln!(lines, "{} {mode:o} {content}", path.display());
    }
}

/// Work of an agent during which the test kills it.
struct Task {
    /// The uplinks that the agent's settings name.
    uplinks: &'static [&'static str],
    /// Prepares the node for the agent.
    prepare: fn(&Scene),
    /// Changes that the agent has to make; a change matches if it contains all words of a group.
    makes: &'static [&'static [&'static str]],
    /// A word of changes that the test skips.
    spares: Option<&'static str>,
    /// What the test does after a kill.
    then: &'static [Then],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Starts a pod and another agent.
    GoOn,
    /// Removes everything.
    CleanUp,
}

impl Task {
    fn set_up(&self, scene: &Scene) {
        (self.prepare)(scene);
        scene.want(self.uplinks);
    }

    /// The changes that an undisturbed run makes, with their numbers.
    fn changes(&self, scene: &Scene) -> Vec<(usize, Change)> {
        self.set_up(scene);
        let changes = scene.run(None).changes.into_iter().enumerate();
        let made: Vec<_> = changes.filter(|(_, change)| change.made).collect();
        scene.clean_up();
        let marking: &[&[&str]] = match Backend::of_run() {
            Backend::Nftables => &[&["netfilter batch"]],
            _ => &[&["ipset"], &["start a tool"], &["wait for a tool"]],
        };
        for words in self.makes.iter().chain(marking) {
            let has = |what: &str| words.iter().all(|word| what.contains(word));
            let all: Vec<_> = made.iter().map(|(_, change)| &change.what[..]).collect();
            assert!(all.iter().any(|what| has(what)), "no {words:?} in\n{}", all.join("\n"));
        }
        let counts = |what: &str| !self.spares.is_some_and(|word| what.contains(word));
        made.into_iter().filter(|(_, change)| counts(&change.what)).collect()
    }

    /// Kills at every `one_of`-th change, from `first` on. Returns the number of all changes.
    fn strike(&self, first: usize, one_of: usize) -> usize {
        let scene = Scene::new();
        let settings = json!({"uplinks": self.uplinks});
        self.set_up(&scene);
        let agent = scene.agent();
        scene.start_a_pod(&settings);
        let wanted = scene.end_agent(agent);
        scene.clean_up();
        // The first run does not count: afterwards the tables of iptables-legacy exist, so each
        // later run reads them.
        let changes = self.changes(&scene);
        for (at, change) in changes.iter().skip(first).step_by(one_of) {
            println!("killed at {at}: {}", change.what);
            for then in self.then {
                self.set_up(&scene);
                let run = scene.run(Some(*at));
                assert!(run.was_struck, "it was not killed");
                assert_eq!(run.changes[*at].what, change.what, "it was killed elsewhere");
                if *then == Then::GoOn {
                    scene.start_a_pod(&settings);
                    wanted.assert_same(&scene.end_agent(scene.agent()));
                }
                scene.clean_up();
            }
        }
        changes.len()
    }

    fn strike_all(&self) {
        let counts: Vec<usize> = thread::scope(|scope| {
            let strike = |first| scope.spawn(move || self.strike(first, NODES));
            let nodes: Vec<_> = (0..NODES).map(strike).collect();
            nodes.into_iter().map(|node| node.join().expect("no finding")).collect()
        });
        assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
        println!("points walked: {}", counts[0]);
    }
}

#[test]
fn while_it_takes_the_node_over() {
    let task = Task {
        uplinks: &NICS,
        prepare: |_| (),
        makes: &[
            &["write /run/symroute/agent"],
            &["rename", "/bin/symroute"],
            &["mkdir", "/lasting/"],
            &["write", "/net.d/"],
            &["rename", "/10-lab.conflist"],
            &["mkdir", "/hold"],
            &["rename", "/hold/agent"],
            &["rename", "/node.json"],
            &["route add family 2"],
            &["route add family 10"],
            &["rule add family 2"],
            &["rule add family 10"],
            &["write", "eth1/src_valid_mark"],
            &["symlink", "/.marking"],
        ],
        spares: None,
        then: &[Then::GoOn, Then::CleanUp],
    };
    task.strike_all();
}

#[test]
fn while_it_takes_an_uplink_away() {
    let task = Task {
        uplinks: &NICS[1..],
        prepare: |scene| {
            scene.want(&NICS);
            assert!(scene.agent().end(Signal::SIGTERM).success());
        },
        makes: &[
            &["rename", "/node.json"],
            &["route del family 2"],
            &["route del family 10"],
            &["rule del family 2"],
            &["rule del family 10"],
            &["write", "eth0/src_valid_mark"],
        ],
        // The agent rewrites the entry as in the test above, which covers that.
        spares: Some("/lasting/"),
        then: &[Then::GoOn],
    };
    task.strike_all();
}

/// A change of settings was complete except for the record. A table that only the former settings
/// claimed belongs to other programs again.
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
    node.flush_all_rules();
    until("repaired", || reconciles() > made);
    let routes = node.ns.exec(&["ip", "route", "show", "table", "48001"], "");
    assert!(routes.contains("198.51.100.0/24"), "{routes:?}");
}
