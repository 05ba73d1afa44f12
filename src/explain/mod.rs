//! Where a request and its reply go on this node, without symroute and with it, and why.
//!
//! The kernel answers the look-ups that it would do itself (`ip_route_input_slow` and
//! `fib_validate_source` of net/ipv4, `ip6_route_input` of net/ipv6). What it does not say is computed from
//! what it was asked: the verdict of the reverse path filter, and which rule chose a table.

pub(crate) mod ask;
pub(crate) mod rules;
mod words;

use std::net::IpAddr;

use crate::config::Settings;
use crate::model::{Facts, RpFilter, Rule, is_link_local};
use crate::netlink::route::Way;
use crate::netlink::uapi::{RTN_LOCAL, RTN_UNICAST};
use crate::plan::Plan;

/// A request as it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// Index of the interface that it arrives on.
    pub(crate) link: u32,
}

/// What the kernel says of a packet with some mark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Where the request goes; none where the kernel drops it.
    pub(crate) request: Option<Chosen>,
    /// Where the kernel sends what is for the client: what the reverse path filter goes by.
    pub(crate) back: Option<Chosen>,
    /// Where the reply goes. None without a request that is for something inside.
    pub(crate) reply: Option<Chosen>,
}

/// A way, and the rule that chose its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) way: Way,
    pub(crate) rule: Option<Rule>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The reverse path filter drops it.
    Filtered,
    /// The kernel drops it for another reason: no route, a route that denies, or a source that is an
    /// address of the node.
    Refused,
    /// It came in by an uplink, leaves the node by one, and is for nothing here.
    PassesThrough,
    /// A pod has sent it, and it leaves the node by this way.
    Leaves(Chosen),
    /// It arrives, and there is no way to send a reply.
    NoReply,
    /// It arrives, and the reply leaves by this way.
    Answered(Chosen),
}

impl Ending {
    /// Whether the reply leaves by the interface that the request came in by.
    pub(crate) fn is_symmetric(&self, packet: &Packet) -> bool {
        matches!(self, Self::Answered(reply) if reply.way.link == packet.link)
    }

    /// Whether nothing is lost on this node.
    pub(crate) fn is_well(&self, packet: &Packet) -> bool {
        self.is_symmetric(packet) || matches!(self, Self::Leaves(_))
    }
}

/// What becomes of the packet, by the kernel's answers. `is_inside`: whether an interface leads to pods or
/// the like, and not outside.
pub(crate) fn ending(
    packet: &Packet,
    answers: &Answers,
    filter: RpFilter,
    is_inside: impl Fn(u32) -> bool,
) -> Ending {
    let back = answers.back.as_ref().map(|chosen| chosen.way.link);
    // A loose filter asks for any way back.
    let passes = match filter.in_force() {
        1 => back == Some(packet.link),
        2 => back.is_some(),
        _ => true,
    };
    let Some(request) = &answers.request else {
        let is_filtered = packet.from.is_ipv4() && !passes;
        return if is_filtered { Ending::Filtered } else { Ending::Refused };
    };
    match request.way.kind {
        RTN_UNICAST if !is_inside(request.way.link) && is_inside(packet.link) => {
            Ending::Leaves(request.clone())
        }
        RTN_UNICAST if !is_inside(request.way.link) => Ending::PassesThrough,
        RTN_UNICAST | RTN_LOCAL => answers.reply.clone().map_or(Ending::NoReply, Ending::Answered),
        _ => Ending::Refused,
    }
}

/// Why symroute binds no connection of this request; none where it does. `source_is_inside`: whether the
/// node reaches the source by an interface that is no uplink.
pub(crate) fn not_bound(
    packet: &Packet,
    facts: &Facts,
    settings: &Settings,
    plan: &Plan,
    source_is_inside: bool,
    to: Option<&Way>,
) -> Option<String> {
    let name = facts.link_name(packet.link);
    if !plan.uplinks.iter().any(|uplink| uplink.link == packet.link) {
        let why = plan.left_out.iter().find(|left| left.name == name);
        let why = why.map_or_else(String::new, |left| format!(": {}", left.why));
        return Some(format!("{name} is no uplink{why}"));
    }
    if settings.exclude.iter().any(|net| net.contains(packet.to)) {
        return Some(format!("\"exclude\" has {}", packet.to));
    }
    if is_link_local(packet.from) {
        return Some(format!("{} is link-local", packet.from));
    }
    let is_hairpin = settings.hairpin || facts.hairpins.contains(&packet.to);
    if source_is_inside && !is_hairpin {
        return Some(format!("{} lies inside, and \"hairpin\" is false", packet.from));
    }
    if facts.left_out.contains(&packet.to) {
        return Some(format!("the pod {} is left out by its annotation", packet.to));
    }
    let is_local = to.is_some_and(|way| way.kind == RTN_LOCAL);
    (is_local && !settings.host).then(|| "\"host\" is false".to_owned())
}
