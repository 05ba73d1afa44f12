//! Settings that conflict with another program's state on the node.

use serde_json::{Value, json};

use super::{Start, add, assert_refused, on_a_node};
use crate::agent::plugin_object;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::NICS;

struct Case {
    /// `ip` commands that create the other program's state; `gone` removes it.
    there: &'static str,
    gone: &'static str,
    settings: Value,
    words: &'static [&'static str],
}

/// Cases for any node. In use, their settings are not those of the attached pod.
fn anywhere() -> Vec<Case> {
    let of = |key: &str, value: Value| json!({"uplinks": NICS, key: value});
    vec![
        Case {
            there: "rule add pref 501 from 192.0.2.1 lookup main",
            gone: "rule del pref 501",
            settings: of("rulePriority", json!(500)),
            words: &["\"rulePriority\"", "500 to 503", "at 501", "lookup 254", "for instance 497"],
        },
        Case {
            there: "rule add pref 9000 lookup 48001",
            gone: "rule del pref 9000",
            settings: of("tableBase", json!(48000)),
            words: &["\"tableBase\"", "48000", "48001", "9000", "set tableBase"],
        },
        Case {
            there: "route add 192.0.2.0/24 dev eth0 proto static table 48002",
            gone: "route del 192.0.2.0/24 dev eth0 table 48002",
            settings: of("tableBase", json!(48000)),
            words: &["\"tableBase\"", "48000", "48002", "192.0.2.0/24", "set tableBase"],
        },
        Case {
            there: "rule add pref 9 fwmark 0x20000/0xf0000 lookup 2004",
            gone: "rule del pref 9",
            settings: of("markMask", json!("0x1f0000")),
            words: &["\"markMask\"", "0x1f0000", "0xf0000", "at 9", "lookup 2004", "Cilium's"],
        },
    ]
}

/// Cases for an empty node: conflicts with the defaults, and state that would harm a node in use.
fn while_empty() -> Vec<Case> {
    let defaults = || json!({"uplinks": NICS});
    vec![
        Case {
            there: "rule add pref 401 from 192.0.2.1 lookup main",
            gone: "rule del pref 401",
            settings: defaults(),
            words: &["\"rulePriority\"", "400 to 403", "at 401", "lookup 254", "for instance 499"],
        },
        Case {
            there: "rule add pref 9000 lookup 47001",
            gone: "rule del pref 9000",
            settings: defaults(),
            words: &["\"tableBase\"", "47000", "47001", "9000", "set tableBase"],
        },
        Case {
            there: "route add 192.0.2.0/24 dev eth0 proto static table 47002",
            gone: "route del 192.0.2.0/24 dev eth0 table 47002",
            settings: defaults(),
            words: &["\"tableBase\"", "47000", "47002", "192.0.2.0/24", "set tableBase"],
        },
        Case {
            there: "rule add pref 500 lookup local\nrule del pref 0",
            gone: "rule add pref 0 lookup local\nrule del pref 500",
            settings: defaults(),
            words: &["\"rulePriority\"", "400", "local", "at 500", "move local back to 0"],
        },
        Case {
            // The rule of Cilium's proxies. It leaves mark bits for one uplink, and there are two.
            there: "rule add pref 9 fwmark 0x200/0xf00 lookup 2004",
            gone: "rule del pref 9",
            settings: defaults(),
            words: &["\"markMask\"", "auto", "0xf00", "at 9", "Cilium's", "\"0x3000\" serves one"],
        },
    ]
}

fn refuses(start: Start, cases: &[Case]) {
    on_a_node(start, |layout| {
        for Case { there, gone, settings, words } in cases {
            layout.node.ns.ip(there);
            assert_refused(layout, &[(add(layout, settings), 7, words)]);
            layout.node.ns.ip(gone);
        }
    });
}

#[test]
fn in_the_way_on_an_empty_node() {
    refuses(Start::Empty, &anywhere());
    refuses(Start::Empty, &while_empty());
    println!("neighbour Cilium, two uplinks: refused by name");
}

#[test]
fn in_the_way_on_a_node_in_use() {
    refuses(Start::InUse, &anywhere());
}

/// `up` refuses the same settings with the same words.
#[test]
fn in_the_way_of_up() {
    on_a_node(Start::Empty, |layout| {
        for Case { there, gone, settings, words } in while_empty() {
            layout.node.ns.ip(there);
            let before = Snapshot::take(&layout.node);
            let file = plugin_object(&layout.node, &settings);
            let ran = layout.node.symroute(&["up", "--config", &file]);
            assert_eq!(ran.code, Some(1), "{}", ran.stdout);
            for word in words {
                assert!(ran.stderr.contains(word), "does not say {word}: {}", ran.stderr);
            }
            before.assert_unchanged(&Snapshot::take(&layout.node));
            layout.node.ns.ip(gone);
        }
    });
}
