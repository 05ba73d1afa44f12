//! What is about a backend itself: which one is chosen, moving from one to another, and what a node
//! has beside the backends that work by iptables.
//!
//! Each test names the backends that it is about, whatever `SYMROUTE_BACKEND` says.

mod chosen;
mod damaged;
mod lock;
mod moves;
mod order;
mod tools;

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::node::{Node, Pod};
use crate::lab::plugin::{Call, Ran};
use crate::lab::two_nics::NICS;

/// Those that work by iptables.
const VARIANTS: [Backend; 2] = [Backend::IptablesNft, Backend::IptablesLegacy];

fn settings(backend: &str) -> Value {
    json!({"uplinks": NICS, "backend": backend})
}

/// Rules of somebody else: arguments of `iptables`, one rule a line, of either family.
fn foreign(node: &Node, variant: Backend, rules: &str) {
    if variant == Backend::IptablesLegacy {
        node.legacy.store(true, Ordering::Relaxed);
    }
    for rule in rules.lines().map(str::trim) {
        node.ns.iptables(variant, rule);
    }
}

/// The code and all the words of a call that has to end in a CNI error.
fn failure(ran: &Ran) -> (u64, String) {
    assert_eq!(ran.code, Some(1), "it fails: {}{}", ran.stdout, ran.stderr);
    let error: Value = serde_json::from_str(&ran.stdout).expect("a CNI error on stdout");
    (error["code"].as_u64().expect("a code"), format!("{}; {}", error["msg"], error["details"]))
}

/// The DEL that a runtime sends that knows no more than the names.
fn bare_del(node: &Node, settings: &Value, pod: &Pod) -> Call {
    Call::cni("DEL", &node.network(settings, None), &pod.id, "", "eth0")
}
