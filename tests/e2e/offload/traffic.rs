//! What becomes of the packets of offloaded connections: behind NAT, by uplinks of every kind, when they are too large,
//! when the connection ends. And which connections are never offloaded.

mod bridged;
mod devices;
mod ends;
mod filters;
mod forged;
mod nat;
mod never;
mod packets;

use std::net::IpAddr;

use crate::lab::capture::{Packet, is_local_chatter};
use crate::lab::flowtable::{ENOUGH, Forwarded, is_offloaded, offload};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::talk::{Listening, Talk};

use super::PROTOS;

/// A connection to each of these addresses of the server, by each protocol.
fn begin(client: &Netns, server: &Netns, addresses: &[&str]) -> Vec<Talk> {
    let each = PROTOS.into_iter().flat_map(|proto| addresses.iter().map(move |to| (proto, to)));
    each.map(|(proto, to)| Talk::begin(client, server, proto, to)).collect()
}

/// The same where the client calls other addresses than the server's own, and the port is one of these two.
fn through(client: &Netns, server: (&Netns, [&str; 2], u16), to: ([&str; 2], u16)) -> Vec<Talk> {
    let mut talks = Vec::new();
    for proto in PROTOS {
        for (own, called) in server.1.into_iter().zip(to.0) {
            let listening = Listening::at(server.0, proto, own, server.2);
            let called: IpAddr = called.parse().expect("an address");
            talks.push(Talk::through(client, listening, (called, to.1).into()));
        }
    }
    talks
}

/// All of them, which have begun side by side, come into the flowtable.
fn offload_all(node: &Node, talks: &mut [Talk]) {
    for talk in talks {
        offload(&node.ns, talk);
    }
}

/// How many packets the router saw at these ports, without neighbour discovery.
fn count_by(packets: &[Packet], ports: &[&str]) -> usize {
    let of_a_flow = |packet: &&Packet| {
        ![packet.from, packet.to].into_iter().any(|end| is_local_chatter(end.ip()))
    };
    packets.iter().filter(of_a_flow).filter(|one| ports.contains(&one.port.as_str())).count()
}

/// What both ends say passes no rule.
fn assert_pass_by(forwarded: &Forwarded<'_>, talks: &mut [Talk], what: &str) {
    for talk in talks {
        forwarded.assert_passed_by(talk, what);
    }
}

/// These go on, and are not offloaded. `control` has begun at the same time or later, and is offloaded: by then
/// the others would be, too.
fn assert_never(node: &Node, talks: &mut [Talk], control: &mut [Talk], what: &str) {
    offload_all(node, control);
    for talk in talks {
        for _ in 0..ENOUGH {
            talk.assert_goes_on(what);
        }
        assert!(!is_offloaded(&node.ns, talk), "{what}: {} is offloaded", talk.client());
    }
}
