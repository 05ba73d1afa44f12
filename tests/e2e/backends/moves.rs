//! Moves a working node from one backend to another. Meanwhile no packet is lost, and afterwards
//! nothing of the old backend is left.

use super::settings;
use crate::lab::backend::Backend;
use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::load::Load;
use crate::lab::proof::Proof;
use crate::lab::two_nics::{NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};

/// The sequence contains each ordered pair of the three backends.
const WAY: [Backend; 7] = [
    Backend::Nftables,
    Backend::IptablesNft,
    Backend::IptablesLegacy,
    Backend::Nftables,
    Backend::IptablesLegacy,
    Backend::IptablesNft,
    Backend::Nftables,
];

/// Moves a node through `WAY` with `go`. Kept and new connections run all the time through the
/// secondary NIC, to the node and to a pod, over both families.
fn moves(go: impl Fn(&TwoNics, Backend)) {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let (node, address) = (&layout.node, TwoNics::address_behind_eth1(1));
    let proof = Proof::begin(node, &layout.router);
    // The pod that stays. Another pod of the same network asks for the other backend.
    node.add(&settings(WAY[0].name()), &pod);
    let kept = |address: &str, port| Load::kept(&layout.client, address, port);
    let anew = |address: &str, port| Load::anew(&layout.client, address, port);
    let loads = [
        kept(NODE[1], 10250),
        kept(NODE6[1], 10250),
        kept(&address, 8080),
        anew(NODE[1], 10250),
        anew(NODE6[1], 10250),
        anew(&address, 8080),
    ];
    for pair in WAY.windows(2) {
        let what = format!("the move from {} to {}", pair[0].name(), pair[1].name());
        assert_eq!(node.ns.backends(), [pair[0]], "before {what}");
        let capture = Capture::start(&layout.router.ns);
        go(&layout, pair[1]);
        for load in &loads {
            load.assert_goes_on(&what);
        }
        // The kept connections, and at least one new one.
        let flows = assert_replies_symmetric(&capture.stop(), &NICS, true);
        assert!(flows > loads.len(), "{what}: {flows} connections seen both ways");
        assert_eq!(node.ns.backends(), [pair[1]], "after {what}");
        proof.assert_nothing_dropped();
        let status = node.symroute(&["status"]);
        assert_eq!(status.code, Some(0), "after {what}:\n{}", status.stdout);
        assert_eq!(node.attachments().len(), 1, "after {what}");
    }
    drop(loads);
    node.del(&settings(WAY[0].name()), &pod);
    node.down();
    proof.assert_as_before();
}

#[test]
fn by_up() {
    moves(|layout, to| layout.node.up(&settings(to.name())));
}

/// Moves by an ADD of the node's only network. The DEL then finds the new backend.
#[test]
fn by_add() {
    moves(|layout, to| {
        layout.node.add(&settings(to.name()), &layout.pods[1]);
        layout.node.del(&settings(to.name()), &layout.pods[1]);
    });
}

/// A DEL does not depend on the backend of the pod's ADD.
#[test]
fn a_del_with_another_backend() {
    for pair in WAY.windows(2) {
        let layout = two_nics();
        let proof = Proof::begin(&layout.node, &layout.router);
        layout.node.add(&settings(pair[0].name()), &layout.pods[1]);
        layout.node.add(&settings(pair[0].name()), &layout.pods[0]);
        layout.node.del(&settings(pair[1].name()), &layout.pods[1]);
        let there = layout.node.ns.backends();
        assert_eq!(there, [pair[0]], "a DEL with {} changes nothing", pair[1].name());
        layout.node.del(&settings(pair[1].name()), &layout.pods[0]);
        proof.assert_as_before();
    }
}

/// All pods of the node move to the new backend, over both families.
#[test]
fn pods_come_along() {
    let layout = two_nics();
    let proof = Proof::begin(&layout.node, &layout.router);
    for pod in &layout.pods {
        layout.node.add(&settings(WAY[0].name()), pod);
    }
    // The layout's own rules make the pods reachable through eth1. Without them, only symroute
    // does.
    layout.node.ns.ip("rule del pref 1536");
    layout.node.ns.ip6("rule del pref 1536");
    for to in &WAY[1..] {
        layout.node.up(&settings(to.name()));
        for address in [POD[1], POD6[1]] {
            Load::anew(&layout.client, address, 8080).assert_goes_on(to.name());
        }
    }
    layout.node.ns.ip("rule add pref 1536 from 10.21.0.50 lookup 101");
    layout.node.ns.ip6("rule add pref 1536 from 2001:db8:21::50 lookup 101");
    for pod in &layout.pods {
        layout.node.del(&settings(WAY[0].name()), pod);
    }
    layout.node.down();
    proof.assert_as_before();
}
