//! Another program flushes iptables rules on a node where they do the marking.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::agent::{answers, plugin_object};
use crate::lab::agent::{Agent, until};
use crate::lab::backend::Backend;
use crate::lab::two_nics::{NICS, NODE, two_nics};

/// Time limit of a repair that the documents promise.
const PROMISED: Duration = Duration::from_secs(2);

fn assert_heals(backend: Backend, damages: &[&str]) {
    let layout = two_nics();
    let settings = json!({"uplinks": NICS, "backend": backend.name()});
    let file = plugin_object(&layout.node, &settings);
    let agent = Agent::ready(&layout.node, &["--config", &file]);
    let reached = || answers(&layout, NODE[1], 10250);
    assert!(reached());
    // Waits for the turns that symroute's own first changes cause.
    let quiet = || thread::sleep(Duration::from_millis(1500));
    quiet();
    let jumps = || layout.node.ns.mangle(backend).matches("-j symroute-prerouting").count();
    let repairs = || agent.metric("symroute_repairs_total{cause=\"iptables\"}");
    for (at, damage) in damages.iter().enumerate() {
        layout.node.ns.iptables(backend, damage);
        let took = until("the rules are back", || jumps() == 2 && repairs() > at as u64);
        // The promise holds on a machine that is otherwise idle, so a slow repair only prints a
        // line.
        if took > PROMISED {
            println!("SLOW: {took:?} after {damage}");
        }
        until("reached again", reached);
        until("nothing differs", || layout.node.symroute(&["status"]).success);
        quiet();
    }
    // The agent's own repairs must not cause further ones.
    let made = repairs();
    let looks = agent.metric("symroute_looks_total");
    thread::sleep(Duration::from_secs(3));
    assert_eq!(repairs(), made);
    assert!(agent.metric("symroute_looks_total") <= looks + 1, "the agent wakes itself");
    assert_eq!(agent.get("/readyz"), (200, "ready\n".into()));
}

#[test]
fn rules_of_iptables_nft_are_put_back() {
    let jump = "-t mangle -D PREROUTING -j symroute-prerouting";
    assert_heals(Backend::IptablesNft, &["-t mangle -F", jump, "-t mangle -F symroute-in-2"]);
}

#[test]
fn rules_of_iptables_legacy_are_put_back() {
    // The kernel sends no event for changes by iptables-legacy. The agent sees that fewer rules
    // refer to a set.
    let source_2 = "-t mangle -F symroute-source-2";
    assert_heals(Backend::IptablesLegacy, &["-t mangle -F", "-t mangle -F", source_2]);
}
