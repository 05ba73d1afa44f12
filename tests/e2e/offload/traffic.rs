//! Packets of offloaded connections: behind NAT, through uplinks of every kind, when they are too
//! large, and when the connection ends. Also the connections that are never offloaded.

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

/// Opens a connection to each of these addresses of the server, for each protocol.
fn begin(client: &Netns, server: &Netns, addresses: &[&str]) -> Vec<Talk> {
    let each = PROTOS.into_iter().flat_map(|proto| addresses.iter().map(move |to| (proto, to)));
    each.map(|(proto, to)| Talk::begin(client, server, proto, to)).collect()
}

/// Opens connections to other addresses than the server's own, for each protocol. `server` and `to`
/// end with a port.
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

/// Waits until connections that began together are all in the flowtable.
fn offload_all(node: &Node, talks: &mut [Talk]) {
    for talk in talks {
        offload(&node.ns, talk);
    }
}

/// Number of packets that the router saw at these ports, without neighbour discovery.
fn count_by(packets: &[Packet], ports: &[&str]) -> usize {
    let of_a_flow = |packet: &&Packet| {
        ![packet.from, packet.to].into_iter().any(|end| is_local_chatter(end.ip()))
    };
    packets.iter().filter(of_a_flow).filter(|one| ports.contains(&one.port.as_str())).count()
}

/// Asserts that no word of either end passes a rule.
fn assert_all_bypass_rules(forwarded: &Forwarded<'_>, talks: &mut [Talk], what: &str) {
    for talk in talks {
        forwarded.assert_bypasses_rules(talk, what);
    }
}

/// Asserts that `talks` go on without being offloaded. `control` began at the same time or later
/// and is offloaded, so the others had time enough.
fn assert_never(node: &Node, talks: &mut [Talk], control: &mut [Talk], what: &str) {
    offload_all(node, control);
    for talk in talks {
        for _ in 0..ENOUGH {
            talk.assert_goes_on(what);
        }
        assert!(!is_offloaded(&node.ns, talk), "{what}: {} is offloaded", talk.client());
    }
}
