//! Kills the program before each system call that changes something. The conf dir then has the whole
//! old or the whole new file, and the next run completes and leaves nothing behind.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use crate::node::{FLANNEL, Files, Node, PRIMARY, PROGRAM, files};

/// A system call that changes something: its name, and its number among the calls of this name.
type Step = (String, usize);

fn steps(trace: &Path) -> Vec<Step> {
    let text = fs::read_to_string(trace).expect("strace wrote its file");
    let mut names: Vec<&str> = Vec::new();
    let mut steps = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let Some((name, _)) = line.split_once('(') else {
            continue;
        };
        names.push(name);
        let nth = names.iter().filter(|other| **other == name).count();
        let kinds = ["write", "rename", "mkdir", "unlink", "rmdir", "chmod", "chown", "sync"];
        let creates = name == "openat" && line.contains("O_CREAT");
        if creates || kinds.iter().any(|kind| name.contains(kind)) {
            steps.push((name.to_string(), nth));
        }
    }
    steps
}

/// Runs `words` under strace: kills the program at a step, or lets it end.
fn traced(node: &Node, words: &str, at: Option<&Step>) {
    let trace = node.root.join("trace");
    let trace = trace.to_str().expect("UTF-8");
    let mut argv = vec!["strace", "-f", "-o", trace];
    let inject = at.map(|(name, nth)| format!("inject={name}:signal=SIGKILL:when={nth}"));
    if let Some(inject) = &inject {
        argv.extend(["-e", inject]);
    }
    argv.push(PROGRAM);
    let output = node.command(&argv, words).output();
    let output = output.expect("run strace (Debian: apt-get install strace)");
    if at.is_some() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "{inject:?} did not come about: {said}");
    }
}

/// Kills `words` at each step on a new node, then runs it again. `wholes` checks the files after a kill.
fn kill_everywhere(make: impl Fn() -> Node, words: &str, wholes: &dyn Fn(&Files) -> bool) {
    let node = make();
    traced(&node, words, None);
    let steps = steps(&node.root.join("trace"));
    let wanted = node.files();
    assert!(steps.len() > 4, "{words}: {steps:?}");
    for step in &steps {
        let node = make();
        traced(&node, words, Some(step));
        let mut left = node.files();
        // No runtime reads this file, so it may be half-written.
        left.remove(".symroute.new");
        assert!(wholes(&left), "{words}, killed at {step:?}: {left:?}");
        node.run(words).assert_code(0, &format!("{words} after a kill at {step:?}"));
        assert_eq!(node.files(), wanted, "{words} after a kill at {step:?}");
        node.run("remove").assert_code(0, "remove");
        let before = Files::from([(PRIMARY.to_string(), FLANNEL.into())]);
        assert_eq!(node.files(), before, "removed after a kill at {step:?}");
        let state: Vec<_> = files(&node.state_dir()).into_keys().collect();
        assert_eq!(state, ["journal"], "{words}, killed at {step:?}");
    }
    println!("points walked: {} ({words})", steps.len());
}

/// Whether every file is a list with at least the two plugins of the primary's list.
fn whole(files: &Files) -> bool {
    files.values().all(|text| {
        serde_json::from_slice::<serde_json::Value>(text)
            .is_ok_and(|list| list["plugins"].as_array().is_some_and(|p| p.len() >= 2))
    })
}

fn with_entry() -> Node {
    let node = Node::with_flannel();
    node.run("add").assert_code(0, "add");
    node
}

#[test]
fn add() {
    let node = with_entry();
    let new = node.files();
    let old = Files::from([(PRIMARY.to_string(), FLANNEL.into())]);
    kill_everywhere(Node::with_flannel, "add", &|files| *files == old || *files == new);
}

#[test]
fn add_as_own_file() {
    kill_everywhere(Node::with_flannel, "add --mode own-file", &whole);
}

#[test]
fn from_in_place_to_own_file() {
    kill_everywhere(with_entry, "add --mode own-file", &whole);
}

#[test]
fn remove() {
    let new = with_entry().files();
    let old = Files::from([(PRIMARY.to_string(), FLANNEL.into())]);
    kill_everywhere(with_entry, "remove", &|files| *files == old || *files == new);
}
