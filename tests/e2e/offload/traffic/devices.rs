//! Uplinks of each kind of interface that the flowtable may have to look through.
//!
//! ```text
//!            client 203.0.113.9, 2001:db8:9::9
//!                         |
//!  +----------------------+----------------------+
//!  |                   router                    |
//!  +-------+-----------------------------+-------+
//!        eth0                          eth1, or tag100 on it
//!        10.20.0.10/24                 10.21.0.10/24
//!  +-------+-----------------------------+-------+
//!  |     main: default                 table 101 |   wire1 and the NIC that is made of it
//!  +-------+-----------------------------+-------+
//!       enipod0                       enipod1
//! ```

use std::fmt::Write as _;

use serde_json::json;

use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flowtable::{Forwarded, kernel_has_flowtables};
use crate::lab::netns::Netns;
use crate::lab::node::{Node, Pod};
use crate::lab::proof::Proof;
use crate::lab::router::Router;
use crate::lab::talk::Talk;

use super::{assert_all_bypass_rules, begin, count_by, offload_all};

const CLIENT: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
const POD1: [&str; 2] = ["10.21.0.50", "2001:db8:21::50"];
const POD2: [&str; 2] = ["10.22.0.50", "2001:db8:22::50"];

struct Layout {
    router: Router,
    node: Node,
    client: Netns,
    pod: Pod,
}

/// Makes the layout. The `ip` commands `make` create the NIC on `wire1`, the node's end of eth1.
/// `port` is the router's end of the NIC, if not eth1.
fn layout(make: &str, nic: &str, port: Option<&str>) -> Layout {
    let (mut router, node) = (Router::new(), Node::new("node"));
    router.plug("eth0", &node.ns, "eth0", &["10.20.0.1"]);
    router.plug("eth1", &node.ns, "wire1", &[]);
    node.ns.ip(make);
    node.ns.ip(&format!(
        "link set {nic} up
         addr add 10.20.0.10/24 dev eth0
         addr add 2001:db8:20::10/64 dev eth0 nodad
         addr add 10.21.0.10/24 dev {nic}
         addr add 2001:db8:21::10/64 dev {nic} nodad
         route add default via 10.20.0.1 dev eth0
         route add default via fe80::1 dev eth0
         route add default via 10.21.0.1 dev {nic} table 101
         route add default via fe80::1 dev {nic} table 101"
    ));
    if let Some(port) = port {
        router.ns.ip(&format!("link add link eth1 name {port} type vlan id 100"));
    }
    let port = port.unwrap_or("eth1");
    router.ns.ip(&format!(
        "link set {port} up
         addr replace fe80::1/64 dev {port} nodad
         addr add 10.21.0.1 dev {port}"
    ));
    lead(&router.ns, port, &node, nic, &["10.21.0.10", "2001:db8:21::10", POD1[0], POD1[1]]);
    for address in ["10.20.0.10", "2001:db8:20::10"] {
        router.assign("eth0", address);
    }
    let pod = node.pod("pod1", &POD1);
    let client = router.host("client", &CLIENT);
    router.ns.ip(&format!("neigh add proxy {} dev {port}", CLIENT[1]));
    Layout { router, node, client, pod }
}

/// Makes the router send packets for these addresses to the node's NIC.
fn lead(router: &Netns, port: &str, node: &Node, nic: &str, addresses: &[&str]) {
    let mac = node.ns.mac(nic);
    let mut batch = String::new();
    for address in addresses {
        let _ = writeln!(batch, "route add {address} dev {port}");
        let _ = writeln!(batch, "neigh add {address} dev {port} lladdr {mac} nud permanent");
    }
    router.ip(&batch);
}

/// Asserts that connections through the NIC to its pod are offloaded, and that all their packets
/// use it.
fn assert_offloaded(layout: &Layout, uplinks: &[&str], port: &str) {
    let Layout { router, node, client, pod } = layout;
    let forwarded = Forwarded::watch(&node.ns);
    let proof = Proof::begin(node, router);
    node.up(&json!({"uplinks": uplinks, "offload": true}));
    let mut talks = begin(client, &pod.ns, &POD1);
    offload_all(node, &mut talks);
    assert_by(layout, port, &forwarded, &mut talks);
    proof.assert_nothing_dropped();
    drop(talks);
    node.down();
    proof.assert_as_before();
}

/// Asserts that the words of these connections pass no rule, and use this port of the router alone.
fn assert_by(layout: &Layout, port: &str, forwarded: &Forwarded<'_>, talks: &mut [Talk]) {
    let capture = Capture::start(&layout.router.ns);
    assert_all_bypass_rules(forwarded, talks, port);
    let packets = capture.stop();
    assert_eq!(assert_replies_symmetric(&packets, &[port], true), talks.len(), "by {port}");
    assert_eq!(count_by(&packets, &["eth0"]), 0, "packets by eth0");
}

#[test]
fn a_bond() {
    if kernel_has_flowtables() {
        let make = "link set wire1 down
             link add bond1 type bond mode active-backup miimon 100
             link set wire1 master bond1";
        assert_offloaded(&layout(make, "bond1", None), &["eth0", "bond1"], "eth1");
    }
}

#[test]
fn a_bridge() {
    if kernel_has_flowtables() {
        let make = "link add br1 type bridge
             link set wire1 master br1";
        assert_offloaded(&layout(make, "br1", None), &["eth0", "br1"], "eth1");
    }
}

#[test]
fn a_macvlan() {
    if kernel_has_flowtables() {
        let make = "link add mac1 link wire1 type macvlan mode bridge";
        assert_offloaded(&layout(make, "mac1", None), &["eth0", "mac1"], "eth1");
    }
}

const VLAN: &str = "link add link wire1 name wire1.100 type vlan id 100";

#[test]
fn a_vlan() {
    if kernel_has_flowtables() {
        let layout = layout(VLAN, "wire1.100", Some("tag100"));
        assert_offloaded(&layout, &["eth0", "wire1.100"], "tag100");
    }
}

/// The flowtable then has both interfaces as devices, and matches tagged packets on the untagged
/// one.
#[test]
fn a_vlan_beside_the_interface_below_it() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = layout(VLAN, "wire1.100", Some("tag100"));
    let Layout { router, node, client, pod } = &layout;
    node.ns.ip("addr add 10.22.0.10/24 dev wire1
         addr add 2001:db8:22::10/64 dev wire1 nodad
         route add default via 10.22.0.1 dev wire1 table 102
         route add default via fe80::1 dev wire1 table 102");
    router.ns.ip(&format!(
        "addr add 10.22.0.1 dev eth1
         neigh add proxy {} dev eth1",
        CLIENT[1]
    ));
    lead(&router.ns, "eth1", node, "wire1", &["10.22.0.10", "2001:db8:22::10", POD2[0], POD2[1]]);
    let second = node.pod("pod2", &POD2);
    let forwarded = Forwarded::watch(&node.ns);
    let proof = Proof::begin(node, router);
    node.up(&json!({"uplinks": ["eth0", "wire1", "wire1.100"], "offload": true}));
    let mut tagged = begin(client, &pod.ns, &POD1);
    let mut untagged = begin(client, &second.ns, &POD2);
    offload_all(node, &mut tagged);
    offload_all(node, &mut untagged);
    let capture = Capture::start(&router.ns);
    assert_all_bypass_rules(&forwarded, &mut untagged, "untagged");
    let packets = capture.stop();
    assert_eq!(assert_replies_symmetric(&packets, &["eth1"], true), untagged.len());
    assert_eq!(count_by(&packets, &["eth0", "tag100"]), 0, "packets by another NIC");
    assert_by(&layout, "tag100", &forwarded, &mut tagged);
    proof.assert_nothing_dropped();
    drop((tagged, untagged));
    node.down();
    proof.assert_as_before();
}

/// A client at the other end of a tunnel over eth0 calls a pod.
#[test]
fn a_wireguard_tunnel() {
    const OUTER: &str = "203.0.113.77";
    const FAR: [&str; 2] = ["198.51.100.9", "2001:db8:51::9"];
    if !kernel_has_flowtables() {
        return;
    }
    let mut layout = layout("", "wire1", None);
    let far = layout.router.host("far", &[OUTER]);
    let Layout { router, node, pod, .. } = &layout;
    let ends = [(&node.ns, "10.20.0.10"), (&far, OUTER)];
    let keys = ends.map(|(ns, _)| ns.exec(&["wg", "genkey"], ""));
    for (this, other) in [(0, 1), (1, 0)] {
        let ns = ends[this].0;
        ns.ip("link add tunnel type wireguard");
        let public = ns.exec(&["wg", "pubkey"], &keys[other]);
        let endpoint = format!("{}:51820", ends[other].1);
        let peer = ["peer", public.trim(), "allowed-ips", "0.0.0.0/0,::/0", "endpoint", &endpoint];
        let own = ["wg", "set", "tunnel", "listen-port", "51820", "private-key", "/dev/stdin"];
        ns.exec(&[&own[..], &peer[..]].concat(), &keys[this]);
        ns.ip("link set tunnel up");
    }
    far.ip(&format!(
        "addr add {}/32 dev tunnel
         addr add {}/128 dev tunnel nodad
         route add {} dev tunnel src {}
         route add {} dev tunnel src {}",
        FAR[0], FAR[1], POD1[0], FAR[0], POD1[1], FAR[1]
    ));
    node.ns.ip("addr add 198.51.100.10/32 dev tunnel
         addr add 2001:db8:51::10/128 dev tunnel nodad");
    let forwarded = Forwarded::watch(&node.ns);
    let proof = Proof::begin(node, router);
    node.up(&json!({"uplinks": ["eth0", "tunnel"], "offload": true}));
    let mut talks = begin(&far, &pod.ns, &POD1);
    offload_all(node, &mut talks);
    let capture = Capture::start(&far);
    assert_all_bypass_rules(&forwarded, &mut talks, "by the tunnel");
    assert_eq!(assert_replies_symmetric(&capture.stop(), &["tunnel"], true), talks.len());
    proof.assert_nothing_dropped();
    drop(talks);
    node.down();
    proof.assert_as_before();
}
