//! What all packets of a trace say together.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Flow;
use super::join::{Asked, Packet, RP_FILTER, Step};

/// How often something was seen.
type Counts<T> = BTreeMap<T, u64>;

/// What all packets of a trace say together. Interfaces are by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) packets: u64,
    /// Requests, by the interface that they came in by.
    pub(crate) came: Counts<String>,
    /// Replies, by the interface that they left by and the table of the route; none where the
    /// connection has kept its route.
    pub(crate) left: Counts<(String, Option<u32>)>,
    /// Replies that left by another interface than the request came in by.
    pub(crate) elsewhere: u64,
    /// Requests that the reverse path filter dropped, by interface.
    pub(crate) rp_filter: Counts<String>,
    /// Other drops.
    pub(crate) dropped: u64,
    /// Packets that were not seen again behind prerouting, and nothing says why.
    pub(crate) lost: u64,
    /// By which interface the client's requests come.
    arrivals: BTreeMap<SocketAddr, u32>,
}

impl Summary {
    /// Counts a packet.
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
        let is_request = flow.is_request(&packet.headers);
        if let Some(link) = came.filter(|_| is_request) {
            *self.came.entry(name(link)).or_default() += 1;
            self.arrivals.insert(packet.headers.sender(), link);
        }
        if let Some(link) = left.filter(|_| !is_request) {
            *self.left.entry((name(link), packet.table())).or_default() += 1;
            let arrived = self.arrivals.get(&packet.now().receiver());
            self.elsewhere += u64::from(arrived.is_some_and(|arrived| *arrived != link));
        }
        match packet.steps.last() {
            Some(Step::Dropped { reason }) if reason == RP_FILTER => {
                *self.rp_filter.entry(came.map(name).unwrap_or_default()).or_default() += 1;
            }
            Some(Step::Dropped { .. } | Step::Denied(_)) => self.dropped += 1,
            _ => self.lost += u64::from(packet.is_lost()),
        }
    }

    /// Whether each packet went where it should.
    pub(crate) fn is_well(&self) -> bool {
        self.elsewhere == 0 && self.rp_filter.is_empty() && self.dropped == 0 && self.lost == 0
    }
}

impl Packet {
    /// The table of the last route that it was given.
    pub(crate) fn table(&self) -> Option<u32> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::Table { asked: Asked::Route, lookup } if lookup.error == 0 => Some(lookup.table),
            _ => None,
        })
    }
}
