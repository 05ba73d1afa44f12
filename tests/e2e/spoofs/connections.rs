//! Packets into existing connections, by each interface: blind ones in the name of the peer, replies in
//! the name of the node's end, ICMP errors of any host.

use std::net::SocketAddr;

use super::scene::{ALL_NICS, FAR, NODE_PORTS, Scene, ip};
use super::{Cell, Place};
use crate::lab::fates::{Fate, Fates};
use crate::lab::forge::{self, ACK, Complaint, RST, SYN};
use crate::lab::talk::{Listening, Talk};
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{CLIENT, CLIENT6, NODE, NODE6, POD, POD6};

/// A connection, and its ends as hosts outside see them.
struct Known {
    name: &'static str,
    proto: Proto,
    talk: Talk,
    ours: SocketAddr,
    peer: SocketAddr,
    /// The place of the node's end.
    at: Place,
}

/// Senders of ICMP errors.
const COMPLAINERS: [(&str, [&str; 2], Place); 5] = [
    ("a stranger", ["198.51.100.66", "2001:db8:66::66"], Place::Outside),
    ("pod0", [POD[0], POD6[0]], Place::Inside),
    ("pod1", [POD[1], POD6[1]], Place::Inside),
    ("the node at eth1", [NODE[1], NODE6[1]], Place::Node),
    ("localhost", ["127.0.0.1", "::1"], Place::Nowhere),
];

/// Opens one connection of each kind. They work without the plugin, too.
fn connections(scene: &Scene, family: usize, proto: Proto) -> Vec<Known> {
    let layout = &scene.layout;
    let (client, node) = (&layout.client, &layout.node.ns);
    let mut known = Vec::new();
    let called = [
        ("client to pod0", &layout.pods[0].ns, [POD[0], POD6[0]], Place::Inside),
        ("client to pod1", &layout.pods[1].ns, [POD[1], POD6[1]], Place::Inside),
        ("client to the node at eth0", node, [NODE[0], NODE6[0]], Place::Node),
    ];
    for (name, server, address, at) in called {
        let talk = Talk::begin(client, server, proto, address[family]);
        let (ours, peer) = (talk.server(), talk.client());
        known.push(Known { name, proto, talk, ours, peer, at });
    }
    let address = [CLIENT, CLIENT6][family];
    let talk = Talk::begin(&layout.pods[1].ns, client, proto, address);
    let (ours, peer) = (talk.client(), talk.server());
    known.push(Known { name: "pod1 to client", proto, talk, ours, peer, at: Place::Inside });
    if proto == Proto::Udp {
        let listening = Listening::at(client, proto, address, 5353);
        let to = listening.address();
        let talk = Talk::through(&layout.pods[0].ns, listening, to);
        let (ours, peer) = (talk.client_as_seen(), talk.server());
        let name = "pod0 to client, masqueraded";
        known.push(Known { name, proto, talk, ours, peer, at: Place::Inside });
    }
    let listening = Listening::at(&scene.far[0], proto, FAR[0][family], 8080);
    let ours = SocketAddr::new(ip([NODE[0], NODE6[0]][family]), NODE_PORTS[0]);
    let talk = Talk::through(client, listening, ours);
    let (peer, name) = (talk.client(), "client to NodePort of far0");
    known.push(Known { name, proto, talk, ours, peer, at: Place::Node });
    known
}

fn forged(known: &Known, by: &str) -> Vec<(Cell, Vec<Vec<u8>>)> {
    let Known { name, proto, ours, peer, at, .. } = known;
    let family = usize::from(ours.is_ipv6());
    let mut forged = Vec::new();
    let mut push = |who: &str, from: Place, packet, bytes| {
        let cell = Cell {
            family,
            who: who.to_owned(),
            by: by.to_owned(),
            to: (*name).to_owned(),
            packet,
            from,
            at: *at,
            is_of_a_connection: true,
        };
        forged.push((cell, bytes));
    };
    if *proto == Proto::Tcp {
        let blind = [("SYN", SYN), ("SYN|ACK", SYN | ACK), ("ACK", ACK), ("RST", RST)];
        for (packet, flags) in blind {
            push("its peer", Place::Outside, packet, forge::all_kinds_of_tcp(*peer, *ours, flags));
        }
        for (packet, flags) in [("SYN|ACK", SYN | ACK), ("RST|ACK", RST | ACK)] {
            push("our end", *at, packet, forge::all_kinds_of_tcp(*ours, *peer, flags));
        }
    } else {
        push("its peer", Place::Outside, "UDP", vec![forge::udp(*peer, *ours, b"forged")]);
        push("our end", *at, "UDP", vec![forge::udp(*ours, *peer, b"forged")]);
    }
    let about = match proto {
        Proto::Tcp => forge::tcp(*ours, *peer, ACK),
        Proto::Udp => forge::udp(*ours, *peer, b"what was sent"),
    };
    let complainers = COMPLAINERS.map(|(who, addresses, from)| (who, ip(addresses[family]), from));
    for (who, source, from) in
        complainers.into_iter().chain([("its peer", peer.ip(), Place::Outside)])
    {
        let error = forge::icmp_error(source, Complaint::Unreachable, &about);
        push(who, from, "ICMP error", vec![error]);
    }
    forged
}

/// Asserts that each connection goes on after all forged packets, by the same NIC.
pub(super) fn fates(scene: &Scene) -> Vec<(Cell, Fate)> {
    let node = &scene.layout.node;
    let probe = Fates::new(&scene.layout.router, node);
    let mut all = Vec::new();
    for (family, proto) in [(0, Proto::Tcp), (0, Proto::Udp), (1, Proto::Tcp), (1, Proto::Udp)] {
        for known in connections(scene, family, proto) {
            let mark = node.mark_of(proto, known.talk.client());
            all.push((known, mark));
        }
    }
    let mut fates = Vec::new();
    for (by, port) in scene.ports() {
        let packets = all.iter().flat_map(|(known, _)| forged(known, &by));
        let (cells, packets): (Vec<_>, Vec<_>) = packets.unzip();
        fates.extend(cells.into_iter().zip(probe.send_groups(&port, &ALL_NICS, &packets)));
        for (Known { name, proto, talk, .. }, mark) in &mut all {
            let what = format!("{name}, {proto:?}, after what came by {by}");
            talk.assert_goes_on(&what);
            assert_eq!(node.mark_of(*proto, talk.client()), *mark, "{what}");
        }
    }
    fates
}
