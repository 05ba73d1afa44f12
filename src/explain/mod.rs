//! Explains where a request and its reply go on this node, without symroute and with it, and why.
//!
//! The kernel answers the same look-ups that it would do for the packets (`ip_route_input_slow` and
//! `fib_validate_source` of net/ipv4, `ip6_route_input` of net/ipv6). It does not report the verdict of the
//! reverse path filter and the rule that chose a table, so these are computed. The marks and the NAT of other
//! programs come from their rules ([`crate::netfilter`]).

mod answers;
pub(crate) mod ask;
mod flow;
pub(crate) mod grid;
mod not_bound;
pub(crate) mod rules;
pub(crate) mod words;

use std::net::IpAddr;

use crate::model::{Mac, RpFilter, Rule};
use crate::netfilter::walk::Nat;
use crate::netlink::conntrack::Connection;
use crate::netlink::route::Way;
use crate::netlink::uapi::{RTN_LOCAL, RTN_UNICAST};

/// A request that arrives, or that the node itself sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// Index of the interface that the request arrives on; 0 if the node itself sends it.
    pub(crate) link: u32,
    /// `IPPROTO_*`, for rules that match protocol and port. Without a port, no DNAT of a Service is found.
    pub(crate) protocol: Option<u8>,
    pub(crate) port: Option<u16>,
    /// The client's port, which identifies its connection.
    pub(crate) client_port: Option<u16>,
}

impl Packet {
    /// A packet without protocol and ports.
    pub(crate) fn plain(from: IpAddr, to: IpAddr, link: u32) -> Self {
        Self { from, to, link, protocol: None, port: None, client_port: None }
    }

    pub(crate) fn is_of_node(&self) -> bool {
        self.link == 0
    }
}

/// The kernel's look-ups for a packet with some mark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// The route of the request; `None` if the kernel drops it.
    pub(crate) request: Option<Chosen>,
    /// The route to the client, which the reverse path filter uses.
    pub(crate) back: Option<Chosen>,
    /// The route of the reply; `None` if this node sends or forwards no reply.
    pub(crate) reply: Option<Chosen>,
}

/// A route, and the rule that chose its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) way: Way,
    pub(crate) rule: Option<Rule>,
    /// The hardware address of the router, if the kernel knows it.
    pub(crate) mac: Option<Mac>,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The reverse path filter drops it.
    Filtered,
    /// The kernel drops it for another reason: no route, a prohibiting route, or a source that is an address of
    /// the node.
    Refused,
    /// A rule of netfilter drops it.
    Dropped,
    /// It arrives on an uplink, leaves through an uplink, and nothing on this node is its destination.
    PassesThrough,
    /// A pod or the node sends it, and it leaves through this route.
    Leaves(Chosen),
    /// It arrives, and there is no route for the reply.
    NoReply,
    /// It arrives, and the reply leaves through this route.
    Answered(Chosen),
}

/// How a packet leaves the node, and whether its reply gets back in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Departure {
    /// Index of the interface that the packet leaves through.
    pub(crate) link: u32,
    pub(crate) source: IpAddr,
    /// The rule that changed the source; `None` if the source is original.
    pub(crate) by: Option<String>,
    /// Another uplink that has the source as its address.
    pub(crate) owner: Option<u32>,
    /// Whether the packet leaves through a tunnel, so that no network on the path checks its source.
    pub(crate) is_tunnelled: bool,
    /// The reply, if the reverse path filter drops it.
    pub(crate) lost: Option<LostAnswer>,
}

/// A reply that the reverse path filter drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostAnswer {
    pub(crate) link: u32,
    pub(crate) filter: RpFilter,
    /// The route to the host that has replied.
    pub(crate) back: Option<Chosen>,
}

impl Departure {
    /// Whether neither the network nor this node drops the packet or its reply.
    pub(crate) fn is_well(&self) -> bool {
        (self.owner.is_none() || self.is_tunnelled) && self.lost.is_none()
    }
}

/// What happens to a request, either without symroute or with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) ending: Ending,
    /// How the request leaves the node, after a change of its source or if the node itself sends it.
    pub(crate) departure: Option<Departure>,
    /// With symroute: whether request or reply lacks symroute's mark at the routing decision.
    pub(crate) mark_is_lost: bool,
}

impl Side {
    /// Whether the reply leaves through the interface that the request arrived on.
    pub(crate) fn is_symmetric(&self, packet: &Packet) -> bool {
        matches!(&self.ending, Ending::Answered(reply) if reply.way.link == packet.link)
    }

    /// Whether neither this node nor a source check on the path drops the request or the reply.
    pub(crate) fn is_well(&self, packet: &Packet) -> bool {
        let goes = self.is_symmetric(packet) || matches!(self.ending, Ending::Leaves(_));
        goes && self.departure.as_ref().is_none_or(Departure::is_well)
    }
}

/// The effect of netfilter rules on a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Translated {
    /// The DNAT, if any.
    pub(crate) nat: Option<Nat>,
    /// The number of this outcome, and the number of all outcomes. A Service may have several backends.
    pub(crate) which: (usize, usize),
    /// Matches and targets that are not understood.
    pub(crate) unsure: Vec<String>,
    /// Table and chain of the rule that keeps the request from being tracked.
    pub(crate) untracked_by: Option<String>,
    /// Connections in conntrack that match the request.
    pub(crate) alive: Vec<Connection>,
}

/// What happens to a packet, computed from the kernel's answers. `is_inside`: whether an interface leads to
/// pods or the like. `is_translated`: whether DNAT chose the destination, so that this node forwards the reply
/// too.
pub(crate) fn ending(
    packet: &Packet,
    answers: &Answers,
    filter: RpFilter,
    is_translated: bool,
    is_inside: impl Fn(u32) -> bool,
) -> Ending {
    if packet.is_of_node() {
        return answers.request.clone().map_or(Ending::Refused, Ending::Leaves);
    }
    let back = answers.back.as_ref().map(|chosen| chosen.way.link);
    let passes = filter.lets_in(packet.link, back);
    let Some(request) = &answers.request else {
        let is_filtered = packet.from.is_ipv4() && !passes;
        return if is_filtered { Ending::Filtered } else { Ending::Refused };
    };
    let leaves = request.way.kind == RTN_UNICAST && !is_inside(request.way.link);
    match request.way.kind {
        RTN_UNICAST if leaves && is_inside(packet.link) => Ending::Leaves(request.clone()),
        RTN_UNICAST if leaves && !is_translated => Ending::PassesThrough,
        RTN_UNICAST | RTN_LOCAL => answers.reply.clone().map_or(Ending::NoReply, Ending::Answered),
        _ => Ending::Refused,
    }
}
