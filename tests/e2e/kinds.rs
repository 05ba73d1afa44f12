//! `auto` and the kinds of interface that not every kernel has. Bond, vlan and ipvlan are NICs. Vrf and
//! dummy are not, nor are their ports. A tunnel with a public address is an uplink.

use std::process::Command;

use serde_json::json;

use crate::discovery::uplinks;
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::not_run::kernel_lacks;
use crate::lab::proof::Proof;
use crate::lab::router::Router;
use crate::lab::traffic::{Proto, Server};

const ETH0: &str = "eth0 1 47001 10.20.0.1, default route in main";

/// A node whose default route is by `eth0`, a macvlan. `wire1` is a veth plugged into eth1.
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

/// Adds an interface, or says that the kernel does not know its kind.
#[track_caller]
pub(crate) fn add(node: &Node, interface: &str) -> bool {
    let command = format!("-n {} link add {interface}", node.ns.name());
    let output = Command::new("ip").args(command.split(' ')).output().expect("start ip");
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("Unknown device type") {
        kernel_lacks(&format!("interface of the kind of {interface}"));
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

/// An ipvlan has the hardware address of its parent.
#[test]
fn an_ipvlan_is_a_nic() {
    let (mut router, node) = layout();
    if !add(&node, "link wire1 name ipvl0 type ipvlan mode l2") {
        return;
    }
    router.assign("eth1", "10.21.0.10");
    router.check_sources(&["eth1"]);
    assert_is_a_nic(router, &node, "ipvl0", "eth1");
}

/// A VLAN's name has a dot, which sysctl spells as a slash.
#[test]
fn a_vlan_is_a_nic() {
    let (router, node) = layout();
    if !add(&node, "link wire1 name eth1.7 type vlan id 7") {
        return;
    }
    let mac = node.ns.mac("wire1");
    router.ns.ip(&format!(
        "addr del 10.21.0.1 dev eth1
         link add link eth1 name tag7 type vlan id 7
         link set tag7 up
         addr add 10.21.0.1 dev tag7
         route add 10.21.0.10 dev tag7
         neigh add 10.21.0.10 dev tag7 lladdr {mac} nud permanent"
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

/// A client at the other end asks by a tunnel over eth0. The node has a public address in it, and no other
/// route to the client than the default route.
fn assert_a_tunnel_is_an_uplink(kind: &str, configure: impl Fn(&Node, &Netns)) {
    const OUTER: &str = "203.0.113.77";
    let (mut router, node) = layout();
    let of = |local, remote| match kind {
        "wireguard" => "type wireguard".to_owned(),
        kind => format!("type {kind} local {local} remote {remote}"),
    };
    if !add(&node, &format!("name tunnel {}", of("10.20.0.10", OUTER))) {
        return;
    }
    router.ns.ip("route add 10.20.0.10 dev eth0");
    let far = router.host("far", &[OUTER]);
    far.ip(&format!("link add name tunnel {}", of(OUTER, "10.20.0.10")));
    configure(&node, &far);
    far.ip("link set tunnel up
         addr add 198.51.100.9/32 dev tunnel
         route add 198.51.100.10 dev tunnel src 198.51.100.9");
    node.ns.ip("addr add 198.51.100.10/32 dev tunnel
         link set tunnel up");
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let flows = [Flow::new("host", &far, Proto::Tcp, "198.51.100.10:10250", "host 198.51.100.9")];
    assert_only_these_fail(&flows, &["host"]);
    assert!(node.rp_filter_drops() > 0, "strict rp_filter drops what comes by the tunnel");
    node.ns.exec(&["conntrack", "-F"], "");
    let proof = Proof::begin(&node, &router);
    node.up(&json!({}));
    assert_eq!(uplinks(&node), [ETH0, "tunnel 2 47002 none, point-to-point"]);
    assert_all_work(&flows);
    proof.assert_nothing_dropped();
    node.down();
    proof.assert_as_before();
}

#[test]
fn a_gre_tunnel_is_an_uplink() {
    assert_a_tunnel_is_an_uplink("gre", |_, _| {});
}

#[test]
fn an_ipip_tunnel_is_an_uplink() {
    assert_a_tunnel_is_an_uplink("ipip", |_, _| {});
}

#[test]
fn a_wireguard_tunnel_is_an_uplink() {
    const PORT: &str = "51820";
    assert_a_tunnel_is_an_uplink("wireguard", |node, far| {
        let ends = [(&node.ns, "10.20.0.10"), (far, "203.0.113.77")];
        let keys = ends.map(|(ns, _)| ns.exec(&["wg", "genkey"], ""));
        for (this, other) in [(0, 1), (1, 0)] {
            let (ns, _) = ends[this];
            let public = ns.exec(&["wg", "pubkey"], &keys[other]);
            let endpoint = format!("{}:{PORT}", ends[other].1);
            let peer = ["peer", public.trim(), "allowed-ips", "0.0.0.0/0", "endpoint", &endpoint];
            let own = ["wg", "set", "tunnel", "listen-port", PORT, "private-key", "/dev/stdin"];
            ns.exec(&[&own[..], &peer[..]].concat(), &keys[this]);
        }
    });
}
