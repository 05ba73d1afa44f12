//! What other users of iptables and ipset do to symroute's rules and sets.

use super::{VARIANTS, foreign, settings};
use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Pod;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{TwoNics, two_nics};

type Damage = (&'static str, fn(&TwoNics, Backend));

fn one_family(layout: &TwoNics, variant: Backend, v6: bool, arguments: &[&str]) {
    let tool = variant.tool(v6, "");
    layout.node.ns.exec(&[&[tool.as_str(), "-t", "mangle"], arguments].concat(), "");
}

fn ipset(layout: &TwoNics, arguments: &[&str]) {
    layout.node.ns.exec(&[&["ipset"], arguments].concat(), "");
}

/// Damage that the next ADD repairs, whichever pod it is for.
const SHARED: [Damage; 3] = [
    ("the table mangle flushed", |layout, variant| foreign(&layout.node, variant, "-t mangle -F")),
    ("mangle of IPv4 flushed", |layout, variant| one_family(layout, variant, false, &["-F"])),
    ("mangle of IPv6 flushed", |layout, variant| one_family(layout, variant, true, &["-F"])),
];

/// Damage that only a full comparison finds.
const HIDDEN: [Damage; 7] = [
    ("a prefix that is added", |layout, _| {
        ipset(layout, &["add", "symroute-inside4", "192.0.2.0/24"]);
    }),
    ("an address that is added", |layout, _| {
        ipset(layout, &["add", "symroute-hosts6", "2001:db8:21::101"]);
    }),
    ("all sets flushed", |layout, _| ipset(layout, &["flush"])),
    ("a chain flushed", |layout, variant| {
        one_family(layout, variant, false, &["-F", "symroute-forward"]);
    }),
    ("a chain of IPv6 flushed", |layout, variant| {
        one_family(layout, variant, true, &["-F", "symroute-output"]);
    }),
    ("a rule deleted", |layout, variant| {
        one_family(layout, variant, false, &["-D", "symroute-input", "1"]);
    }),
    ("a jump deleted", |layout, variant| {
        one_family(layout, variant, true, &["-D", "FORWARD", "1"]);
    }),
];

/// Does each damage to a node with a pod behind eth1, and checks that `heal` repairs it.
fn assert_heals(damages: &[Damage], heal: impl Fn(&TwoNics, Backend, &Pod)) {
    let mut wrong = Vec::new();
    for variant in VARIANTS {
        let mut layout = two_nics();
        let pod = layout.pod_behind_eth1(1);
        let (node, settings) = (&layout.node, settings(variant.name()));
        let before = Snapshot::take(node);
        for (what, damage) in damages {
            node.add(&settings, &pod);
            let whole = Snapshot::take(node);
            damage(&layout, variant);
            let status = node.symroute(&["status"]);
            if status.code != Some(4) {
                wrong.push(format!("{variant:?}: {what} is not seen:\n{}", status.stdout));
            }
            heal(&layout, variant, &pod);
            let left = whole.difference(&Snapshot::take(node));
            if left.is_empty() {
                let to_pod = layout.flow_to_pod(1, "pod101 203.0.113.9");
                assert_all_work(&[layout.flow_to_host(), to_pod]);
            } else {
                wrong.push(format!("{variant:?}: {what} is not healed:\n{left}"));
                node.up(&settings);
            }
            node.down();
            node.del(&settings, &pod);
            let left = before.difference(&Snapshot::take(node));
            if !left.is_empty() {
                wrong.push(format!("{variant:?}: after {what} there is left:\n{left}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn up_heals() {
    let all = [&SHARED[..], &HIDDEN].concat();
    // `up` leaves a record in the state files, so `down` removes that.
    assert_heals(&all, |layout, variant, _| {
        layout.node.up(&settings(variant.name()));
        layout.node.down();
    });
}

#[test]
fn the_next_add_heals() {
    assert_heals(&SHARED, |layout, variant, _| {
        layout.node.add(&settings(variant.name()), &layout.pods[0]);
        layout.node.del(&settings(variant.name()), &layout.pods[0]);
    });
}

/// An ADD fails with an error where it cannot make a set.
#[test]
fn a_set_of_others_in_our_place() {
    for variant in VARIANTS {
        let layout = two_nics();
        let (node, settings) = (&layout.node, settings(variant.name()));
        // The chain belongs to another program, so it has to stay.
        one_family(&layout, variant, false, &["-A", "FORWARD", "-m", "mark", "--mark", "7"]);
        let before = Snapshot::take(node);
        // The kernel refuses to replace a set that a rule of another program refers to.
        ipset(&layout, &["create", "symroute-hosts4", "hash:net"]);
        let refer = |how: &str| {
            let rule = "FORWARD -m set --match-set symroute-hosts4 src -j ACCEPT".split(' ');
            let arguments: Vec<_> = std::iter::once(how).chain(rule).collect();
            one_family(&layout, variant, false, &arguments);
        };
        refer("-A");
        let ran = node.call(&node.call_of("ADD", &settings, &layout.pods[1]));
        let (_, text) = ran.cni_error();
        assert!(text.contains("symroute-hosts4"), "does not name the set: {text}");
        refer("-D");
        // No rule refers to the set any more: the next ADD replaces it, and the last DEL removes
        // it.
        node.add(&settings, &layout.pods[1]);
        assert_all_work(&[layout.flow_to_host()]);
        node.del(&settings, &layout.pods[1]);
        before.assert_unchanged(&Snapshot::take(node));
    }
}
