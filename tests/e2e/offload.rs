//! `"offload": true`: bound connections in a flowtable. Their packets pass no rule, and still leave
//! through the uplink that they arrived on.

mod changes;
mod seen;
mod traffic;

use serde_json::{Value, json};

use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flowtable::{Forwarded, is_offloaded, kernel_has_flowtables, offload};
use crate::lab::netns::Netns;
use crate::lab::proof::Proof;
use crate::lab::talk::Talk;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{NICS, POD, POD6, TwoNics, two_nics};

const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];

fn settings() -> Value {
    json!({"uplinks": NICS, "offload": true})
}

/// Opens a connection through eth1 to a pod behind it, for each protocol and family.
fn talks(client: &Netns, pod: &Netns) -> Vec<Talk> {
    let each = PROTOS.into_iter().flat_map(|proto| [(proto, POD[1]), (proto, POD6[1])]);
    each.map(|(proto, address)| Talk::begin(client, pod, proto, address)).collect()
}

/// Opens connections on a node with the plugin and waits until they are offloaded.
fn offloaded(layout: &TwoNics) -> Vec<Talk> {
    let mut all = talks(&layout.client, &layout.pods[1].ns);
    for talk in &mut all {
        offload(&layout.node.ns, talk);
    }
    all
}

/// Asserts that all packets of the connections use eth1, in both directions.
fn assert_by_eth1(layout: &TwoNics, talks: &mut [Talk], what: &str) {
    let capture = Capture::start(&layout.router.ns);
    for talk in &mut *talks {
        talk.assert_goes_on(what);
    }
    let packets = capture.stop();
    let count = assert_replies_symmetric(&packets, &NICS, true);
    assert_eq!(count, talks.len(), "{what}: connections with packets both ways");
    let by_eth0 = packets.iter().filter(|packet| packet.port == "eth0").count();
    assert_eq!(by_eth0, 0, "{what}: packets by eth0");
}

#[test]
fn packets_of_offloaded_connections_pass_no_rule_and_leave_by_their_uplink() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    let forwarded = Forwarded::watch(&node.ns);
    let proof = Proof::begin(node, &layout.router);
    node.add(&json!({"uplinks": NICS}), &layout.pods[1]);
    for talk in &mut talks(&layout.client, &layout.pods[1].ns) {
        forwarded.assert_passes_rules(talk, "without offload");
        assert!(!is_offloaded(&node.ns, talk));
    }
    node.del(&json!({"uplinks": NICS}), &layout.pods[1]);
    node.add(&settings(), &layout.pods[1]);
    let mut all = offloaded(&layout);
    for talk in &mut all {
        forwarded.assert_bypasses_rules(talk, "offloaded");
    }
    assert_by_eth1(&layout, &mut all, "offloaded");
    proof.assert_nothing_dropped();
    node.del(&settings(), &layout.pods[1]);
    proof.assert_as_before();
}
