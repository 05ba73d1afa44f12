//! The backends themselves: which one symroute chooses, how a node moves from one to another, and
//! what else a node with an iptables backend has.
//!
//! Each test names its backends, whatever `SYMROUTE_BACKEND` says.

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
use crate::lab::plugin::Call;
use crate::lab::two_nics::NICS;

/// The backends that use iptables.
const VARIANTS: [Backend; 2] = [Backend::IptablesNft, Backend::IptablesLegacy];

fn settings(backend: &str) -> Value {
    json!({"uplinks": NICS, "backend": backend})
}

/// Adds rules of another program: arguments of `iptables`, one rule a line, of either family.
fn foreign(node: &Node, variant: Backend, rules: &str) {
    if variant == Backend::IptablesLegacy {
        node.legacy.store(true, Ordering::Relaxed);
    }
    for rule in rules.lines().map(str::trim) {
        node.ns.iptables(variant, rule);
    }
}

/// The DEL of a runtime that knows no more than the names.
fn bare_del(node: &Node, settings: &Value, pod: &Pod) -> Call {
    Call::cni("DEL", &node.network(settings, None), &pod.id, "", "eth0")
}
