//! `auto` and the kinds of interface that not every kernel has: bond and vlan are NICs, vrf and
//! dummy are not, and what is in them is none either.

use std::process::Command;

use serde_json::json;

use crate::discovery::uplinks;
use crate::lab::flows::{Flow, assert_only_these_fail};
use crate::lab::node::Node;
use crate::lab::proof::Proof;
use crate::lab::router::Router;
use crate::lab::traffic::{Proto, Server};

const ETH0: &str = "eth0 1 47001 10.20.0.1, default route in main";

/// A node with `eth0`, a macvlan, as the way out, and `wire1`, a veth that is plugged into eth1.
fn layout() -> (Router, Node) {
    let (mut router, node) = (Router::new(), Node::new("node"));
    router.plug("eth0", &node.ns, "wire0", &["10.20.0.1"]);
    router.plug("eth1", &node.ns, "wire1", &["10.21.0.1"]);
    node.ns.ip("link add eth0 link wire0 type macvlan mode bridge
         addr add 10.20.0.10/24 dev eth0
         link set eth0 up
         route add default via 10.20.0.1 dev eth0");
    (router, node)
}

/// Adds an interface, or tells that the kernel does not know its kind.
fn add(node: &Node, interface: &str) -> bool {
    let command = format!("-n {} link add {interface}", node.ns.name());
    let output = Command::new("ip").args(command.split(' ')).output().expect("start ip");
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("Unknown device type") {
        println!("ip link add {interface}: NOT RUN, this kernel has no such kind");
        return false;
    }
    assert!(output.status.success(), "ip {command}: {error}");
    true
}

/// `auto` takes `eth0` and `nic`, and a request that comes in by `nic` is answered there; `port` is
/// what the router calls the other end.
fn assert_is_a_nic(mut router: Router, node: &Node, nic: &str, port: &str) {
    node.ns.ip(&format!(
        "addr add 10.21.0.10/24 dev {nic}
         link set {nic} up
         route add default via 10.21.0.1 dev {nic} table 101"
    ));
    let client = router.host("client", &["203.0.113.9"]);
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let to_host = [Flow::new("host", &client, Proto::Tcp, "10.21.0.10:10250", "host 203.0.113.9")];
    assert_only_these_fail(&to_host, &["host"]);
    node.ns.exec(&["conntrack", "-F"], "");
    let proof = Proof::begin(node, &router);
    node.up(&json!({}));
    let second = format!("{nic} 2 47002 10.21.0.1, default route in table 101");
    assert_eq!(uplinks(node), [ETH0, &second]);
    proof.assert_flows_work(&to_host, &["eth0", port], 1);
    node.down();
    proof.assert_as_before();
}

/// `auto` takes `eth0` alone.
fn assert_eth0_alone(node: &Node) {
    node.up(&json!({}));
    assert_eq!(uplinks(node), [ETH0]);
    node.down();
}

#[test]
fn a_bond_is_a_nic() {
    let (mut router, node) = layout();
    if !add(&node, "bond1 type bond mode active-backup miimon 100") {
        return;
    }
    node.ns.ip("link set wire1 down
         link set wire1 master bond1");
    router.assign("eth1", "10.21.0.10");
    router.check_sources(&["eth1"]);
    assert_is_a_nic(router, &node, "bond1", "eth1");
}

/// Its name has a dot, which sysctl spells in its own way.
#[test]
fn a_vlan_is_a_nic() {
    let (router, node) = layout();
    if !add(&node, "link wire1 name eth1.7 type vlan id 7") {
        return;
    }
    let mac = node.ns.exec(&["cat", "/sys/class/net/wire1/address"], "");
    router.ns.ip(&format!(
        "addr del 10.21.0.1 dev eth1
         link add link eth1 name tag7 type vlan id 7
         link set tag7 up
         addr add 10.21.0.1 dev tag7
         route add 10.21.0.10 dev tag7
         neigh add 10.21.0.10 dev tag7 lladdr {} nud permanent",
        mac.trim()
    ));
    assert_is_a_nic(router, &node, "eth1.7", "tag7");
}

#[test]
fn a_vrf_and_what_is_in_it_are_none() {
    let (_router, node) = layout();
    if !add(&node, "red type vrf table 200") {
        return;
    }
    node.ns.ip("link set red up
         link add eth1 link wire1 type macvlan mode bridge
         link set eth1 master red
         link set eth1 up
         addr add 10.21.0.10/24 dev eth1
         route add default via 10.21.0.1 dev eth1 table 200
         route add default dev red table 201");
    assert_eth0_alone(&node);
}

/// As `NodeLocal` DNS and kube-proxy's IPVS mode make it.
#[test]
fn a_dummy_is_none() {
    let (_router, node) = layout();
    if !add(&node, "nodelocaldns type dummy") {
        return;
    }
    node.ns.ip("link set nodelocaldns up
         addr add 169.254.20.10/32 dev nodelocaldns
         route add default dev nodelocaldns table 200");
    assert_eth0_alone(&node);
}
