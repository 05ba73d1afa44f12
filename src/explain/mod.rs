//! Where a request and its reply go on this node, without symroute and with it, and why.
//!
//! The kernel answers the look-ups that it would do itself (`ip_route_input_slow` and
//! `fib_validate_source` of net/ipv4, `ip6_route_input` of net/ipv6). What it does not say is computed from
//! what it was asked: the verdict of the reverse path filter, and which rule chose a table. The marks and the
//! NAT of other programs come from their rules ([`crate::netfilter`]).

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

/// A request as it arrives, or as the node itself sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// Index of the interface that it arrives on; 0 where the node itself sends it.
    pub(crate) link: u32,
    /// `IPPROTO_*` and port, for rules that ask for them. Without a port no DNAT of a Service is found.
    pub(crate) protocol: Option<u8>,
    pub(crate) port: Option<u16>,
    /// The client's port, to find its connection.
    pub(crate) client_port: Option<u16>,
}

impl Packet {
    /// One of no protocol.
    pub(crate) fn plain(from: IpAddr, to: IpAddr, link: u32) -> Self {
        Self { from, to, link, protocol: None, port: None, client_port: None }
    }

    pub(crate) fn is_of_node(&self) -> bool {
        self.link == 0
    }
}

/// What the kernel says of a packet with some mark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Where the request goes; none where the kernel drops it.
    pub(crate) request: Option<Chosen>,
    /// Where the kernel sends what is for the client: what the reverse path filter goes by.
    pub(crate) back: Option<Chosen>,
    /// Where the reply goes. None without a request that is answered here.
    pub(crate) reply: Option<Chosen>,
}

/// A way, and the rule that chose its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) way: Way,
    pub(crate) rule: Option<Rule>,
    /// The hardware address of its router, where the kernel knows it.
    pub(crate) mac: Option<Mac>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The reverse path filter drops it.
    Filtered,
    /// The kernel drops it for another reason: no route, a route that denies, or a source that is an
    /// address of the node.
    Refused,
    /// A rule of netfilter drops it.
    Dropped,
    /// It came in by an uplink, leaves the node by one, and is for nothing here.
    PassesThrough,
    /// A pod or the node has sent it, and it goes this way.
    Leaves(Chosen),
    /// It arrives, and there is no way to send a reply.
    NoReply,
    /// It arrives, and the reply leaves by this way.
    Answered(Chosen),
}

/// How a packet that the node forwards or sends looks on the wire, and whether its answer comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Departure {
    /// Index of the interface that it leaves by.
    pub(crate) link: u32,
    pub(crate) source: IpAddr,
    /// The rule that gave it this source; none where it had it.
    pub(crate) by: Option<String>,
    /// The uplink that has the source as an address, where that is another one.
    pub(crate) owner: Option<u32>,
    /// Whether it leaves by a tunnel, so that no network on the way checks its source.
    pub(crate) is_tunnelled: bool,
    /// Where the reverse path filter drops the answer.
    pub(crate) lost: Option<LostAnswer>,
}

/// An answer that the reverse path filter drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostAnswer {
    pub(crate) link: u32,
    pub(crate) filter: RpFilter,
    /// The way to the host that has answered.
    pub(crate) back: Option<Chosen>,
}

impl Departure {
    /// Whether nothing on the way drops it or its answer.
    pub(crate) fn is_well(&self) -> bool {
        (self.owner.is_none() || self.is_tunnelled) && self.lost.is_none()
    }
}

/// What becomes of a request without symroute, or with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) ending: Ending,
    /// Where the request leaves the node again, with another source or as one of the node's own.
    pub(crate) departure: Option<Departure>,
    /// With symroute: whether its mark is not on the request or its answer when the kernel asks for a route.
    pub(crate) mark_is_lost: bool,
}

impl Side {
    /// Whether the reply leaves by the interface that the request came in by.
    pub(crate) fn is_symmetric(&self, packet: &Packet) -> bool {
        matches!(&self.ending, Ending::Answered(reply) if reply.way.link == packet.link)
    }

    /// Whether nothing is lost on this node, or by a source check on the way.
    pub(crate) fn is_well(&self, packet: &Packet) -> bool {
        let goes = self.is_symmetric(packet) || matches!(self.ending, Ending::Leaves(_));
        goes && self.departure.as_ref().is_none_or(Departure::is_well)
    }
}

/// A request, after the rules of netfilter have seen it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Translated {
    /// DNAT, if any.
    pub(crate) nat: Option<Nat>,
    /// Which outcome this is of how many: a Service may have several backends.
    pub(crate) which: (usize, usize),
    /// Rules that could not be judged.
    pub(crate) unsure: Vec<String>,
    /// The rule that keeps it from being tracked: table and chain.
    pub(crate) untracked_by: Option<String>,
    /// Connections of such requests that conntrack knows at this moment.
    pub(crate) alive: Vec<Connection>,
}

/// What becomes of the packet, by the kernel's answers. `is_inside`: whether an interface leads to pods or
/// the like, and not outside. `is_translated`: whether DNAT has chosen where it goes, so that this node
/// forwards the answer too.
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
