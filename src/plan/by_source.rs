//! Rules of a pod by its own addresses. Packets of a socket that is bound to an address leave through the
//! interface with that address. Look-ups for RDMA get the same answer.
//!
//! ```text
//! P+3  fwmark 0/FIELD to NETWORK    goto P+5                   networks behind an uplink
//! P+4  fwmark 0/FIELD from ADDRESS  lookup main                networks inside, without default routes
//! P+5  fwmark 0/FIELD from ADDRESS  lookup the uplink's table
//! ```
//! Without the first two, replies to the pod's own containers behind a bridge would leave through an uplink.
//! Strict `rp_filter` would drop the requests of those containers.
//!
//! A family has none of these rules if an uplink carries it without an address. Packets that leave through that
//! uplink have the address of another one. TCP over IPv4 repeats its look-up with that address, and strict
//! `rp_filter` looks up the reverse path with it. So an address does not identify an uplink there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::prefixes::{Prefixes, any_within};
use super::uplinks::has_address;
use super::{GatewaySource, Uplink, own_addresses};
use crate::config::Settings;
use crate::model::{Action, Facts, Family, Route, Rule, is_link_local};
use crate::names;
use crate::netlink::uapi::{RT_TABLE_MAIN, RTPROT_KERNEL};

/// `suppress_prefixlength` that ignores default routes.
const NO_DEFAULT: u32 = 0;

/// Rules by the pod's own addresses, the targets of `goto` first.
pub(super) fn rules(facts: &Facts, settings: &Settings, uplinks: &[Uplink]) -> Vec<Rule> {
    let at = settings.rules();
    let by_link: BTreeMap<u32, &Uplink> = uplinks.iter().map(|u| (u.link, u)).collect();
    let links: BTreeSet<u32> = by_link.keys().copied().collect();
    let own = addresses(facts, settings, uplinks, &links);
    let rule = |ip: IpAddr, priority, action| Rule {
        // Only unmarked packets match. A bound packet follows its mark alone, and main if its uplink has no
        // route.
        mark: Some(settings.field.matches(0)),
        other_selectors: true,
        ..Rule::of_all(Family::of(ip), priority, action, RTPROT_KERNEL)
    };
    let from = |ip: IpAddr, priority, table| {
        let from = Some(Family::host_route(ip));
        Rule { from, ..rule(ip, priority, Action::Lookup(table)) }
    };
    let by_table = own.iter().filter_map(|(link, ip)| {
        let uplink = by_link.get(link)?;
        let suppress = (!leads_on(uplink, *ip)).then_some(NO_DEFAULT);
        Some(Rule { suppress, ..from(*ip, at.source, uplink.table) })
    });
    let inside = own
        .iter()
        .map(|(_, ip)| Rule { suppress: Some(NO_DEFAULT), ..from(*ip, at.inside, RT_TABLE_MAIN) });
    let families: BTreeSet<Family> = own.iter().map(|(_, ip)| Family::of(*ip)).collect();
    let networks = networks(facts, &links).into_iter();
    let outside = networks
        .filter(|net| families.contains(&Family::of(net.ip())))
        .map(|net| Rule { to: Some(net), ..rule(net.ip(), at.end, Action::Goto(at.source)) });
    by_table.chain(inside).chain(outside).collect()
}

/// Addresses that get rules, with the index of their interface.
fn addresses(
    facts: &Facts,
    settings: &Settings,
    uplinks: &[Uplink],
    links: &BTreeSet<u32>,
) -> BTreeSet<(u32, IpAddr)> {
    // Packets that leave through an uplink without an address have that of another uplink.
    let borrows = |family| {
        let is_unnumbered = |u: &Uplink| !has_address(facts, u.link, family);
        uplinks.iter().any(|u| u.ways.contains_key(&family) && is_unnumbered(u))
    };
    // An inverted rule is that of a VPN that takes all packets except its own. Sockets must not bypass the VPN.
    let has_vpn =
        |family| facts.foreign_rules().any(|rule| rule.family == family && rule.is_inverted);
    let left_out = Family::ALL.map(|family| (family, borrows(family) || has_vpn(family)));
    let mut own = own_addresses(facts, links);
    own.retain(|(_, ip)| !left_out.contains(&(Family::of(*ip), true)));
    // symroute leaves excluded destinations to the pod's own routing.
    own.retain(|(_, ip)| !settings.exclude.iter().any(|net| net.contains(*ip)));
    // A rule of another program already decides where such packets go.
    let to_a_table = facts.foreign_rules().filter(|rule| matches!(rule.action, Action::Lookup(_)));
    let settled: Prefixes<()> = to_a_table.filter_map(|rule| rule.from).collect();
    own.retain(|(_, ip)| !settled.has(*ip));
    own
}

/// Whether the uplink has a known way beyond its own networks. If not, main may have a route that works.
fn leads_on(uplink: &Uplink, ip: IpAddr) -> bool {
    let way = uplink.ways.get(&Family::of(ip));
    way.is_some_and(|way| way.source != GatewaySource::Unknown && !way.hops.is_empty())
}

/// Networks that main routes through an uplink, without those that lie in another one of the list. main keeps
/// each network of which it routes a part elsewhere.
fn networks(facts: &Facts, uplinks: &BTreeSet<u32>) -> Vec<IpNetwork> {
    let of_main = facts.routes.iter().filter(|r| r.table == RT_TABLE_MAIN && r.dst.prefix() != 0);
    let of_main = of_main.filter(|r| !is_link_local(r.dst.ip()));
    let leads_outward = |r: &&Route| r.nexthops.iter().any(|hop| uplinks.contains(&hop.link));
    let (outward, inward): (Vec<&Route>, Vec<&Route>) = of_main.partition(leads_outward);
    let inward: BTreeSet<(IpAddr, u8)> =
        inward.iter().map(|r| (r.dst.network(), r.dst.prefix())).collect();
    let has_inside = |net: &IpNetwork| any_within(&inward, *net);
    let all = outward.iter().filter(|r| !r.is_special).map(|r| r.dst);
    let mut all: Vec<IpNetwork> = all.filter(|net| !has_inside(net)).collect();
    all.sort_by_key(IpNetwork::prefix);
    let mut kept: Vec<IpNetwork> = Vec::new();
    for net in all {
        if kept.len() == names::NETWORKS_OF_POD {
            break;
        }
        if !kept.iter().any(|wide| wide.contains(net.ip())) {
            kept.push(net);
        }
    }
    kept
}
