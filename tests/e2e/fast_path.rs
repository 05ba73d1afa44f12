//! What an ADD and a DEL cost on a node where everything is in place: the same few system calls
//! whatever else is on the node, and none of those that wait for others.

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

/// How many pods "many" are.
const MANY: usize = 300;

/// A node with a pod that stays, and another one that comes and goes.
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
        // Makes the folders that only a first DEL needs.
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

    /// ADD and DEL, by name how often each system call is made.
    fn costs(&self) -> [BTreeMap<String, usize>; 2] {
        ["ADD", "DEL"].map(|verb| {
            let mut costs = counted(self.traced(verb));
            costs.retain(|name, _| !ALLOCATOR.contains(&name.as_str()));
            costs
        })
    }

    /// `up` and `status`: the files that they open, and what they ask the kernel. How often a
    /// program of iptables is read from is chance.
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

    /// ADD or DEL of pods that have no more than a name and an address behind pod0's veth.
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

/// How much memory is asked for, and how often, is the allocator's business.
const ALLOCATOR: [&str; 4] = ["brk", "mmap", "munmap", "mremap"];

/// How often each system call is made.
fn counted(calls: Vec<Syscall>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        *counts.entry(call.name).or_insert(0) += 1;
    }
    counts
}

/// Panics with the calls that a fast path must not make.
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

/// What waits for others, changes what others wait for, or takes the longer the more there is.
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

/// There is nothing to tell the kernel: a look-up or two shows that all is in place.
#[test]
fn add_asks_for_little() {
    let scene = Scene::new();
    let calls = scene.traced("ADD");
    assert_fast(&calls, &NEVER);
    let asks = calls.iter().filter(|call| call.is_request()).count();
    assert!(asks > 0, "strace shows the requests to netlink");
    // The same pod again, as some runtimes do after their own restart.
    assert_fast(&scene.traced("ADD"), &NEVER);
    scene.traced("DEL");
    // Nor does it wait for what the DEL has begun.
    assert_fast(&scene.traced("ADD"), &NEVER);
    scene.traced("DEL");
    scene.end();
}

/// A DEL looks for another pod's file, so that it knows that it is not the last.
#[test]
fn del_asks_for_nothing() {
    let scene = Scene::new();
    let but: Vec<_> = NEVER.into_iter().filter(|call| *call != "getdents").collect();
    let no_socket = [&but[..], &["socket("]].concat();
    scene.traced("ADD");
    assert_fast(&scene.traced("DEL"), &no_socket);
    // The second one that runtimes send, and one of a pod that we have never seen.
    assert_fast(&scene.traced("DEL"), &no_socket);
    scene.end();
}

/// A pod with an annotation is in a set, so its ADD and DEL have something to tell. The next pod
/// does not pay for it.
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

/// 100 attachments are more than a look reads.
#[test]
fn looks_do_not_grow_with_the_pods() {
    let scene = Scene::new();
    let node = &scene.layout.node;
    node.ns.ip("route add 10.30.0.0/16 dev enipod0 scope link");
    scene.many_of(100, "ADD");
    // The first look writes where the next one begins.
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
