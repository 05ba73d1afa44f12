//! Other programs remove symroute's rules and tables.

use super::{Change, Scene, go_on_after};
use crate::lab::flowtable::kernel_has_flowtables;

/// nft commands that remove the rules which put connections into the flowtable.
fn flush_feeding_chains(scene: &Scene) -> String {
    let ns = &scene.layout.node.ns;
    let text = ns.exec(&["nft", "list", "table", "inet", "symroute"], "");
    let mut chain = "";
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if line.contains("flow add @") {
            found.push(format!("flush chain inet symroute {chain}\n"));
        }
    }
    assert!(!found.is_empty(), "rules that offload: {text}");
    found.concat()
}

/// Reloads symroute's table, like a service that saves all rules and loads them again.
fn reload(scene: &Scene) {
    let ns = &scene.layout.node.ns;
    let text = ns.exec(&["nft", "list", "table", "inet", "symroute"], "");
    ns.nft(&format!("delete table inet symroute\n{text}"));
}

const DAMAGE: [Change; 8] = [
    ("the IPv4 rule of eth1 deleted", |scene| scene.layout.node.ns.ip("rule del pref 402")),
    ("the IPv6 rule of eth1 deleted", |scene| scene.layout.node.ns.ip6("rule del pref 402")),
    ("the table of eth1 flushed", |scene| {
        scene.layout.node.ns.ip("route flush table 47002");
        scene.layout.node.ns.ip6("route flush table 47002");
    }),
    ("all rules flushed", |scene| scene.layout.node.ns.nft("flush table inet symroute")),
    ("the rules that offload flushed", |scene| {
        let chains = flush_feeding_chains(scene);
        scene.layout.node.ns.nft(&chains);
    }),
    ("the flowtable deleted", |scene| {
        let chains = flush_feeding_chains(scene);
        scene.layout.node.ns.nft(&format!("{chains}delete flowtable inet symroute flows"));
    }),
    ("nft's own listing loaded", reload),
    ("the table deleted", |scene| scene.layout.node.ns.nft("delete table inet symroute")),
];

#[test]
fn what_others_remove_is_made_anew() {
    if kernel_has_flowtables() {
        go_on_after(&DAMAGE);
    }
}
