//! Finds the gateway of each uplink, and notes where it was learned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::network::Network;
use super::prefixes::any_in;
use super::uplinks::has_address;
use super::{GatewaySource, Note, Uplink, Way};
use crate::config::{Gateways, Settings};
use crate::model::{
    Action, Address, Facts, Family, Link, Nexthop, Route, host_length, is_link_local,
};
use crate::names;
use crate::netlink::uapi::{IFF_POINTOPOINT, RT_TABLE_LOCAL, RT_TABLE_MAIN};

/// `rp_filter` 1: the reverse path of a packet must lead through the interface that it arrived on.
const STRICT: u32 = 1;

/// How an uplink leads outside in each family that it carries, and notes about wrong `gateways`. A wrong address
/// is not an error: an address may move at any time.
pub(crate) fn ways(
    facts: &Facts,
    settings: &Settings,
    link: &Link,
) -> (BTreeMap<Family, Way>, Vec<Note>) {
    let (mut ways, mut notes) = (BTreeMap::new(), Vec::new());
    for family in Family::ALL {
        let configured = configured_routers(settings, &link.name, family);
        let (own, usable): (Vec<_>, Vec<_>) =
            configured.into_iter().partition(|&ip| is_own(facts, ip));
        notes.extend(own.into_iter().map(|ip| note_own_address(link, ip)));
        notes.extend(usable.iter().filter_map(|&ip| note_outside_subnets(facts, link, ip)));
        let way = match usable.first() {
            Some(&ip) => Some(Way {
                hops: vec![hop(link, Some(ip))],
                source: GatewaySource::Configured,
                metrics: Vec::new(),
            }),
            None => find_way(facts, settings, link, family),
        };
        ways.extend(way.map(|way| (family, way)));
    }
    (ways, notes)
}

fn hop(link: &Link, gateway: Option<IpAddr>) -> Nexthop {
    Nexthop { link: link.index, gateway, onlink: false, weight: 0 }
}

/// How an uplink leads outside by the node's own state, without `gateways`.
fn find_way(facts: &Facts, settings: &Settings, link: &Link, family: Family) -> Option<Way> {
    if !carries(facts, link, family) {
        return None;
    }
    let by = |source, hops| Some(Way { hops, source, metrics: Vec::new() });
    if settings.gateways.get(&link.name) == Some(&Gateways::OnLink) {
        return by(GatewaySource::OnLink, vec![hop(link, None)]);
    }
    let defaults = defaults(facts, link.index, family);
    if let Some(route) = defaults.iter().find(|r| r.nexthops.iter().any(|h| h.link == link.index)) {
        let hops = route.hops_through(link.index);
        let source = match hops.iter().find_map(|hop| hop.gateway) {
            Some(_) => GatewaySource::DefaultRoute(route.table),
            None => GatewaySource::PointToPoint,
        };
        return Some(Way { hops, source, metrics: route.metrics.clone() });
    }
    if let Some(ip) = named_by_result(facts, link, family) {
        return by(GatewaySource::Result, vec![hop(link, Some(ip))]);
    }
    if link.flags & IFF_POINTOPOINT != 0 {
        return by(GatewaySource::PointToPoint, vec![hop(link, None)]);
    }
    let network = Network::of(facts, link.index, std::iter::empty());
    let inferred = defaults.iter().flat_map(|route| &route.nexthops).find_map(|other| {
        let ip = other.gateway.filter(|_| network.reaches(other))?;
        Some((GatewaySource::Inferred(facts.link_name(other.link)), ip))
    });
    match inferred {
        Some((source, ip)) => by(source, vec![hop(link, Some(ip))]),
        None if facts.pod.is_some() && !has_address(facts, link.index, family) => {
            let peer = peer(facts, link, family).map(|ip| hop(link, Some(ip)));
            by(GatewaySource::Peer, peer.into_iter().collect())
        }
        // Strict `rp_filter` drops requests of all clients that are not on the link. So treating each client as
        // on-link makes nothing worse. Without it, main may have a route to a client behind an unknown router.
        None if family == Family::V4 && is_strict(facts, link.index) => {
            by(GatewaySource::Unknown, vec![hop(link, None)])
        }
        None => by(GatewaySource::Unknown, Vec::new()),
    }
}

/// The router in the result of the plugin that created a pod's interface. The pod may have no route through it.
fn named_by_result(facts: &Facts, link: &Link, family: Family) -> Option<IpAddr> {
    let all = facts.pod.as_ref()?.gateways.get(&link.name)?;
    let usable = |ip: &&IpAddr| Family::of(**ip) == family && !is_own(facts, **ip);
    all.iter().find(usable).copied()
}

/// Address of the node at the other end of a pod's interface without an address. main has a route to that
/// single address (lyft's `unnumbered-ptp`).
fn peer(facts: &Facts, link: &Link, family: Family) -> Option<IpAddr> {
    let of_main = |r: &&Route| r.table == RT_TABLE_MAIN && r.family() == family && r.is_on_link();
    let through = |r: &&Route| r.nexthops.iter().any(|hop| hop.link == link.index);
    let single =
        |r: &&Route| r.dst.prefix() == host_length(r.dst.ip()) && !is_link_local(r.dst.ip());
    let mut routes = facts.routes.iter().filter(of_main).filter(through).filter(single);
    routes.find(|r| !r.is_special).map(|r| r.dst.ip())
}

/// Whether the interface has strict `rp_filter`: the kernel drops packets whose source is routed elsewhere.
pub(super) fn is_strict(facts: &Facts, link: u32) -> bool {
    facts.rp_filter.get(&link) == Some(&STRICT)
}

fn configured_routers(settings: &Settings, name: &str, family: Family) -> Vec<IpAddr> {
    match settings.gateways.get(name) {
        Some(Gateways::Routers(all)) => {
            all.iter().copied().filter(|&ip| Family::of(ip) == family).collect()
        }
        Some(Gateways::OnLink) | None => Vec::new(),
    }
}

/// Known routers of the uplink: those of `gateways`. If there are none, those of default routes in the uplink's
/// network, its own first.
pub(crate) fn known_routers(
    facts: &Facts,
    settings: &Settings,
    link: &Link,
    family: Family,
) -> Vec<IpAddr> {
    let mut routers = configured_routers(settings, &link.name, family);
    routers.retain(|&ip| !is_own(facts, ip));
    if routers.is_empty() && settings.gateways.get(&link.name) != Some(&Gateways::OnLink) {
        let all: Vec<_> = defaults(facts, link.index, family);
        let hops = || all.iter().flat_map(|route| &route.nexthops);
        let own = || hops().filter(|hop| hop.link == link.index);
        let network = Network::of(facts, link.index, own().filter_map(|hop| hop.gateway));
        let of_others = hops().filter(|hop| hop.link != link.index && network.reaches(hop));
        routers.extend(own().chain(of_others).filter_map(|hop| hop.gateway));
    }
    let mut seen = BTreeSet::new();
    routers.retain(|ip| Family::of(*ip) == family && seen.insert(*ip));
    if facts.pod.is_some() {
        routers.truncate(names::ROUTERS_OF_POD);
    }
    routers
}

/// Default routes of the family in order: tables that rules name by an address of the interface, then main,
/// then by metric and table.
fn defaults(facts: &Facts, link: u32, family: Family) -> Vec<&Route> {
    let own = own_tables(facts, Some(link), family);
    let place: BTreeMap<u32, usize> = own.into_iter().zip(0..).collect();
    let mut found: Vec<_> =
        facts.routes.iter().filter(|r| r.is_default() && r.family() == family).collect();
    found.sort_by_cached_key(|r| {
        let place = place.get(&r.table).copied().unwrap_or(place.len());
        (place, r.table != RT_TABLE_MAIN, r.metric, r.table)
    });
    found
}

/// Tables that rules look up for packets from an address of the interface, or of any interface. Each table
/// once, in the order of the rules.
pub(super) fn own_tables(facts: &Facts, link: Option<u32>, family: Family) -> Vec<u32> {
    let of_link = |a: &&Address| link.is_none_or(|link| a.link == link);
    let own: BTreeSet<IpAddr> = facts.addresses.iter().filter(of_link).map(|a| a.ip).collect();
    let by_source = facts.foreign_rules().filter_map(|rule| {
        let from = rule.from.filter(|_| rule.family == family && rule.mark.is_none())?;
        match rule.action {
            Action::Lookup(table) if any_in(&own, from) => Some((rule.priority, table)),
            _ => None,
        }
    });
    let mut tables: Vec<_> = by_source.collect();
    tables.sort_unstable();
    let mut seen = BTreeSet::from([RT_TABLE_MAIN, RT_TABLE_LOCAL]);
    tables.into_iter().map(|(_, table)| table).filter(|table| seen.insert(*table)).collect()
}

/// Whether packets of the family can arrive on this uplink: it has a global address or a route.
fn carries(facts: &Facts, link: &Link, family: Family) -> bool {
    has_address(facts, link.index, family)
        || facts.routes.iter().any(|r| {
            r.family() == family
                && !r.is_special
                && !is_link_local(r.dst.ip())
                && r.nexthops.iter().any(|hop| hop.link == link.index)
        })
}

/// Whether the address lies in a connected subnet of the interface.
pub(super) fn in_subnet(facts: &Facts, link: &Link, ip: IpAddr) -> bool {
    let own = |a: &&Address| a.link == link.index;
    facts.addresses.iter().filter(own).any(|a| a.net.contains(ip) && a.ip != ip)
        || facts.routes.iter().any(|r| {
            !r.is_default()
                && r.dst.contains(ip)
                && r.nexthops.iter().any(|hop| hop.link == link.index && hop.gateway.is_none())
        })
}

/// Whether the address is one of the node's, or the first or last of its IPv4 subnets.
fn is_own(facts: &Facts, ip: IpAddr) -> bool {
    let edge = |net: IpNetwork| {
        net.is_ipv4() && net.prefix() < 31 && (ip == net.network() || ip == net.broadcast())
    };
    facts.addresses.iter().any(|a| a.ip == ip || edge(a.net))
}

fn note_own_address(link: &Link, ip: IpAddr) -> Note {
    Note {
        what: format!(
            "gateways.{}: {ip} is an address of the node itself, or its subnet's own or broadcast \
             address, so it is not used",
            link.name
        ),
        remedy: "set the address of its router".into(),
    }
}

/// A note if a configured gateway lies in no subnet of its uplink: most likely a mistake. An address with a
/// full-length prefix shows no subnet.
fn note_outside_subnets(facts: &Facts, link: &Link, ip: IpAddr) -> Option<Note> {
    let of_subnet = |a: &&Address| {
        let of_family = Family::of(a.ip) == Family::of(ip) && a.scope == 0;
        a.link == link.index && of_family && a.net.prefix() < host_length(a.ip)
    };
    let subnets: Vec<_> =
        facts.addresses.iter().filter(of_subnet).map(|a| a.net.to_string()).collect();
    if is_link_local(ip) || subnets.is_empty() || in_subnet(facts, link, ip) {
        return None;
    }
    Some(Note {
        what: format!(
            "gateways.{}: {ip} lies outside every connected subnet of {} ({})",
            link.name,
            link.name,
            subnets.join(", ")
        ),
        remedy: "set the address of a router in such a subnet".into(),
    })
}

/// A note for each key of `gateways` that names no uplink.
pub(crate) fn unused(settings: &Settings, uplinks: &[Uplink]) -> Vec<Note> {
    let absent = settings.gateways.keys().filter(|name| uplinks.iter().all(|u| u.name != **name));
    absent
        .map(|name| Note {
            what: format!("gateways.{name} is set, but {name} is no uplink"),
            remedy: format!("add \"{name}\" to \"uplinks\" or remove its gateway"),
        })
        .collect()
}
