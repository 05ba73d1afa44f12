//! Finds the reason why symroute ignores a request.

use super::Packet;
use crate::backend::Marker;
use crate::config::Settings;
use crate::model::{Facts, Rule, is_link_local};
use crate::netlink::route::Way;
use crate::netlink::uapi::RTN_LOCAL;
use crate::plan::Plan;

/// The destination of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Destination<'a> {
    /// The destination before DNAT, which the setting "exclude" applies to.
    pub(super) called: std::net::IpAddr,
    /// Whether DNAT sends the request to a backend outside.
    pub(super) is_remote: bool,
    pub(super) way: Option<&'a Way>,
    /// A rule before symroute's rules that matches packets from the destination before DNAT.
    pub(super) rule: Option<&'a Rule>,
    /// Whether the node reaches the source through an interface that is not an uplink.
    pub(super) source_is_inside: bool,
}

/// Why symroute does not bind the connection of a request; `None` if it does. `packet`: the request after DNAT.
pub(super) fn not_bound(
    packet: &Packet,
    destination: Destination<'_>,
    facts: &Facts,
    settings: &Settings,
    plan: &Plan,
) -> Option<String> {
    if packet.is_of_node() {
        return Some("the node itself sends it, and symroute steers replies".into());
    }
    let name = facts.link_name(packet.link);
    if !plan.uplinks.iter().any(|uplink| uplink.link == packet.link) {
        let why = plan.left_out.iter().find(|left| left.name == name);
        let why = why.map_or_else(String::new, |left| format!(": {}", left.why));
        return Some(format!("{name} is no uplink{why}"));
    }
    let called = destination.called;
    if settings.exclude.iter().any(|net| net.contains(called)) {
        return Some(format!("\"exclude\" has {called}"));
    }
    if is_link_local(packet.from) {
        return Some(format!("{} is link-local", packet.from));
    }
    let by_iptables = plan.marker() != Marker::Nftables;
    // iptables decides on a request before the result of DNAT is known.
    let accepted_as = if by_iptables { called } else { packet.to };
    let is_hairpin = settings.hairpin || facts.hairpins.contains(&accepted_as);
    if destination.source_is_inside && !is_hairpin {
        return Some(format!("{} lies inside, and \"hairpin\" is false", packet.from));
    }
    if facts.left_out.contains(&packet.to) {
        return Some(format!("the pod {} is left out by its annotation", packet.to));
    }
    let is_local = destination.way.is_some_and(|way| way.kind == RTN_LOCAL);
    if let Some(rule) = destination.rule.filter(|_| by_iptables && !is_local) {
        return Some(format!("with iptables, rule {rule} hides that it comes from outside"));
    }
    ((is_local || destination.is_remote) && !settings.host).then(|| "\"host\" is false".to_owned())
}
