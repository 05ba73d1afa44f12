//! Sums up all packets of a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::Flow;
use super::join::{Actor, Asked, Packet, RP_FILTER, Step};
use super::message::IcmpError;

type Counts<T> = BTreeMap<T, u64>;

/// Sums of all packets of a trace. Interfaces are names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) packets: u64,
    /// Requests by incoming interface.
    pub(crate) came: Counts<String>,
    /// Replies by outgoing interface and routing table; no table if the connection kept its route.
    pub(crate) left: Counts<(String, Option<u32>)>,
    /// Replies that left through another interface than the one on which the request arrived.
    pub(crate) elsewhere: u64,
    /// Packets that the reverse path filter dropped, by incoming interface.
    pub(crate) rp_filter: Counts<String>,
    /// Packets that were dropped for another reason: the sum of the next two.
    pub(crate) dropped: u64,
    /// Packets that a rule or the policy of a chain dropped.
    pub(crate) denied: Counts<Actor>,
    /// Packets that the kernel dropped, by the kernel's reason.
    pub(crate) reasons: Counts<String>,
    /// ICMP errors that the node sends to others than the client, because it could not deliver a
    /// packet of theirs; by receiver.
    pub(crate) undelivered: Counts<IpAddr>,
    /// Packets of which the trace saw no end: no delivery to the node, no departure and no drop.
    pub(crate) lost: u64,
    /// Table and chain of each nftables rule that marked or dropped a packet.
    pub(crate) chains: BTreeSet<(String, String)>,
    /// Index of the interface on which the last request of each client address arrived.
    arrivals: BTreeMap<SocketAddr, u32>,
}

impl Summary {
    pub(crate) fn take(&mut self, flow: &Flow, packet: &Packet, name: &dyn Fn(u32) -> String) {
        self.packets += 1;
        let came = packet.steps.iter().find_map(|step| match step {
            Step::Came { link, .. } => Some(*link),
            _ => None,
        });
        let left = packet.steps.iter().rev().find_map(|step| match step {
            Step::Left { link } => Some(*link),
            _ => None,
        });
        let direction = packet.direction(flow);
        if let Some(link) = came.filter(|_| direction == Direction::Request) {
            *self.came.entry(name(link)).or_default() += 1;
            self.arrivals.insert(packet.headers.sender(), link);
        }
        if let Some(link) = left.filter(|_| direction == Direction::Reply) {
            *self.left.entry((name(link), packet.table())).or_default() += 1;
            let arrived = self.arrivals.get(&packet.now().receiver());
            self.elsewhere += u64::from(arrived.is_some_and(|arrived| *arrived != link));
        }
        if direction == Direction::Error
            && packet.icmp_error() == Some((IcmpError::Undelivered, true))
        {
            *self.undelivered.entry(packet.now().to).or_default() += 1;
        }
        for step in &packet.steps {
            if let Step::Marked { by: Actor::Rule { table, chain, .. }, .. }
            | Step::Denied(Actor::Rule { table, chain, .. }) = step
            {
                self.chains.insert((table.clone(), chain.clone()));
            }
        }
        match packet.steps.last() {
            Some(Step::Dropped { reason }) if reason == RP_FILTER => {
                *self.rp_filter.entry(came.map(name).unwrap_or_default()).or_default() += 1;
            }
            Some(Step::Dropped { reason }) => {
                self.dropped += 1;
                *self.reasons.entry(reason.clone()).or_default() += 1;
            }
            Some(Step::Denied(by)) => {
                self.dropped += 1;
                *self.denied.entry(by.clone()).or_default() += 1;
            }
            _ => self.lost += u64::from(packet.is_lost()),
        }
    }

    /// Whether no packet was dropped, lost or undeliverable, and each reply left where its request
    /// arrived.
    pub(crate) fn is_well(&self) -> bool {
        self.elsewhere == 0
            && self.rp_filter.is_empty()
            && self.dropped == 0
            && self.undelivered.is_empty()
            && self.lost == 0
    }
}

/// What a packet of a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client.
    Request,
    /// To the client.
    Reply,
    /// An ICMP error about a packet of the server.
    Error,
}

impl Packet {
    pub(crate) fn direction(&self, flow: &Flow) -> Direction {
        if flow.is_request(&self.headers) {
            Direction::Request
        } else if self.icmp_error().is_some() && self.now().to != flow.from {
            Direction::Error
        } else {
            Direction::Reply
        }
    }

    /// Routing table of the packet's last route.
    pub(crate) fn table(&self) -> Option<u32> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::Table { asked: Asked::Route, lookup } if lookup.error == 0 => Some(lookup.table),
            _ => None,
        })
    }
}
