//! An answered connection stays on its uplink, also where its backend lies behind that same uplink.
//!
//! ```text
//!   client 203.0.113.9     far 10.21.0.77
//!          |                    |
//!  +-------+--------------------+------+
//!  |              router               |
//!  +-------+-------------------+-------+
//!        eth0                eth1      NodePort 30001 -> far:8080
//! ```
//!
//! Without the plugin no such connection works, as `remote_backend` shows. With iptables it does
//! not work over IPv4 either.

use std::net::SocketAddr;

use super::{blind_packets, settings};
use crate::lab::backend::Backend;
use crate::lab::forge::{self, SYN};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::talk::{Listening, Talk};
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{CLIENT, NODE, NODE6, TwoNics, two_nics};
use crate::lab::wire::{Seen, Wire};

const FAR: [&str; 2] = ["10.21.0.77", "2001:db8:21::77"];
const NODE_PORT: u16 = 30001;

fn layout() -> (TwoNics, Netns) {
    let mut layout = two_nics();
    let far = layout.router.host("far", &FAR);
    let mut services = Vec::new();
    for backend in FAR {
        let backend = SocketAddr::new(backend.parse().expect("an address"), 8080);
        for proto in [Proto::Tcp, Proto::Udp] {
            let frontend = Frontend::NodePort(NODE_PORT);
            services.push(Service { frontend, proto, backend, policy: Policy::Cluster });
        }
    }
    kubeproxy::install(&layout.node.ns, Flavour::Iptables, &services);
    (layout, far)
}

/// The conntrack mark of a u-turn through eth1: the uplink's id, and bit D.
const TURNS_ROUND: u32 = 0x1200;

/// Asserts that a u-turn through eth1 keeps its mark, whatever blind packets arrive on eth0.
fn assert_u_turn_stays(family: usize, proto: Proto) {
    let (layout, far) = layout();
    let (node, wire) = (&layout.node, Wire::new(&layout.router, &layout.node));
    node.up(&settings());
    let to = SocketAddr::new([NODE[1], NODE6[1]][family].parse().expect("an address"), NODE_PORT);
    for (kind, forge) in blind_packets(proto) {
        let backend = Listening::at(&far, proto, FAR[family], 8080);
        let mut talk = Talk::through(&layout.client, backend, to);
        assert_eq!(node.mark_of(proto, talk.client()), Some(TURNS_ROUND), "before {kind}");
        for _ in 0..3 {
            wire.send("eth0", &forge(talk.client(), to));
            assert_eq!(node.mark_of(proto, talk.client()), Some(TURNS_ROUND), "after {kind}");
            talk.assert_goes_on(kind);
        }
    }
    node.down();
}

#[test]
fn a_u_turn_stays() {
    if Backend::of_run().is_iptables() {
        assert_u_turn_is_dropped();
        return;
    }
    assert_u_turn_stays(0, Proto::Tcp);
    assert_u_turn_stays(0, Proto::Udp);
}

/// With iptables strict `rp_filter` drops the first packet, as without symroute.
fn assert_u_turn_is_dropped() {
    let (layout, _far) = layout();
    let wire = Wire::new(&layout.router, &layout.node);
    let at = |address: &str, port| SocketAddr::new(address.parse().expect("an address"), port);
    let syn = forge::tcp(at(CLIENT, 40000), at(NODE[1], NODE_PORT), SYN);
    let dropped = Seen { passed: 0, strict: 1 };
    assert_eq!(wire.send("eth1", std::slice::from_ref(&syn)), dropped, "without the plugin");
    layout.node.up(&settings());
    assert_eq!(wire.send("eth1", &[syn]), dropped, "with the plugin");
    layout.node.down();
}

#[test]
fn a_u_turn_over_ipv6_stays() {
    assert_u_turn_stays(1, Proto::Tcp);
    assert_u_turn_stays(1, Proto::Udp);
}
