//! The lock that programs of iptables-legacy take before each change.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::{bare_del, foreign, settings};
use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::two_nics;

const LEGACY: &str = "iptables-legacy";
/// Far longer than the ten seconds that symroute waits, because the machine may be busy.
const BOUND: Duration = Duration::from_secs(30);

/// Holds the node's lock in this process, in place of another program of the node.
fn hold_lock(node: &Node) -> Flock<File> {
    let file = OpenOptions::new().write(true).open(node.ns.xtables_lock()).expect("the lock file");
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).expect("a free lock")
}

#[test]
fn an_add_that_does_not_get_it() {
    add_without_lock("");
}

/// symroute lists an existing table first, which takes the lock as well.
#[test]
fn an_add_that_does_not_get_it_where_others_have_rules() {
    add_without_lock("-t mangle -N KUBE-KUBELET-CANARY");
}

fn add_without_lock(rules: &str) {
    let layout = two_nics();
    let (node, pod, settings) = (&layout.node, &layout.pods[1], settings(LEGACY));
    foreign(node, Backend::IptablesLegacy, rules);
    let before = Snapshot::take(node);
    let held = hold_lock(node);
    let begin = Instant::now();
    let ran = node.call(&node.call_of("ADD", &settings, pod));
    let took = begin.elapsed();
    let (code, text) = ran.cni_error();
    let holder = std::process::id().to_string();
    assert_eq!(code, 11, "try again later: {text}");
    assert!(text.contains("lock") && text.contains(&holder), "no {holder} in {text}");
    assert!(took < BOUND, "ADD gave up after {took:?}");
    before.assert_unchanged(&Snapshot::take(node));
    drop(held);
    node.add(&settings, pod);
    assert_all_work(&[layout.flow_to_host()]);
    node.del(&settings, pod);
    before.assert_unchanged(&Snapshot::take(node));
}

/// `up` and `down` report the same error as an ADD.
#[test]
fn an_up_and_a_down_that_do_not_get_it() {
    let layout = two_nics();
    let (node, settings) = (&layout.node, settings(LEGACY));
    let before = Snapshot::take(node);
    node.up(&settings);
    let up = Snapshot::take(node);
    node.down();
    let file = node.dir.join("network.json");
    let holder = std::process::id().to_string();
    let held = hold_lock(node);
    let begin = Instant::now();
    let ran = node.symroute(&["up", "--config", file.to_str().expect("UTF-8")]);
    assert!(begin.elapsed() < BOUND, "up gave up after {:?}", begin.elapsed());
    assert!(!ran.success && ran.stderr.contains(&holder), "up: {}{}", ran.stdout, ran.stderr);
    before.assert_unchanged(&Snapshot::take(node));
    drop(held);
    node.up(&settings);
    let held = hold_lock(node);
    let begin = Instant::now();
    let ran = node.symroute(&["down"]);
    assert!(begin.elapsed() < BOUND, "down gave up after {:?}", begin.elapsed());
    assert!(!ran.success && ran.stderr.contains(&holder), "down: {}{}", ran.stdout, ran.stderr);
    drop(held);
    node.up(&settings);
    up.assert_unchanged(&Snapshot::take(node));
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}

/// A DEL never fails. The next DEL does what this one could not.
#[test]
fn the_last_del_does_not_get_it() {
    let layout = two_nics();
    let (node, pod, settings) = (&layout.node, &layout.pods[1], settings(LEGACY));
    let before = Snapshot::take(node);
    node.add(&settings, pod);
    let held = hold_lock(node);
    let begin = Instant::now();
    node.del(&settings, pod);
    assert!(begin.elapsed() < BOUND, "DEL gave up after {:?}", begin.elapsed());
    drop(held);
    node.call(&bare_del(node, &settings, pod)).assert_success("another DEL");
    before.assert_unchanged(&Snapshot::take(node));
}

/// Whether another process has the node's lock file open, so as to wait for the lock.
fn is_lock_wanted(node: &Node) -> bool {
    let lock = fs::metadata(node.ns.xtables_lock()).expect("the lock file");
    let own = std::process::id().to_string();
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    folders(Path::new("/proc"))
        .filter(|process| {
            let name = process.file_name();
            name != *own && name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
        })
        .flat_map(|process| folders(&process.path().join("fd")))
        // `metadata` follows the link to the open file. Processes may end meanwhile.
        .filter_map(|open| fs::metadata(open.path()).ok())
        .any(|open| (open.dev(), open.ino()) == (lock.dev(), lock.ino()))
}

#[test]
fn an_add_that_gets_it_in_the_end() {
    let layout = two_nics();
    let (node, pod, settings) = (&layout.node, &layout.pods[1], settings(LEGACY));
    let before = Snapshot::take(node);
    let held = hold_lock(node);
    thread::scope(|scope| {
        let adding = scope.spawn(|| node.add(&settings, pod));
        while !is_lock_wanted(node) {
            assert!(!adding.is_finished(), "ADD ended before the lock was free");
            thread::yield_now();
        }
        drop(held);
    });
    assert_all_work(&[layout.flow_to_host()]);
    node.del(&settings, pod);
    before.assert_unchanged(&Snapshot::take(node));
}

/// With pods on the node, ADD and DEL need no lock: they only change a set.
#[test]
fn the_fast_path_does_not_need_it() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let (node, settings) = (&layout.node, settings(LEGACY));
    let before = Snapshot::take(node);
    node.add(&settings, &layout.pods[1]);
    let held = hold_lock(node);
    node.add(&settings, &pod);
    assert_all_work(&[layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    node.del(&settings, &pod);
    drop(held);
    node.del(&settings, &layout.pods[1]);
    before.assert_unchanged(&Snapshot::take(node));
}

/// The kernel serialises changes by nft, so no program waits for a lock.
#[test]
fn nft_does_not_need_it() {
    for backend in ["nftables", "iptables-nft"] {
        let layout = two_nics();
        let (node, pod, settings) = (&layout.node, &layout.pods[1], settings(backend));
        let before = Snapshot::take(node);
        let held = hold_lock(node);
        node.add(&settings, pod);
        assert_all_work(&[layout.flow_to_host()]);
        node.del(&settings, pod);
        drop(held);
        before.assert_unchanged(&Snapshot::take(node));
    }
}

/// The lab's lock is the one that programs on the node take.
#[test]
fn the_lab_holds_what_iptables_waits_for() {
    let layout = two_nics();
    let lock = layout.node.ns.xtables_lock();
    let script =
        "mount --bind \"$0\" /run/xtables.lock && exec iptables-legacy -w 1 -t mangle -N probe";
    let probe = || {
        let command = ["netns", "exec", layout.node.ns.name(), "sh", "-c", script];
        let output = Command::new("ip").args(command).arg(&lock).output().expect("start ip");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let held = hold_lock(&layout.node);
    let (code, error) = probe();
    assert!(code == Some(4) && error.contains("xtables lock"), "{code:?}: {error}");
    drop(held);
    assert_eq!(probe(), (Some(0), String::new()));
}
