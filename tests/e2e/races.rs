//! Everything at once. Pods start and end on addresses of others, and runtimes collect garbage. The
//! agent is killed and started, another program removes rules, and an uplink comes and goes. The
//! conflist changes, and calls are killed at any moment. A connection that does not need symroute goes
//! on all
//! the time. At the end the node is as a model says.
//!
//! `SYMROUTE_SEED=N` repeats the choices, though not the moments.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::agent::conflist;
use crate::lab::agent::{Agent, until};
use crate::lab::backend::Backend;
use crate::lab::dice::Dice;
use crate::lab::flows::assert_all_work;
use crate::lab::load::Load;
use crate::lab::node::Node;
use crate::lab::plugin::{Call, Ran};
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NODE, TwoNics, two_nics};

/// Runtimes' workers, side by side.
const WORKERS: u64 = 3;
/// Pods of each worker.
const SLOTS: u64 = 5;
/// Calls of each worker.
const CALLS: usize = 40;
/// Addresses for all pods; each is used again and again.
const ADDRESSES: u64 = 8;

/// The attachments that the runtime knows: name to address.
type Model = Mutex<BTreeMap<String, String>>;

struct Races<'a> {
    layout: &'a TwoNics,
    model: Model,
    /// A GC lists what is valid, and an ADD must not come between the list and the call.
    collects: RwLock<()>,
    operations: AtomicUsize,
    kills: AtomicUsize,
    stop: AtomicBool,
}

fn settings() -> Value {
    json!({"uplinks": ["eth*"], "log": {"level": "warn"}})
}

impl Races<'_> {
    fn node(&self) -> &Node {
        &self.layout.node
    }

    fn call(&self, verb: &str, id: &str, address: &str, hairpin: bool) -> Call {
        let result = json!({"cniVersion": "1.0.0", "ips": [{"address": format!("{address}/32")}]});
        let mut settings = settings();
        if hairpin {
            settings["runtimeConfig"] =
                json!({"io.kubernetes.cri.pod-annotations": {"symroute.io/hairpin": "true"}});
        }
        let network = self.node().network(&settings, Some(&result.to_string()));
        Call::cni(verb, &network, id, &self.layout.pods[0].ns.path(), "eth0")
    }

    /// Makes the call. One call in three is killed after some milliseconds, and returns None.
    fn call_or_kill(&self, dice: &mut Dice, call: &Call) -> Option<Ran> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        if dice.roll(3) != 0 {
            return Some(self.node().call(call));
        }
        let after = format!("0.{:03}", 1 + dice.roll(60));
        let ran = self.node().call_under(&["timeout", "-s", "KILL", &after], call);
        if ran.code.is_none_or(|code| code == 137) {
            self.kills.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(ran)
    }

    fn add(&self, dice: &mut Dice, id: &str) {
        let address = format!("10.21.0.{}", 200 + dice.roll(ADDRESSES));
        let _no_collection = self.collects.read().expect("no thread has panicked");
        let add = self.call("ADD", id, &address, dice.roll(4) == 0);
        let done = self.call_or_kill(dice, &add).is_some_and(|ran| ran.success);
        if done {
            self.model.lock().expect("no thread has panicked").insert(id.into(), address);
        } else {
            // A runtime sends a DEL for a failed ADD.
            self.del(dice, id);
        }
    }

    fn del(&self, dice: &mut Dice, id: &str) {
        let del = self.call("DEL", id, "10.21.0.200", false);
        // And sends it again where the DEL was killed.
        while self.call_or_kill(dice, &del).is_none_or(|ran| !ran.success) {}
        self.model.lock().expect("no thread has panicked").remove(id);
    }

    fn work(&self, worker: u64, mut dice: Dice) {
        for _ in 0..CALLS {
            let id = format!("pod-{worker}-{}", dice.roll(SLOTS));
            let is_there = self.model.lock().expect("no thread has panicked").contains_key(&id);
            match dice.roll(8) {
                0 => self.gc(&mut dice),
                1 => drop(self.call_or_kill(&mut dice, &Call::tool(&["status"]))),
                _ if is_there => self.del(&mut dice, &id),
                _ => self.add(&mut dice, &id),
            }
        }
    }

    fn gc(&self, dice: &mut Dice) {
        let _alone = self.collects.write().expect("no thread has panicked");
        let model = self.model.lock().expect("no thread has panicked");
        let valid: Vec<_> = model.keys().map(|id| (id.as_str(), "eth0")).collect();
        let gc = self.node().gc_call(&settings(), &valid);
        drop(model);
        self.call_or_kill(dice, &gc);
    }

    /// Does to the node what other programs and operators do, until the workers are done.
    fn disturb(&self, mut dice: Dice, conf_dir: &str) {
        let mut agent = Some(Agent::ready(self.node(), &["--conf-dir", conf_dir]));
        let mut has_third = false;
        while !self.stop.load(Ordering::Relaxed) {
            self.operations.fetch_add(1, Ordering::Relaxed);
            let ns = &self.node().ns;
            match dice.roll(7) {
                0 => flush(self.node()),
                1 => attempt(self.node(), "ip rule del pref 402; ip -6 rule del pref 401"),
                2 => attempt(self.node(), "ip route flush table 47001"),
                3 if has_third => {
                    ns.ip("link del eth2");
                    has_third = false;
                }
                3 => {
                    ns.ip("link add eth2 type veth peer name peer2
                         addr add 10.22.0.10/24 dev eth2
                         link set eth2 up
                         link set peer2 up");
                    has_third = true;
                }
                4 => write(self.node(), conf_dir, dice.coin()),
                5 => {
                    drop(
                        self.call_or_kill(&mut dice, &Call::tool(&["up", "--conf-dir", conf_dir])),
                    );
                }
                // The agent is killed, and its manager starts it again.
                _ => {
                    drop(agent.take());
                    agent = Some(Agent::start(self.node(), &["--conf-dir", conf_dir]));
                }
            }
        }
        if has_third {
            self.node().ns.ip("link del eth2");
        }
    }
}

/// Removes all rules of the backend. A kernel that is busy with symroute's changes may refuse some of it.
fn flush(node: &Node) {
    let legacy = "for table in mangle filter nat; do iptables-legacy -w -t $table -F; done";
    attempt(
        node,
        if Backend::of_run() == Backend::IptablesLegacy { legacy } else { "nft flush ruleset" },
    );
}

/// Runs a command that may have nothing to do at this moment.
fn attempt(node: &Node, commands: &str) {
    node.ns.exec(&["sh", "-c", &format!("({commands}) 2>/dev/null || true")], "");
}

fn write(node: &Node, conf_dir: &str, hairpin: bool) {
    let mut settings = settings();
    settings["hairpin"] = hairpin.into();
    let new = format!("{conf_dir}/.new");
    fs::write(&new, conflist(node, Some(&settings))).expect("write the conflist");
    fs::rename(&new, format!("{conf_dir}/10-lab.conflist")).expect("rename it");
}

#[test]
fn everything_at_once() {
    let layout = two_nics();
    let node = &layout.node;
    let conf_dir = node.dir.join("net.d");
    fs::create_dir(&conf_dir).expect("make the folder");
    let conf_dir = conf_dir.to_str().expect("UTF-8");
    write(node, conf_dir, false);
    let before = Snapshot::take(node);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let seed =
        std::env::var("SYMROUTE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    println!("SYMROUTE_SEED={seed}");
    let races = Races {
        layout: &layout,
        model: Model::default(),
        collects: RwLock::default(),
        operations: AtomicUsize::new(0),
        kills: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    };
    let load = Load::kept(&layout.client, NODE[0], 10250);
    thread::scope(|scope| {
        let others = scope.spawn(|| races.disturb(Dice(seed), conf_dir));
        let workers: Vec<_> = (1..=WORKERS)
            .map(|worker| {
                let races = &races;
                scope.spawn(move || races.work(worker, Dice(seed.wrapping_add(worker << 32))))
            })
            .collect();
        let panicked = workers.into_iter().any(|worker| worker.join().is_err());
        races.stop.store(true, Ordering::Relaxed);
        assert!(!panicked && others.join().is_ok(), "a thread has failed");
    });
    node.await_tools();
    load.assert_goes_on("all of it");
    write(node, conf_dir, false);
    let agent = Agent::ready(node, &["--conf-dir", conf_dir]);
    until("the agent is ready", || agent.get("/readyz").0 == 200);
    let status = node.symroute(&["status"]);
    assert_eq!(status.code, Some(0), "status:\n{}{}", status.stdout, status.stderr);
    let attached: BTreeMap<_, _> = (node.attachments().iter())
        .map(|pod| {
            let text = |value: &Value| value.as_str().expect("a text").to_owned();
            (text(&pod["container"]), text(&pod["addresses"][0]))
        })
        .collect();
    let model = races.model.lock().expect("no thread has panicked").clone();
    assert_eq!(attached, model, "the attachments are those that the runtime believes in");
    assert_all_work(&[layout.flow_to_host()]);
    let (operations, kills) = (&races.operations, &races.kills);
    println!(
        "races: {} operations, {} killed",
        operations.load(Ordering::Relaxed),
        kills.load(Ordering::Relaxed)
    );
    let mut dice = Dice(seed);
    for id in model.keys() {
        races.del(&mut dice, id);
    }
    drop(agent);
    node.await_tools();
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}
