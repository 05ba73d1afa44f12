//! The agent is killed at each thing that it changes: pods start all the same, the next agent
//! completes what was begun, and everything can be taken away, by then or at once.
//!
//! Each run is made once as it is, to list its changes, and then for each of them.

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

/// Nodes on which changes are struck side by side.
const NODES: usize = 2;

/// A node whose conflist names the primary alone, without the plugin's binary.
struct Scene {
    layout: TwoNics,
    /// One that starts when the agent was killed.
    another: Pod,
    folders: [PathBuf; 3],
    before: State,
}

/// The node, and our files on its disk.
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

    /// The uplinks that the agent is to keep in force.
    fn want(&self, uplinks: &[&str]) {
        self.want_settings(json!({ "uplinks": uplinks }));
    }

    fn want_settings(&self, mut settings: Value) {
        settings["type"] = json!("symroute");
        // Lines for the log would be changes of their own.
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

    /// Starts an agent, and kills it at this change, or when it is ready.
    fn run(&self, strike_at: Option<usize>) -> Run {
        self.run_until(strike_at, || self.node().agents_page("/readyz").0 == 200)
    }

    /// The same, or when it is so far.
    fn run_until(&self, strike_at: Option<usize>, is_far: impl Fn() -> bool) -> Run {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let command = self.node().agents_command(&GATE, &arguments);
        let run = kill::run(command, Path::new(&program()), strike_at, is_far);
        // Tools that it has started go on.
        self.node().await_tools();
        run
    }

    fn start_a_pod(&self, settings: &Value) {
        self.node().add(settings, &self.another);
        assert_all_work(&[self.layout.flow_to_pod(2, "pod102 203.0.113.9")]);
    }

    /// An agent that nothing disturbs.
    fn agent(&self) -> Agent<'_> {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let agent = Agent::ready(self.node(), &arguments);
        assert_all_work(&[self.layout.flow_to_host()]);
        agent
    }

    /// What there is when this agent has ended.
    fn after(&self, agent: Agent<'_>) -> State {
        assert!(agent.end(Signal::SIGTERM).success());
        let run = self.node().dir.join("run");
        // Its process id is another one each time.
        fs::write(run.join("agent"), "").expect("write the agent's file");
        // What a killed one was about to put in its place or to forget counts for nothing, and
        // goes with the next reconcile or the last one.
        for folder in ["hold", "pods"] {
            let files = fs::read_dir(run.join(folder)).into_iter().flatten().flatten();
            let is_temporary = |name: &OsStr| name.as_bytes()[0] == b'.';
            for file in files.filter(|file| is_temporary(&file.file_name())) {
                fs::remove_file(file.path()).expect("remove a temporary file");
            }
        }
        State::of(self.node(), &self.folders)
    }

    /// Takes everything away, and looks whether that is all.
    fn clean_up(&self) {
        let node = self.node();
        node.symroute(&["down", "--force"]).assert_success("down --force");
        let [conf_dir, bin_dir, state_dir] =
            self.folders.each_ref().map(|folder| folder.to_str().expect("UTF-8"));
        let remove = ["conflist", "remove", "--conf-dir", conf_dir, "--state-dir", state_dir];
        node.symroute(&remove).assert_success("conflist remove");
        // The rest goes with the installation.
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

/// The files below a folder with mode and content; of the journal, which tells times, the name.
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

/// What an agent does that is to be struck.
struct Task {
    /// The uplinks that are wanted from then on.
    uplinks: &'static [&'static str],
    /// Makes the node as the agent finds it.
    prepare: fn(&Scene),
    /// What has to be among its changes, by words of each.
    makes: &'static [&'static [&'static str]],
    /// Changes that are let be, by a word.
    spares: Option<&'static str>,
    /// What follows a kill.
    then: &'static [Then],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// A pod, and another agent.
    GoOn,
    /// Everything is taken away.
    CleanUp,
}

impl Task {
    fn find(&self, scene: &Scene) {
        (self.prepare)(scene);
        scene.want(self.uplinks);
    }

    /// The changes of a run that nothing disturbs, by their number.
    fn changes(&self, scene: &Scene) -> Vec<(usize, Change)> {
        self.find(scene);
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

    /// Strikes one of so many of the changes, beginning with this one; the number of all.
    fn strike(&self, first: usize, one_of: usize) -> usize {
        let scene = Scene::new();
        let settings = json!({"uplinks": self.uplinks});
        self.find(&scene);
        let agent = scene.agent();
        scene.start_a_pod(&settings);
        let wanted = scene.after(agent);
        scene.clean_up();
        // Not of the first run: the tables of iptables-legacy stay, and are looked at from then on.
        let changes = self.changes(&scene);
        for (at, change) in changes.iter().skip(first).step_by(one_of) {
            println!("killed at {at}: {}", change.what);
            for then in self.then {
                self.find(&scene);
                let run = scene.run(Some(*at));
                assert!(run.was_struck, "it was not killed");
                assert_eq!(run.changes[*at].what, change.what, "it was killed elsewhere");
                if *then == Then::GoOn {
                    scene.start_a_pod(&settings);
                    wanted.assert_same(&scene.after(scene.agent()));
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
        // The entry's, which is written anew as above.
        spares: Some("/lasting/"),
        then: &[Then::GoOn],
    };
    task.strike_all();
}

/// A change of settings was complete but for the record: a table that only the former settings
/// called ours is somebody else's again.
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
    node.lose_all_rules();
    until("repaired", || reconciles() > made);
    let routes = node.ns.exec(&["ip", "route", "show", "table", "48001"], "");
    assert!(routes.contains("198.51.100.0/24"), "{routes:?}");
}
