//! Makes the tables and rules of the uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::gateways::own_tables;
use super::network::Network;
use super::prefixes::Prefixes;
use super::{GatewaySource, Note, Uplink, Way};
use crate::backend::Marker;
use crate::config::{RulePriorities, Settings};
use crate::model::{Action, Facts, Family, Field, MarkMatch, Nexthop, Route, Rule, is_link_local};
use crate::names::LOOPBACK;
use crate::netlink::uapi::*;

/// Metric that the kernel gives to an IPv6 route without one.
const IPV6_METRIC: u32 = 1024;

/// Routes of an uplink's table. A route comes after those that the kernel needs to accept it.
pub(crate) fn routes(facts: &Facts, uplink: &Uplink) -> Vec<Route> {
    // The kernel has no routes through an interface that is down.
    if facts.link(uplink.link).is_none_or(|l| l.flags & IFF_UP == 0) {
        return Vec::new();
    }
    let mut routes = Vec::new();
    for (&family, way) in &uplink.ways {
        let mut of_family = copies(facts, uplink, family, way);
        of_family.extend(way.gateways().filter_map(|ip| to_gateway(uplink, family, ip)));
        let mut default_hops = way.hops.clone();
        if family == Family::V6 {
            let to_gateways = take_onlink(uplink, &mut of_family, &mut default_hops);
            of_family.extend(to_gateways);
        }
        // On-link routes come first: the kernel looks up gateways in them.
        of_family.sort_by_key(|r| r.nexthops.iter().any(|hop| hop.gateway.is_some()));
        if !way.hops.is_empty() {
            of_family.push(route(uplink, family.default_route(), &default_hops, &way.metrics));
        }
        let mut seen = BTreeSet::new();
        of_family.retain(|r| seen.insert((r.dst, r.metric)));
        routes.extend(of_family);
    }
    routes
}

fn route(uplink: &Uplink, dst: IpNetwork, hops: &[Nexthop], metrics: &[u8]) -> Route {
    let v4 = dst.is_ipv4();
    let on_link = hops.iter().all(|hop| hop.gateway.is_none());
    Route {
        table: uplink.table,
        dst,
        kind: RTN_UNICAST,
        scope: if v4 && on_link { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE },
        // systemd-networkd removes routes of any other protocol when it restarts.
        protocol: RTPROT_KERNEL,
        metric: if v4 { 0 } else { IPV6_METRIC },
        nexthops: hops.to_vec(),
        metrics: metrics.to_vec(),
        is_special: false,
    }
}

/// The link-scope route to the router. Without it the kernel refuses the default route, because a secondary NIC
/// often has no connected route. None for a router of the other family.
fn to_gateway(uplink: &Uplink, family: Family, gateway: IpAddr) -> Option<Route> {
    let hop = Nexthop { link: uplink.link, gateway: None, onlink: false, weight: 0 };
    (Family::of(gateway) == family).then(|| route(uplink, Family::host_route(gateway), &[hop], &[]))
}

/// Clears `onlink` on each IPv6 hop, and returns routes to the routers that the table does not lead to. For
/// `onlink`, IPv6 asks main whether the router is on the link. It refuses the hop if main leads there through
/// another NIC (`ip6_route_check_nh_onlink`, net/ipv6/route.c).
fn take_onlink(uplink: &Uplink, routes: &mut [Route], default: &mut [Nexthop]) -> Vec<Route> {
    let on_link: Prefixes<()> = routes.iter().filter(|r| r.is_on_link()).map(|r| r.dst).collect();
    let hops = routes.iter_mut().flat_map(|r| &mut r.nexthops).chain(default);
    let gateways = hops.filter_map(|hop| {
        hop.onlink = false;
        hop.gateway
    });
    let missing: BTreeSet<IpAddr> = gateways.filter(|&ip| !on_link.has(ip)).collect();
    missing.into_iter().filter_map(|ip| to_gateway(uplink, Family::V6, ip)).collect()
}

/// Copies for the uplink's table: what the node would send out of this uplink if it had no other. They come
/// from tables that rules name by the uplink's addresses, from that of its default route, and from main.
/// Default routes are left out. Of equal routes, the first of this order counts.
fn copies(facts: &Facts, uplink: &Uplink, family: Family, way: &Way) -> Vec<Route> {
    let mut tables = own_tables(facts, Some(uplink.link), family);
    if let GatewaySource::DefaultRoute(table) = way.source {
        tables.push(table);
    }
    tables.push(RT_TABLE_MAIN);
    let mut by_table: BTreeMap<u32, Vec<&Route>> = BTreeMap::new();
    for route in facts.routes.iter().filter(|r| r.family() == family) {
        by_table.entry(route.table).or_default().push(route);
    }
    let of_table = |table: u32| by_table.get(&table).into_iter().flatten().copied();
    let copied = |r: &&Route| r.dst.prefix() != 0 && !r.is_special && !is_link_local(r.dst.ip());
    let through = |r: &Route| {
        let hops = r.hops_through(uplink.link);
        let copy = || Route { metric: r.metric, ..route(uplink, r.dst, &hops, &r.metrics) };
        (!hops.is_empty()).then(copy)
    };
    let mut found: Vec<_> =
        tables.into_iter().flat_map(of_table).filter(copied).filter_map(through).collect();
    // Routes of another NIC of the same network work for this one as well.
    let own: BTreeSet<IpNetwork> = found.iter().map(|r| r.dst).collect();
    let by_others = own_tables(facts, None, family).into_iter().flat_map(of_table);
    let of_others =
        of_table(RT_TABLE_MAIN).chain(by_others).filter(copied).filter(|r| !own.contains(&r.dst));
    let network = Network::of(facts, uplink.link, way.gateways());
    // Thousands of routes may have the same few routers.
    let mut reached = BTreeMap::new();
    for other in of_others {
        let hop = other.nexthops.iter().find(|hop| match hop.gateway {
            Some(ip) => *reached.entry((hop.link, ip)).or_insert_with(|| network.reaches(hop)),
            None => network.has(other.dst),
        });
        if let Some(hop) = hop {
            let hop = Nexthop { link: uplink.link, weight: 0, ..*hop };
            let copy = route(uplink, other.dst, &[hop], &other.metrics);
            found.push(Route { metric: other.metric, ..copy });
        }
    }
    found
}

/// Rules of all uplinks in the order in which they have to be added: targets of `goto` first, rules that steer
/// last. Each backend asks main in its own way where a source lies.
pub(crate) fn rules(
    settings: &Settings,
    uplinks: &[&Uplink],
    families: &BTreeSet<Family>,
    marker: Marker,
) -> Vec<Rule> {
    let (field, at) = (settings.field, settings.rules());
    let mut rules = Vec::new();
    for &family in families {
        let rule = |priority, action| Rule::of_all(family, priority, action, RTPROT_KERNEL);
        rules.push(rule(at.end, Action::Nop));
        let unmarked = rule(at.skip, Action::Goto(at.end));
        rules.push(Rule { mark: Some(field.matches(0)), ..unmarked });
        rules.extend(asking(field, at, marker, &rule));
        for uplink in uplinks {
            let mark = field.of(uplink.id);
            let request = rule(at.request, Action::Goto(at.end));
            let iif = Some(uplink.name.clone());
            rules.push(Rule { mark: Some(field.matches(mark)), iif, ..request });
        }
        for uplink in uplinks {
            let bound = rule(at.bound, Action::Lookup(uplink.table));
            let mark = Some(MarkMatch { value: field.of(uplink.id), mask: field.id_mask() });
            rules.push(Rule { mark, ..bound });
        }
    }
    rules
}

/// Matches the whole mark. Such a rule clashes with no other program, and older releases of symroute accept it.
fn whole_mark(value: u32) -> MarkMatch {
    MarkMatch { value, mask: u32::MAX }
}

/// Rules for look-ups that ask main. nftables asks where a source lies. iptables asks whether main has a route
/// to the single address: a look-up must find nothing else.
fn asking(
    field: Field,
    at: RulePriorities,
    marker: Marker,
    rule: &dyn Fn(u32, Action) -> Rule,
) -> Vec<Rule> {
    let main = Action::Lookup(RT_TABLE_MAIN);
    if marker == Marker::Nftables {
        return vec![Rule { mark: Some(whole_mark(field.d())), ..rule(at.ask, main) }];
    }
    let asked = |rule: Rule| Rule {
        mark: Some(whole_mark(field.ask_mark())),
        iif: Some(LOOPBACK.into()),
        ..rule
    };
    let end = asked(rule(at.ask, Action::Other(FR_ACT_PROHIBIT)));
    let alone = asked(rule(at.ask_alone, main));
    let shorter = if alone.family == Family::V4 { 31 } else { 127 };
    // The order matters if both have priority 0.
    vec![Rule { suppress: Some(shorter), ..alone }, end]
}

/// Faults of an uplink.
pub(crate) fn notes(facts: &Facts, uplink: &Uplink) -> Vec<Note> {
    let mut notes = Vec::new();
    let name = &uplink.name;
    let link = facts.link(uplink.link);
    if link.is_some_and(|l| l.flags & IFF_UP == 0) {
        notes.push(Note {
            what: format!("{name} is down: replies to its requests follow the node's own tables"),
            remedy: format!("ip link set {name} up"),
        });
    } else if link.is_some_and(|l| !l.carrier) {
        notes.push(Note {
            what: format!("{name} has no carrier"),
            remedy: "look at its cable, port or hypervisor".into(),
        });
    }
    if uplink.ways.is_empty() {
        notes.push(Note {
            what: format!("{name} carries neither IPv4 nor IPv6"),
            remedy: format!(
                "give it an address or a route, or leave it out: \"uplinks\": [\"!{name}\"]"
            ),
        });
    }
    // An interface that is down has lost its routes, including the gateway.
    if notes.is_empty() {
        notes.extend(uplink.ways.iter().filter_map(|(family, way)| no_gateway(name, *family, way)));
    }
    notes
}

fn no_gateway(name: &str, family: Family, way: &Way) -> Option<Note> {
    let replies = if way.hops.is_empty() {
        "only replies to its own subnets leave by it"
    } else {
        "replies are sent to each client as if it were on the link"
    };
    (way.source == GatewaySource::Unknown).then(|| Note {
        what: format!("{name} has no {family} gateway: {replies}"),
        remedy: format!(
            "set \"gateways\": {{\"{name}\": [\"ROUTER\"]}} with its router's address, or \
             \"onlink\" in place of the list where there is no router"
        ),
    })
}
