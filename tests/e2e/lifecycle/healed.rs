//! Another program removes or changes symroute's state: the next ADD and `up` restore it.

use super::settings;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Pod;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{POD, TwoNics, two_nics};

/// Damages: what another program does to the node, and how.
type Damage = (&'static str, fn(&TwoNics));

/// Damages that only a full reconcile finds.
const HIDDEN: [Damage; 3] = [
    ("src_valid_mark of eth1 reset", |layout| {
        layout.node.ns.sysctl("ipv4/conf/eth1/src_valid_mark", "0");
    }),
    ("a chain flushed", |layout| layout.node.flush_a_chain()),
    ("a set changed", |layout| layout.node.spoil_a_set()),
];

/// Damages of state that every ADD needs.
const SHARED: [Damage; 2] = [
    ("all rules flushed", |layout| layout.node.flush_all_rules()),
    ("ip rule flush, and the rules of others made again", |layout| {
        layout.node.ns.ip(&format!(
            "rule flush
             rule add pref 32766 lookup main protocol kernel
             rule add pref 32767 lookup default protocol kernel
             rule add pref 512 to {} lookup main
             rule add pref 512 to {} lookup main
             rule add pref 1536 from {} lookup 101",
            POD[0], POD[1], POD[1]
        ));
    }),
];

/// Damages of one uplink's state, found by the ADD of a pod that leaves by it.
const OF_UPLINK: [Damage; 2] = [
    ("table of eth1 flushed", |layout| layout.node.ns.ip("route flush table 47002")),
    ("default route of eth1's table deleted", |layout| {
        layout.node.ns.ip("route del default table 47002");
    }),
];

/// Damages a node whose pod behind eth1 has no ip rule; `heal` has to restore the state.
fn assert_heals(damages: &[Damage], heal: impl Fn(&TwoNics, &Pod)) {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let before = Snapshot::take(&layout.node);
    let mut wrong = Vec::new();
    for (what, damage) in damages {
        layout.node.add(&settings(), &pod);
        damage(&layout);
        let status = layout.node.symroute(&["status"]);
        assert_eq!(status.code, Some(4), "{what} is seen:\n{}", status.stdout);
        heal(&layout, &pod);
        let status = layout.node.symroute(&["status"]);
        if status.code == Some(0) {
            assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
        } else {
            wrong.push(format!("{what} is not healed:\n{}", status.stdout));
        }
        layout.node.del(&settings(), &layout.pods[1]);
        layout.node.del(&settings(), &pod);
        layout.node.down();
        before.assert_unchanged(&Snapshot::take(&layout.node));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn by_up() {
    let all = [&HIDDEN[..], &SHARED, &OF_UPLINK].concat();
    assert_heals(&all, |layout, _| layout.node.up(&settings()));
}

/// The ADD of another pod heals, which leaves by the damaged uplink.
#[test]
fn by_the_next_add() {
    let damages = [&SHARED[..], &OF_UPLINK].concat();
    assert_heals(&damages, |layout, _| layout.node.add(&settings(), &layout.pods[1]));
}

/// The ADD of a pod heals that leaves by eth0 and is reached by eth1.
#[test]
fn by_any_add() {
    assert_heals(&SHARED, |layout, pod| layout.node.add(&settings(), pod));
}

/// Each interface gets its old value back. A value that another program sets meanwhile stays.
#[test]
fn src_valid_mark() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let set = |nic: &str, value: &str| {
        node.ns.sysctl(&format!("ipv4/conf/{nic}/src_valid_mark"), value);
    };
    set("eth0", "1");
    let before = Snapshot::take(node);
    node.add(&settings(), &pod);
    assert_all_work(&[layout.flow_to_host()]);
    node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(node));
    // Another program sets 0, the next reconcile sets 1, and the last pod's DEL sets 0.
    node.add(&settings(), &pod);
    set("eth1", "0");
    node.up(&settings());
    assert_all_work(&[layout.flow_to_host()]);
    node.down();
    node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(node));
    // Another program sets 0, and no reconcile follows.
    node.add(&settings(), &pod);
    set("eth0", "0");
    node.del(&settings(), &pod);
    set("eth0", "1");
    before.assert_unchanged(&Snapshot::take(node));
    // An interface that comes while the pod is there, and one that was ours before a kill.
    node.ns.sysctl("ipv4/conf/default/src_valid_mark", "1");
    node.add(&settings(), &pod);
    node.ns.sysctl("ipv4/conf/default/src_valid_mark", "0");
    node.del(&settings(), &pod);
    before.assert_unchanged(&Snapshot::take(node));
}

/// A value that symroute never writes belongs to another program.
#[test]
fn src_valid_mark_of_another_value() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    node.add(&settings(), &pod);
    node.ns.sysctl("ipv4/conf/eth1/src_valid_mark", "2");
    node.del(&settings(), &pod);
    let value = node.ns.exec(&["cat", "/proc/sys/net/ipv4/conf/eth1/src_valid_mark"], "");
    assert_eq!(value.trim(), "2", "the value that somebody set meanwhile");
}
