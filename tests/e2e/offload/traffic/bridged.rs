//! Pods at a bridge of the node, and pods whose hardware address changes.

use std::path::Path;

use crate::lab::flowtable::{Forwarded, kernel_has_flowtables};
use crate::lab::netns::Netns;
use crate::lab::not_run::kernel_lacks;
use crate::lab::proof::Proof;
use crate::lab::two_nics::{BRIDGED, NICS, POD, POD6, TwoNics, two_nics};

use super::super::{assert_by_eth1, settings};
use super::{assert_all_bypass_rules, begin, offload_all};

/// Changes the pod's hardware address and makes the node forget the old one.
fn change_address(layout: &TwoNics, pod: &Netns, device: &str) {
    pod.ip("link set eth0 address 02:04:00:00:00:01");
    layout.node.ns.ip(&format!("neigh flush dev {device}"));
}

/// Offloads connections of a pod at a bridge. With `filtered`, bridged packets pass the IP rules,
/// too.
#[track_caller]
fn pods_at_a_bridge(filtered: bool) {
    if !kernel_has_flowtables() {
        return;
    }
    // `br_netfilter` may be a module, which iptables loads.
    let can_filter = Path::new("/proc/sys/net/bridge").exists();
    if filtered && !can_filter {
        return kernel_lacks("br_netfilter");
    }
    let mut layout = two_nics();
    let pod = layout.pod_at_bridge();
    for address in BRIDGED {
        layout.router.assign("eth1", address);
    }
    layout.router.check_sources(&NICS);
    let node = &layout.node;
    for family in ["ip", "ip6"].into_iter().filter(|_| can_filter) {
        let value = if filtered { "1" } else { "0" };
        node.ns.sysctl(&format!("bridge/bridge-nf-call-{family}tables"), value);
    }
    let forwarded = Forwarded::watch(&node.ns);
    let proof = Proof::begin(node, &layout.router);
    node.up(&settings());
    let mut all = begin(&layout.client, &pod, &BRIDGED);
    offload_all(node, &mut all);
    assert_all_bypass_rules(&forwarded, &mut all, "at a bridge");
    assert_by_eth1(&layout, &mut all, "at a bridge");
    change_address(&layout, &pod, "cni0");
    assert_by_eth1(&layout, &mut all, "another hardware address");
    offload_all(node, &mut all);
    assert_all_bypass_rules(&forwarded, &mut all, "another hardware address");
    proof.assert_nothing_dropped();
    node.down();
    proof.assert_as_before();
}

#[test]
fn at_a_bridge() {
    pods_at_a_bridge(false);
}

#[test]
fn at_a_bridge_whose_frames_pass_the_rules() {
    pods_at_a_bridge(true);
}

#[test]
fn another_hardware_address_behind_a_veth() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let (node, pod) = (&layout.node, &layout.pods[1].ns);
    let forwarded = Forwarded::watch(&node.ns);
    node.up(&settings());
    let mut all = begin(&layout.client, pod, &[POD[1], POD6[1]]);
    offload_all(node, &mut all);
    let gateway = node.ns.mac("enipod1");
    change_address(&layout, pod, "enipod1");
    // The pod's kernel forgets these neighbours with the old address.
    for address in ["169.254.1.1", "fe80::1"] {
        pod.ip(&format!("neigh replace {address} dev eth0 lladdr {gateway} nud permanent"));
    }
    assert_by_eth1(&layout, &mut all, "another hardware address");
    offload_all(node, &mut all);
    assert_all_bypass_rules(&forwarded, &mut all, "another hardware address");
    node.down();
}
