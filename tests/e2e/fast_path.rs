//! Cost of an ADD and a DEL on a prepared node. The number of system calls is small and does not
//! depend on what else is on the node. No call waits for other programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::{fs, thread};

use serde_json::{Value, json};

use crate::lab::flows::assert_all_work;
use crate::lab::node::Pod;
use crate::lab::plugin::Call;
use crate::lab::snapshot::Snapshot;
use crate::lab::strace::Syscall;
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

/// Number of pods on a node with many of them.
const MANY: usize = 300;

/// A node with a pod that stays, and another one that each test adds and deletes.
struct Scene {
    layout: TwoNics,
    stays: Pod,
    comes: Pod,
    before: Snapshot,
}

impl Scene {
    fn new() -> Self {
        let mut layout = two_nics();
        let (stays, comes) = (layout.pod_behind_eth1(1), layout.pod_behind_eth1(2));
        let before = Snapshot::take(&layout.node);
        let scene = Self { layout, stays, comes, before };
        scene.layout.node.add(&scene.settings(), &scene.stays);
        // Creates the folders that only a first DEL needs.
        scene.layout.node.add(&scene.settings(), &scene.comes);
        scene.layout.node.del(&scene.settings(), &scene.comes);
        scene
    }

    fn settings(&self) -> Value {
        json!({"uplinks": NICS, "log": {"level": "warn", "file": self.layout.node.log()}})
    }

    fn traced(&self, verb: &str) -> Vec<Syscall> {
        self.traced_with(verb, &self.settings())
    }

    fn traced_with(&self, verb: &str, settings: &Value) -> Vec<Syscall> {
        let call = self.layout.node.call_of(verb, settings, &self.comes);
        let (ran, calls) = self.layout.node.traced(&call);
        ran.assert_success(verb);
        calls
    }

    /// Number of each system call of an ADD and of a DEL, by name.
    fn costs(&self) -> [BTreeMap<String, usize>; 2] {
        ["ADD", "DEL"].map(|verb| {
            let mut costs = counted(self.traced(verb));
            costs.retain(|name, _| !ALLOCATOR.contains(&name.as_str()));
            costs
        })
    }

    /// The files that `up` and `status` open, and their requests to the kernel. Without reads: how
    /// often the tool reads from an iptables program is chance.
    fn looks(&self) -> [BTreeMap<String, usize>; 2] {
        let node = &self.layout.node;
        let file = node.dir.join("network.json");
        fs::write(&file, node.network(&self.settings(), None)).expect("write the configuration");
        let file = file.to_str().expect("UTF-8");
        [&["up", "--config", file][..], &["status"]].map(|arguments| {
            let (ran, calls) = node.traced(&Call::tool(arguments));
            ran.assert_success(arguments[0]);
            let mut looks = counted(calls);
            looks.retain(|name, _| ["openat", "statx", "sendto"].contains(&name.as_str()));
            looks
        })
    }

    fn many(&self, verb: &str) {
        self.many_of(MANY, verb);
    }

    /// ADD or DEL of many pods that share pod0's veth. Each has only a name and an address.
    fn many_of(&self, count: usize, verb: &str) {
        let node = &self.layout.node;
        let netns = self.layout.pods[0].ns.path();
        let call = |number: usize| {
            let address = format!("10.30.{}.{}/32", number / 250, number % 250 + 1);
            let result = json!({"cniVersion": "1.0.0", "ips": [{"address": address}]}).to_string();
            let network = node.network(&self.settings(), Some(&result));
            Call::cni(verb, &network, &format!("many-{number}"), &netns, "eth0")
        };
        thread::scope(|scope| {
            for first in 0..4 {
                scope.spawn(move || {
                    for number in (first..count).step_by(4) {
                        node.call(&call(number)).assert_success("one of many");
                    }
                });
            }
        });
    }

    fn end(self) {
        let flows = [self.layout.flow_to_host(), self.layout.flow_to_pod(1, "pod101 203.0.113.9")];
        assert_all_work(&flows);
        self.layout.node.del(&self.settings(), &self.stays);
        self.before.assert_unchanged(&Snapshot::take(&self.layout.node));
    }
}

/// Calls of the memory allocator, whose number varies.
const ALLOCATOR: [&str; 4] = ["brk", "mmap", "munmap", "mremap"];

/// Counts the system calls by name.
fn counted(calls: Vec<Syscall>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        *counts.entry(call.name).or_insert(0) += 1;
    }
    counts
}

/// Asserts that no call contains a forbidden word, and that no other program was executed.
fn assert_fast(calls: &[Syscall], forbidden: &[&str]) {
    let starts = calls.iter().filter(|call| call.name == "execve").count();
    assert_eq!(starts, 1, "only the program itself is executed");
    let found: Vec<_> = calls
        .iter()
        .filter(|call| forbidden.iter().any(|word| call.line.contains(word)))
        .map(|call| call.line.as_str())
        .collect();
    assert!(found.is_empty(), "on the fast path:\n{}", found.join("\n"));
}

/// Calls that wait for other programs, change what others wait for, or take longer the more there
/// is.
const NEVER: [&str; 14] = [
    "flock(",
    "xtables.lock",
    "NLM_F_DUMP",
    "NFNL_MSG_BATCH_BEGIN",
    "IPSET_CMD_ADD",
    "IPSET_CMD_DEL",
    "/proc/sys",
    "symroute.log",
    "clone(",
    "clone3(",
    "fork(",
    "fsync(",
    "nanosleep(",
    "getdents",
];

/// On a prepared node an ADD changes nothing in the kernel: a look-up or two shows that all is in
/// place.
#[test]
fn add_asks_for_little() {
    let scene = Scene::new();
    let calls = scene.traced("ADD");
    assert_fast(&calls, &NEVER);
    let asks = calls.iter().filter(|call| call.is_request()).count();
    assert!(asks > 0, "strace shows the requests to netlink");
    // The pod's second ADD, as some runtimes send it after their own restart.
    assert_fast(&scene.traced("ADD"), &NEVER);
    scene.traced("DEL");
    // An ADD does not wait for work that the DEL has begun either.
    assert_fast(&scene.traced("ADD"), &NEVER);
    scene.traced("DEL");
    scene.end();
}

/// A DEL looks for another pod's file to see that it is not the last one.
#[test]
fn del_asks_for_nothing() {
    let scene = Scene::new();
    let but: Vec<_> = NEVER.into_iter().filter(|call| *call != "getdents").collect();
    let no_socket = [&but[..], &["socket("]].concat();
    scene.traced("ADD");
    assert_fast(&scene.traced("DEL"), &no_socket);
    // Some runtimes send a second DEL, or one for a pod that never had an ADD.
    assert_fast(&scene.traced("DEL"), &no_socket);
    scene.end();
}

/// A pod with an annotation is in a set, so its ADD and DEL change something in the kernel. The
/// next pod does not pay for that.
#[test]
fn only_a_pod_with_an_annotation_pays_for_it() {
    let scene = Scene::new();
    let mut settings = scene.settings();
    settings["runtimeConfig"] = json!({
        "io.kubernetes.cri.pod-annotations": {"symroute.io/hairpin": "true"}
    });
    let changes = |calls: &[Syscall]| {
        let tells = |call: &&Syscall| NEVER.iter().any(|word| call.line.contains(word));
        calls.iter().filter(tells).count()
    };
    assert!(changes(&scene.traced_with("ADD", &settings)) > 0, "strace shows what ADD tells");
    assert!(changes(&scene.traced_with("DEL", &settings)) > 0, "strace shows what DEL tells");
    assert_fast(&scene.traced("ADD"), &NEVER);
    scene.traced("DEL");
    scene.end();
}

#[test]
fn the_first_add_is_not_fast() {
    let scene = Scene::new();
    let node = &scene.layout.node;
    node.del(&scene.settings(), &scene.stays);
    let first = scene.traced("ADD");
    for word in ["flock(", "NLM_F_DUMP", "/proc/sys/net/ipv4/conf/eth1/src_valid_mark"] {
        assert!(first.iter().any(|call| call.line.contains(word)), "strace shows {word}");
    }
    scene.traced("DEL");
    node.add(&scene.settings(), &scene.stays);
    scene.end();
}

#[test]
fn costs_do_not_grow_with_the_pods() {
    let scene = Scene::new();
    scene.layout.node.ns.ip("route add 10.30.0.0/16 dev enipod0 scope link");
    let few = scene.costs();
    scene.many("ADD");
    assert_eq!(scene.layout.node.attachments().len(), MANY + 1);
    assert_eq!(scene.costs(), few, "system calls of ADD and DEL");
    scene.many("DEL");
    scene.layout.node.ns.ip("route del 10.30.0.0/16 dev enipod0");
    scene.end();
}

/// 100 attachments are more than one `up` or `status` reads.
#[test]
fn looks_do_not_grow_with_the_pods() {
    let scene = Scene::new();
    let node = &scene.layout.node;
    node.ns.ip("route add 10.30.0.0/16 dev enipod0 scope link");
    scene.many_of(100, "ADD");
    // The first look records where the next one begins.
    scene.looks();
    let few = scene.looks();
    scene.many("ADD");
    scene.looks();
    assert_eq!(scene.looks(), few, "what up and status open and ask");
    scene.many("DEL");
    node.ns.ip("route del 10.30.0.0/16 dev enipod0");
    node.down();
    scene.end();
}

#[test]
fn costs_do_not_grow_with_rules_and_routes() {
    let scene = Scene::new();
    let few = scene.costs();
    let ip = |verb: &str| {
        let mut batch = String::new();
        for number in 0..1000 {
            let (high, low) = (number / 250, number % 250);
            let rule =
                format!("rule {verb} pref {} from 10.40.{high}.{low} lookup main", 2000 + number);
            let _ = writeln!(batch, "{rule}\nroute {verb} 10.50.{high}.{low} dev eth0");
        }
        scene.layout.node.ns.ip(&batch);
    };
    ip("add");
    assert_eq!(scene.costs(), few, "system calls of ADD and DEL");
    ip("del");
    scene.end();
}
