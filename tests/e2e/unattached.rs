//! Pods without an ADD, and pods that ended without a DEL. symroute asks the routing table for the
//! destination of a request, so neither makes a difference.
//!
//! ```text
//!            client 203.0.113.9
//!                    |
//!  +-----------------+-----------------+
//!  |              router               |   a source check on both NICs
//!  +-------+-------------------+-------+
//!        eth0                eth1
//!  +-------+-------------------+-------+
//!  |     node: strict rp_filter        |
//!  +--+-----------+-------------+------+
//!    pod0       pod101         cni0, a bridge: pod 10.244.0.5
//!                              both are behind eth1, and have no rules
//! ```

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::forge::{self, SYN};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::node::Pod;
use crate::lab::proof::Proof;
use crate::lab::traffic::{Proto, Server};
use crate::lab::two_nics::{
    BRIDGED, CLIENT, CLIENT6, NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics,
};
use crate::lab::wire::Wire;

fn settings() -> Value {
    json!({"uplinks": NICS})
}

struct Scene {
    layout: TwoNics,
    _routed: Pod,
    _bridged: Netns,
    _servers: Vec<Server>,
}

fn scene() -> Scene {
    let mut layout = two_nics();
    let routed = layout.pod_behind_eth1(1);
    let bridged = layout.pod_at_bridge();
    for address in BRIDGED {
        layout.router.assign("eth1", address);
    }
    layout.router.check_sources(&NICS);
    let servers = vec![
        Server::start(&routed.ns, Proto::Udp, 8080, "pod101"),
        Server::start(&bridged, Proto::Tcp, 8080, "bridged"),
        Server::start(&bridged, Proto::Udp, 8080, "bridged"),
    ];
    Scene { layout, _routed: routed, _bridged: bridged, _servers: servers }
}

impl Scene {
    /// To both pods, over both families and protocols, by eth1.
    fn flows(&self) -> Vec<Flow<'_>> {
        let mut flows = Vec::new();
        for (address, answer) in [
            ("10.21.0.101", "pod101 203.0.113.9"),
            ("[2001:db8:21::101]", "pod101 2001:db8:9::9"),
            ("10.244.0.5", "bridged 203.0.113.9"),
            ("[2001:db8:244::5]", "bridged 2001:db8:9::9"),
        ] {
            for proto in [Proto::Tcp, Proto::Udp] {
                let name = format!("{address} over {proto:?}");
                let to = format!("{address}:8080");
                flows.push(Flow::new(&name, &self.layout.client, proto, &to, answer));
            }
        }
        flows
    }

    fn assert_all_fail(&self) {
        let flows = self.flows();
        let names: Vec<&str> = flows.iter().map(|flow| flow.name.as_str()).collect();
        assert_only_these_fail(&flows, &names);
    }
}

#[test]
fn reached_since_up() {
    let today = scene();
    let (node, router) = (&today.layout.node, &today.layout.router);
    let (strict, source) = (node.rp_filter_drops(), router.dropped());
    today.assert_all_fail();
    assert!(node.rp_filter_drops() >= strict + 4, "strict rp_filter drops the requests over IPv4");
    assert!(router.dropped() >= source + 4, "the source check drops the replies over IPv6");

    let scene = scene();
    let node = &scene.layout.node;
    let proof = Proof::begin(node, &scene.layout.router);
    node.up(&settings());
    let flows = scene.flows();
    proof.assert_flows_work(&flows, &NICS, flows.len());
    node.down();
    proof.assert_as_before();
}

#[test]
fn reached_while_there_is_another_pod() {
    let scene = scene();
    let layout = &scene.layout;
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.add(&settings(), &layout.pods[0]);
    let flows = scene.flows();
    proof.assert_flows_work(&flows, &NICS, flows.len());
    layout.node.del(&settings(), &layout.pods[0]);
    proof.assert_as_before();
    scene.assert_all_fail();
}

/// Requests by eth1 to these, and what each is bound to.
fn marks(layout: &TwoNics, to: &[SocketAddr]) -> Vec<Option<u32>> {
    let wire = Wire::new(&layout.router, &layout.node);
    let mark = |(to, port): (&SocketAddr, u16)| {
        let client = if to.is_ipv4() { CLIENT } else { CLIENT6 };
        let from = SocketAddr::new(client.parse().expect("an address"), port);
        wire.send("eth1", &[forge::tcp(from, *to, SYN)]);
        layout.node.mark_of(Proto::Tcp, from)
    };
    to.iter().zip(40000..).map(mark).collect()
}

/// NodePorts whose backends are behind either uplink.
fn node_ports(layout: &TwoNics) {
    let mut services = Vec::new();
    for (port, backends) in [
        (30000, ["10.20.0.77:8080", "[2001:db8:20::77]:8080"]),
        (30001, ["10.21.0.77:8080", "[2001:db8:21::77]:8080"]),
    ] {
        for backend in backends {
            services.push(Service {
                frontend: Frontend::NodePort(port),
                proto: Proto::Tcp,
                backend: backend.parse().expect("an address and port"),
                policy: Policy::Local,
            });
        }
    }
    kubeproxy::install(&layout.node.ns, Flavour::Iptables, &services);
}

/// With `host` disabled, only pods are served.
#[test]
fn without_host_only_pods() {
    let at = |address: &str, port| SocketAddr::new(address.parse().expect("an address"), port);
    let pods = [at("10.21.0.101", 8080), at("2001:db8:21::101", 8080), at(BRIDGED[0], 8080)];
    let [node, node6] = [NODE[1], NODE6[1]];
    let others = [at(node, 10250), at(node6, 10250), at(node, 30000), at(node6, 30000)];
    let turning = [at(node6, 30001)];
    for host in [true, false] {
        let scene = scene();
        let layout = &scene.layout;
        node_ports(layout);
        layout.node.up(&json!({"uplinks": NICS, "host": host}));
        assert_eq!(marks(layout, &pods), [Some(0x200); 3], "pods with host {host}");
        layout.node.ns.exec(&["conntrack", "-F"], "");
        let marks = marks(layout, &[&others[..], &turning].concat());
        if host {
            assert_eq!(marks[..4], [Some(0x200); 4]);
            assert!(marks[4].is_some_and(|mark| mark & 0x200 != 0), "{marks:x?}");
        } else {
            // Strict rp_filter may have dropped it; over IPv6 it has passed.
            let bound: Vec<_> = marks.iter().filter(|mark| mark.unwrap_or(0) != 0).collect();
            assert!(bound.is_empty() && marks[1] == Some(0), "{marks:x?}");
        }
        layout.node.down();
    }
}

/// A host outside gets the ended pod's address, and then calls the pods here by a secondary NIC.
#[test]
fn a_pod_that_ended_unseen() {
    const ADDRESSES: [&str; 2] = ["10.77.0.231", "2001:db8:77::231"];
    let mut scene = scene();
    let layout = &mut scene.layout;
    let ends = layout.node.pod("ends", &ADDRESSES);
    for pod in layout.pods.iter().chain([&ends]) {
        layout.node.add(&settings(), pod);
    }
    layout.node.ns.ip("link del eniends");
    drop(ends);
    let elsewhere = layout.router.host("elsewhere", &ADDRESSES);
    let flow = |to: &str, answer| Flow::new(to, &elsewhere, Proto::Tcp, to, answer);
    assert_all_work(&[
        flow(&format!("{}:8080", POD[1]), "pod1 10.77.0.231"),
        flow(&format!("[{}]:8080", POD6[1]), "pod1 2001:db8:77::231"),
        flow(&format!("{}:10250", NODE[1]), "host 10.77.0.231"),
        flow(&format!("[{}]:10250", NODE6[1]), "host 2001:db8:77::231"),
    ]);
    assert_all_work(&[
        flow("10.21.0.101:8080", "pod101 10.77.0.231"),
        flow("[2001:db8:21::101]:8080", "pod101 2001:db8:77::231"),
    ]);
}
