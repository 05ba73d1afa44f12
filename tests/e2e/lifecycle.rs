//! The life of node and pods: calls twice, late, in parallel, or after another program changed
//! symroute's state.

mod damaged;
mod healed;
mod many;
mod networks;
mod parallel;
mod repeated;

use serde_json::{Value, json};

use crate::lab::node::Node;
use crate::lab::plugin::Call;
use crate::lab::two_nics::{NICS, TwoNics};

fn settings() -> Value {
    json!({"uplinks": NICS})
}

/// A call for a pod without a namespace of its own, by its name and addresses.
fn call(layout: &TwoNics, verb: &str, id: &str, addresses: &[&str]) -> Call {
    let ips: Vec<_> = addresses.iter().map(|a| json!({"address": format!("{a}/32")})).collect();
    let result = json!({"cniVersion": "1.0.0", "ips": ips, "dns": {}}).to_string();
    let network = layout.node.network(&settings(), Some(&result));
    Call::cni(verb, &network, id, &layout.pods[0].ns.path(), "eth0")
}

/// Asserts a successful call that prints nothing. A DEL has to be one for any input.
fn assert_silent(node: &Node, call: &Call, what: &str) {
    let ran = node.call(call);
    ran.assert_success(what);
    assert_eq!(ran.stdout, "", "{what} prints nothing");
}
