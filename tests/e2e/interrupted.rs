//! A step that fails leaves nothing of ours behind; a kill between any two steps is healed by the
//! next ADD, DEL or `up`.
//!
//! Each run is made once as it is, to list its system calls, and then once for every call of
//! interest. At that call strace lets the kernel refuse it, or kills the program.

mod kills;
mod others;
mod refusals;

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::lab::flows::assert_all_work;
use crate::lab::node::{Node, Pod};
use crate::lab::plugin::{Call, Ran};
use crate::lab::snapshot::Snapshot;
use crate::lab::strace::{Blow, Syscall};
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

/// A node with one pod to attach, and a snapshot from before.
struct Scene {
    layout: TwoNics,
    pod: Pod,
    before: Snapshot,
}

impl Scene {
    fn new() -> Self {
        let mut layout = two_nics();
        let pod = layout.pod_behind_eth1(1);
        let before = Snapshot::take(&layout.node);
        Self { layout, pod, before }
    }

    fn node(&self) -> &Node {
        &self.layout.node
    }

    /// Without lines for the log, which would be steps of their own.
    fn settings(&self) -> Value {
        json!({"uplinks": NICS, "log": {"level": "off", "file": self.node().log()}})
    }

    fn call(&self, verb: &str) -> Call {
        self.node().call_of(verb, &self.settings(), &self.pod)
    }

    /// The DEL that containerd sends for a pod that it no longer knows.
    fn bare_del(&self) -> Call {
        let network = self.node().network(&self.settings(), None);
        Call::cni("DEL", &network, &self.pod.id, "", "eth0")
    }

    fn add(&self) {
        self.node().add(&self.settings(), &self.pod);
    }

    fn up(&self) {
        self.node().up(&self.settings());
    }

    /// The node serves the host and the pod, and says so.
    fn assert_served(&self) {
        let host = self.layout.flow_to_host();
        assert_all_work(&[host, self.layout.flow_to_pod(1, "pod101 203.0.113.9")]);
        let status = self.node().symroute(&["status"]);
        assert_eq!(status.code, Some(0), "status:\n{}{}", status.stdout, status.stderr);
    }

    fn assert_host_is_served(&self) {
        assert_all_work(&[self.layout.flow_to_host()]);
    }

    /// Lists the calls of interest in a run; `reset` then restores the node.
    fn steps(&self, call: &Call, of_interest: impl Fn(&Syscall) -> bool) -> Vec<Syscall> {
        let (ran, calls) = self.node().traced(call);
        ran.assert_success("the run without a blow");
        let main = calls.iter().position(|call| call.name == "sigaltstack").unwrap_or(0);
        let steps: Vec<_> = calls
            .into_iter()
            .skip(main)
            .filter(|step| !step.of_tool && of_interest(step))
            .collect();
        assert!(!steps.is_empty(), "the run has steps");
        steps
    }

    /// What is left on the node that was not there before.
    fn leftovers(&self) -> String {
        self.before.difference(&Snapshot::take(self.node()))
    }

    fn strike(&self, call: &Call, at: &Syscall, blow: Blow) -> Ran {
        self.node().struck(call, at, blow)
    }
}

/// `symroutectl up` with the scene's settings.
fn up_call(scene: &Scene) -> Call {
    let file = scene.node().dir.join("network.json");
    let network = scene.node().network(&scene.settings(), None);
    std::fs::write(&file, network).expect("write the configuration");
    Call::tool(&["up", "--config", file.to_str().expect("UTF-8")])
}

/// What went wrong at which step.
#[derive(Default)]
struct Findings(String, usize);

impl Findings {
    fn note(&mut self, at: &Syscall, what: &str) {
        if !what.is_empty() {
            let line: String = at.line.chars().take(160).collect();
            let _ = writeln!(self.0, "at {} {}: {line}\n{}", at.name, at.nth, what.trim_end());
            self.1 += 1;
        }
    }

    fn assert_none(&self, steps: usize) {
        println!("points walked: {steps}");
        assert!(self.1 == 0, "{} of {steps} steps:\n{}", self.1, self.0);
    }
}
