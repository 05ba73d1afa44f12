//! An answered connection stays on its uplink, whatever arrives on another NIC with its client's
//! source address.
//!
//! ```text
//!            client 203.0.113.9
//!                    |
//!  +-----------------+-----------------+
//!  |              router               |   sends blind packets with the client's source by the
//!  +-------+-------------------+-------+   NIC that the connection does not use
//!        eth0                eth1
//!  +-------+-------------------+-------+
//!  |     node: strict rp_filter        |
//!  +-------+-------------------+-------+
//!        pod0                pod1, which sends a reply that nobody has asked for
//! ```
//!
//! Without the plugin, strict `rp_filter` drops these packets, and over IPv6 they change nothing.

mod moved;
mod uturn;

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::lab::capture::{Capture, Packet};
use crate::lab::forge::{self, ACK, Complaint, FIN, RST, SYN};
use crate::lab::netns::Netns;
use crate::lab::talk::Talk;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};
use crate::lab::wire::Wire;

/// An address that no host of the lab has. It lies outside for every node.
const STRANGER: &str = "198.51.100.66";
const STRANGER6: &str = "2001:db8:66::66";

fn settings() -> Value {
    json!({"uplinks": NICS})
}

/// The conntrack mark of a connection that is bound to a NIC.
fn bound_to(nic: usize) -> u32 {
    [0x100, 0x200][nic]
}

/// Forges packets from the client (first address) to the server (second address).
type Forge = fn(SocketAddr, SocketAddr) -> Vec<Vec<u8>>;

/// Packets that a sender can forge without having seen anything of the connection.
fn blind_packets(proto: Proto) -> Vec<(&'static str, Forge)> {
    match proto {
        Proto::Tcp => [&BLIND_TCP[..], &[ERROR]].concat(),
        Proto::Udp => vec![("a datagram", |from, to| vec![forge::udp(from, to, b"blind")]), ERROR],
    }
}

const BLIND_TCP: [(&str, Forge); 8] = [
    ("SYN", |from, to| vec![forge::tcp(from, to, SYN)]),
    ("SYN|ACK", |from, to| vec![forge::tcp(from, to, SYN | ACK)]),
    ("ACK", |from, to| vec![forge::tcp(from, to, ACK)]),
    ("RST", |from, to| vec![forge::tcp(from, to, RST)]),
    ("FIN|ACK", |from, to| vec![forge::tcp(from, to, FIN | ACK)]),
    ("no flags", |from, to| vec![forge::tcp(from, to, 0)]),
    ("64 random ACKs", |from, to| (0..64).map(|_| forge::tcp(from, to, ACK)).collect()),
    ("a fragment", |from, to| vec![forge::fragment(from, to)]),
];

const ERROR: (&str, Forge) = ("an ICMP error", |from, to| {
    let stranger = if from.is_ipv4() { STRANGER } else { STRANGER6 };
    let about = forge::tcp(to, from, ACK);
    vec![forge::icmp_error(stranger.parse().expect("an address"), Complaint::Unreachable, &about)]
});

/// Forged packets that a test may send with `nf_conntrack_tcp_be_liberal`, which some nodes need.
/// Without RST and FIN: conntrack believes them then, and ends the connection even without
/// symroute.
fn blind_packets_but_rst_and_fin() -> Vec<(&'static str, Forge)> {
    BLIND_TCP.into_iter().filter(|(name, _)| !["RST", "FIN|ACK"].contains(name)).collect()
}

/// Replies of the connection that the router has received from the node on this NIC.
fn replies_by<'a>(packets: &'a [Packet], nic: &str, talk: &Talk) -> Vec<&'a Packet> {
    let is_reply = |packet: &&Packet| packet.port == nic && packet.to == talk.client();
    packets.iter().filter(|packet| is_reply(packet) && !packet.outgoing).collect()
}

/// Asserts that a connection to `address`, reached through `home`, survives each of these packets
/// on the other NIC. No reply may leave through that NIC.
fn assert_stays(
    layout: &TwoNics,
    (server, address, home): (&Netns, &str, usize),
    proto: Proto,
    (kinds, mark): (&[(&str, Forge)], u32),
) {
    let (node, router) = (&layout.node, &layout.router);
    let (wire, other) = (Wire::new(router, node), NICS[1 - home]);
    // An earlier connection may have had the same port.
    node.ns.exec(&["conntrack", "-F"], "");
    for (kind, forge) in kinds {
        let mut talk = Talk::begin(&layout.client, server, proto, address);
        assert_eq!(node.mark_of(proto, talk.client()), Some(mark), "before {kind}");
        let capture = Capture::start(&router.ns);
        wire.send(other, &forge(talk.client(), talk.server()));
        assert_eq!(node.mark_of(proto, talk.client()), Some(mark), "after {kind}");
        talk.assert_goes_on(kind);
        let packets = capture.stop();
        assert!(!replies_by(&packets, NICS[home], &talk).is_empty(), "replies seen after {kind}");
        let astray = replies_by(&packets, other, &talk);
        let list: Vec<String> = astray.iter().map(ToString::to_string).collect();
        assert!(list.is_empty(), "seen by the other network after {kind}:\n{}", list.join("\n"));
    }
}

fn pods_connections_stay(proto: Proto, pods: [&str; 2], kinds: &[(&str, Forge)], sysctls: &[&str]) {
    for plugin in [false, true] {
        let layout = two_nics();
        if plugin {
            layout.pods.iter().for_each(|pod| layout.node.add(&settings(), pod));
        }
        for sysctl in sysctls {
            layout.node.ns.sysctl(sysctl, "1");
        }
        for home in [0, 1] {
            let mark = if plugin { bound_to(home) } else { 0 };
            let server = (&layout.pods[home].ns, pods[home], home);
            assert_stays(&layout, server, proto, (kinds, mark));
        }
    }
}

#[test]
fn tcp() {
    pods_connections_stay(Proto::Tcp, POD, &blind_packets(Proto::Tcp), &[]);
}

#[test]
fn tcp_over_ipv6() {
    pods_connections_stay(Proto::Tcp, POD6, &blind_packets(Proto::Tcp), &[]);
}

#[test]
fn tcp_where_conntrack_is_liberal() {
    let sysctl = ["netfilter/nf_conntrack_tcp_be_liberal"];
    pods_connections_stay(Proto::Tcp, POD, &blind_packets_but_rst_and_fin(), &sysctl);
    pods_connections_stay(Proto::Tcp, POD6, &blind_packets_but_rst_and_fin(), &sysctl);
}

#[test]
fn udp() {
    pods_connections_stay(Proto::Udp, POD, &blind_packets(Proto::Udp), &[]);
}

#[test]
fn udp_over_ipv6() {
    pods_connections_stay(Proto::Udp, POD6, &blind_packets(Proto::Udp), &[]);
}

/// Connections to the node's own sockets do not work without the plugin, so there is no baseline.
#[test]
fn the_nodes_own() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&settings());
    for address in [NODE[1], NODE6[1]] {
        for proto in [Proto::Tcp, Proto::Udp] {
            let (server, kinds) = ((&node.ns, address, 1), blind_packets(proto));
            assert_stays(&layout, server, proto, (&kinds, bound_to(1)));
        }
    }
    node.down();
}
