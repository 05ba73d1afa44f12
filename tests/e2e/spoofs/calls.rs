//! First packets: to each destination in the name of each source, by each interface.

use std::net::SocketAddr;

use super::scene::{ALL_NICS, FAR, NODE_PORTS, Scene, VIP, VIP_PORT, ip};
use super::{Cell, Place};
use crate::lab::fates::{Fate, Fates};
use crate::lab::forge::{self, SYN};
use crate::lab::two_nics::{BRIDGED, NODE, NODE6, POD, POD6};

type Party = (&'static str, [&'static str; 2], Place);

/// The source of the packet.
const SOURCES: [Party; 19] = [
    ("a stranger", ["198.51.100.66", "2001:db8:66::66"], Place::Outside),
    ("a host at eth0", ["10.20.0.99", "2001:db8:20::99"], Place::Outside),
    ("a host at eth1", ["10.21.0.99", "2001:db8:21::99"], Place::Outside),
    ("a host at eth2", ["10.22.0.99", "2001:db8:22::99"], Place::Outside),
    ("far0", FAR[0], Place::Outside),
    ("far1", FAR[1], Place::Outside),
    ("a Service", VIP, Place::Outside),
    ("pod0", [POD[0], POD6[0]], Place::Inside),
    ("pod1", [POD[1], POD6[1]], Place::Inside),
    ("pod101", ["10.21.0.101", "2001:db8:21::101"], Place::Inside),
    ("the bridge's pod", BRIDGED, Place::Inside),
    ("no pod of the bridge", ["10.244.0.77", "2001:db8:244::77"], Place::Inside),
    ("a blackholed block", ["10.99.1.1", "2001:db8:99:1::1"], Place::Inside),
    ("the node at eth0", [NODE[0], NODE6[0]], Place::Node),
    ("the node at eth1", [NODE[1], NODE6[1]], Place::Node),
    ("the node at eth2", ["10.22.0.10", "2001:db8:22::10"], Place::Node),
    ("localhost", ["127.0.0.1", "::1"], Place::Nowhere),
    ("a multicast group", ["224.0.0.9", "ff02::9"], Place::Nowhere),
    ("no address", ["0.0.0.0", "::"], Place::Nowhere),
];

const DESTINATIONS: [(Party, u16); 17] = [
    (("pod0", [POD[0], POD6[0]], Place::Inside), 8080),
    (("pod1", [POD[1], POD6[1]], Place::Inside), 8080),
    (("pod101", ["10.21.0.101", "2001:db8:21::101"], Place::Inside), 8080),
    (("the bridge's pod", BRIDGED, Place::Inside), 8080),
    (("the node at eth0", [NODE[0], NODE6[0]], Place::Node), 10250),
    (("the node at eth1", [NODE[1], NODE6[1]], Place::Node), 10250),
    (("the node at eth2", ["10.22.0.10", "2001:db8:22::10"], Place::Node), 10250),
    (("the node at the bridge", ["10.244.0.1", "2001:db8:244::1"], Place::Node), 10250),
    (("localhost", ["127.0.0.1", "::1"], Place::Nowhere), 10250),
    (("NodePort of far0", [NODE[1], NODE6[1]], Place::Node), NODE_PORTS[0]),
    (("NodePort of far1", [NODE[1], NODE6[1]], Place::Node), NODE_PORTS[1]),
    (("NodePort of pod1", [NODE[1], NODE6[1]], Place::Node), NODE_PORTS[2]),
    (("the Service", VIP, Place::Node), VIP_PORT),
    (("far0", FAR[0], Place::Outside), 8080),
    (("far1", FAR[1], Place::Outside), 8080),
    (("a host beyond the router", ["198.51.100.7", "2001:db8:77::7"], Place::Outside), 8080),
    (("a host at eth2", ["10.22.0.77", "2001:db8:22::77"], Place::Outside), 8080),
];

/// Ports of clients; each packet begins a connection of its own.
const FIRST_PORT: u16 = 2000;

pub(super) fn fates(scene: &Scene) -> Vec<(Cell, Fate)> {
    let probe = Fates::new(&scene.layout.router, &scene.layout.node);
    let mut fates = Vec::new();
    for (by, port) in scene.ports() {
        let both = [0, 1].into_iter().flat_map(|family| forged(family, &by));
        let (cells, packets): (Vec<_>, Vec<_>) = both.unzip();
        fates.extend(cells.into_iter().zip(probe.send(&port, &ALL_NICS, &packets)));
        // Packets by the next interface have the same ports.
        scene.layout.node.ns.exec(&["conntrack", "-F"], "");
    }
    fates
}

fn forged(family: usize, by: &str) -> Vec<(Cell, Vec<u8>)> {
    let mut forged = Vec::new();
    let mut ports = FIRST_PORT..;
    for (who, sources, from) in SOURCES {
        for ((to, addresses, at), port) in DESTINATIONS {
            let client = ports.next().expect("few packets");
            let source = SocketAddr::new(ip(sources[family]), client);
            let destination = SocketAddr::new(ip(addresses[family]), port);
            let syn = forge::tcp(source, destination, SYN);
            let datagram = forge::udp(source, destination, b"forged");
            for (packet, bytes) in [("SYN", syn), ("UDP", datagram)] {
                let cell = Cell {
                    family,
                    who: who.to_owned(),
                    by: by.to_owned(),
                    to: to.to_owned(),
                    packet,
                    from,
                    at,
                    is_of_a_connection: false,
                };
                forged.push((cell, bytes));
            }
        }
    }
    forged
}
