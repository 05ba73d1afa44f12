//! Changes of settings and NAT, deleted connections, and the end of symroute.

use serde_json::{Value, json};

use super::{CALLED, Keeper, Scene, settings};
use crate::lab::flowtable::{Forwarded, flowtable_devices, forget, kernel_has_flowtables, line_of};
use crate::lab::plugin::Call;
use crate::lab::proof::Proof;
use crate::lab::two_nics::{POD, POD6};

/// The usual settings with another value for one key.
fn with(key: &str, value: Value) -> Value {
    let mut settings = settings();
    settings[key] = value;
    settings
}

/// Each value leads to another state of the node. Connections go on, and are in the flowtable where
/// there is one.
#[test]
fn settings_change() {
    if !kernel_has_flowtables() {
        return;
    }
    let scene = Scene::new();
    let (node, forwarded) = (&scene.layout.node, Forwarded::watch(&scene.layout.node.ns));
    node.up(&with("offload", json!(false)));
    let mut talks = scene.talks();
    for round in 0..2 {
        node.up(&settings());
        scene.offload("eth1", &mut talks, "offload: true");
        for talk in &mut talks {
            forwarded.assert_bypasses_rules(talk, "offload: true");
        }
        node.up(&with("offload", json!(false)));
        assert!(flowtable_devices(&node.ns).is_empty(), "a flowtable without offload");
        scene.assert_at_rules(&talks, "offload: false");
        for talk in &mut talks {
            forwarded.assert_passes_rules(talk, "offload: false");
        }
        scene.assert_goes_by(["eth1"; 2], &mut talks, &format!("offload: false, round {round}"));
    }
    let states = [
        ("hairpin", json!(true)),
        ("markMask", json!("0x3f0000")),
        ("exclude", json!(["198.51.100.0/24"])),
        ("exclude", json!([POD[1], POD6[1]])),
        ("tableBase", json!(9000)),
        ("rulePriority", json!(300)),
    ];
    for (key, value) in states {
        for (what, settings) in [(key, with(key, value)), ("back", settings())] {
            println!("{what}");
            node.up(&settings);
            // Another mask means other marks, so the next request binds a connection again.
            for talk in &mut talks {
                talk.ask().expect("a question");
            }
            scene.assert_goes_by(["eth1"; 2], &mut talks, what);
        }
        scene.offload("eth1", &mut talks, key);
    }
}

/// A second `up`, an agent and `status` have nothing to do here. They leave connections in the
/// flowtable and write nothing.
#[test]
fn what_has_nothing_to_do_flushes_nothing() {
    if !kernel_has_flowtables() {
        return;
    }
    let scene = Scene::new();
    let node = &scene.layout.node;
    node.up(&settings());
    let mut talks = scene.talks();
    scene.offload("eth1", &mut talks, "the begin");
    let file = node.dir.join("network.json");
    let up = Call::tool(&["up", "--config", file.to_str().expect("UTF-8")]);
    let (ran, calls) = node.traced(&up);
    ran.assert_success("up");
    // iptables starts a transaction even where it only reads.
    let ours = calls.iter().filter(|call| !call.of_tool);
    let batches = ours.filter(|call| call.line.contains("NFNL_MSG_BATCH_BEGIN")).count();
    assert_eq!(batches, 0, "transactions of nftables");
    assert!(calls.iter().any(crate::lab::strace::Syscall::is_request), "strace shows what it asks");
    scene.assert_offloaded(&talks, "a second up");
    let keeper = Keeper::begin(node, true);
    scene.assert_offloaded(&talks, "the begin of an agent");
    keeper.follow();
    drop(keeper);
    scene.assert_offloaded(&talks, "the end of an agent");
    node.symroute(&["status"]).assert_success("status");
    scene.assert_goes_by(["eth1"; 2], &mut talks, "all that");
    scene.assert_offloaded(&talks, "all that");
}

#[test]
fn nothing_stays_offloaded_after_down() {
    if !kernel_has_flowtables() {
        return;
    }
    let scene = Scene::new();
    let node = &scene.layout.node;
    let proof = Proof::begin(node, &scene.layout.router);
    let forwarded = Forwarded::watch(&node.ns);
    node.up(&settings());
    let mut talks = scene.talks();
    scene.offload("eth1", &mut talks, "the begin");
    proof.assert_nothing_dropped();
    node.down();
    assert!(flowtable_devices(&node.ns).is_empty(), "a flowtable after down");
    scene.assert_at_rules(&talks, "down");
    // Without the plugin, replies of DNATed connections leave through eth0.
    talks.truncate(4);
    scene.assert_goes_by(["eth1"; 2], &mut talks, "down");
    for talk in &mut talks {
        forwarded.assert_passes_rules(talk, "down");
    }
    node.ns.nft("delete table inet watch");
    proof.assert_as_before();
}

/// After `conntrack -D` the next request starts a new connection for the kernel, which is bound and
/// offloaded.
#[test]
fn a_connection_that_conntrack_forgets_comes_back() {
    if !kernel_has_flowtables() {
        return;
    }
    let scene = Scene::new();
    let node = &scene.layout.node;
    node.up(&settings());
    let mut talks = scene.talks();
    scene.offload("eth1", &mut talks, "the begin");
    for talk in &mut talks {
        forget(&node.ns, talk);
        assert!(!line_of(&node.ns, talk).contains("[OFFLOAD]"), "deleted");
        talk.ask().expect("a question");
    }
    scene.assert_back("eth1", &mut talks, "conntrack -D");
}

/// DNAT changes to another pod. Earlier connections stay with theirs, in the flowtable too.
#[test]
fn new_connections_follow_another_dnat() {
    if !kernel_has_flowtables() {
        return;
    }
    let scene = Scene::new();
    let node = &scene.layout.node;
    node.up(&settings());
    let mut old = scene.talks();
    scene.offload("eth1", &mut old, "the begin");
    let pod = node.pod("next", &["10.244.0.6", "2001:db8:244::6"]);
    node.add(&settings(), &pod);
    scene.dnat(CALLED, ["10.244.0.6", "2001:db8:244::6"]);
    scene.assert_offloaded(&old, "another DNAT");
    let mut new = scene.begin(CALLED, &pod, ["10.244.0.6", "2001:db8:244::6"]);
    scene.offload("eth1", &mut new, "another DNAT");
    scene.assert_back("eth1", &mut old, "another DNAT");
    node.del(&settings(), &pod);
}
