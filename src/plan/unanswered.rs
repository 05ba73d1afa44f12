//! Networks behind the node that ask one of its addresses and get no answer. A rule by that address sends the
//! reply out through an uplink, as MAAS, netplan and DHCP clients set it up. symroute does not steer such
//! replies, because their requests did not arrive on an uplink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::conflicts::span_of_ours;
use super::prefixes::Prefixes;
use super::uplinks::outside;
use super::{Note, Plan};
use crate::config::Settings;
use crate::model::{Action, Facts, Family, Link, Route, Rule, host_length};
use crate::names;
use crate::netlink::uapi::{RT_TABLE_LOCAL, RT_TABLE_MAIN};

/// Maximum number of networks that are examined, and of notes: a VPN may have thousands.
const MOST: usize = 32;
/// Kinds of interface with a single pod behind them, which are the business of their CNI plugin.
const OF_PODS: [&str; 2] = ["veth", "dummy"];

/// Notes about networks behind the node that get no answer, with the remedy.
pub(crate) fn find(facts: &Facts, settings: &Settings, plan: &Plan) -> Vec<Note> {
    let of_uplinks = facts.addresses.iter().filter(|a| is_uplink(plan, a.link));
    let own: BTreeSet<IpAddr> = of_uplinks.map(|a| a.ip).collect();
    let by_address: Vec<(&Rule, IpAddr, u32)> = facts
        .foreign_rules()
        .filter_map(|rule| {
            let Action::Lookup(table) = rule.action else { return None };
            let address = rule.from.filter(|from| from.prefix() == host_length(from.ip()))?.ip();
            let by_us = [RT_TABLE_LOCAL, RT_TABLE_MAIN].contains(&table) || rule.mark.is_some();
            (own.contains(&address) && !by_us).then_some((rule, address, table))
        })
        .collect();
    if by_address.is_empty() {
        return Vec::new();
    }
    let tables = Tables::of(facts, &by_address.iter().map(|&(.., table)| table).collect());
    let first = settings.rules().ask_alone;
    let ours = first..=settings.priority + span_of_ours(facts);
    let taken: BTreeSet<u32> =
        facts.foreign_rules().map(|rule| rule.priority).chain(ours).collect();
    let outside = outside(facts, &plan.src_valid_mark);
    let behind = facts.routes.iter().filter(|r| is_behind(facts, &outside, r)).take(MOST);
    let unanswered = behind.flat_map(|route| {
        let (tables, exempt) = (&tables, exempt_from(facts, route));
        let hops: BTreeSet<u32> = route.nexthops.iter().map(|hop| hop.link).collect();
        let is_unanswered = move |&&(rule, _, table): &&(&Rule, IpAddr, u32)| {
            rule.family == route.family()
                && !tables.lead_back(table, route, &hops)
                && exempt.is_none_or(|exempt| exempt >= rule.priority)
        };
        by_address.iter().filter(is_unanswered).map(move |by_address| (route, by_address))
    });
    let unanswered = unanswered.take(MOST);
    unanswered.map(|(route, &(rule, ip, _))| note(facts, &taken, route, rule, ip)).collect()
}

/// Routes of some tables, by table and prefix.
struct Tables<'a>(BTreeMap<u32, Prefixes<&'a Route>>);

impl<'a> Tables<'a> {
    fn of(facts: &'a Facts, tables: &BTreeSet<u32>) -> Self {
        let mut found: BTreeMap<u32, Vec<(IpNetwork, &Route)>> = BTreeMap::new();
        for route in facts.routes.iter().filter(|r| tables.contains(&r.table)) {
            found.entry(route.table).or_default().push((route.dst, route));
        }
        Self(found.into_iter().map(|(table, all)| (table, all.into_iter().collect())).collect())
    }

    /// Whether the table leads to the network through one of these hops, as main does, or has no route.
    fn lead_back(&self, table: u32, route: &Route, hops: &BTreeSet<u32>) -> bool {
        let best = self.0.get(&table).and_then(|all| all.around(route.dst.ip()).next());
        best.is_none_or(|(_, r)| r.nexthops.iter().any(|hop| hops.contains(&hop.link)))
    }
}

fn is_uplink(plan: &Plan, link: u32) -> bool {
    plan.uplinks.iter().any(|uplink| uplink.link == link)
}

/// Routes of main, by prefix.
pub(crate) struct Main<'a>(Prefixes<&'a Route>);

impl<'a> Main<'a> {
    pub(crate) fn of(facts: &'a Facts) -> Self {
        let of_main = facts.routes.iter().filter(|r| r.table == RT_TABLE_MAIN);
        Self(of_main.map(|r| (r.dst, r)).collect())
    }

    /// Whether main leads this whole network to an interface that does not lead outside.
    pub(crate) fn is_inside(&self, outside: &BTreeSet<u32>, net: IpNetwork) -> bool {
        let best = self.0.nearest(net);
        best.is_some_and(|r| !r.nexthops.iter().any(|hop| outside.contains(&hop.link)))
    }
}

/// Whether this is a route of main to a network of several hosts, on a link that does not lead outside.
fn is_behind(facts: &Facts, outside: &BTreeSet<u32>, route: &Route) -> bool {
    let holds = |link: &Link| {
        !outside.contains(&link.index)
            && !link.kind.as_deref().is_some_and(|k| OF_PODS.contains(&k))
    };
    let on_link = |r: &Route| {
        r.nexthops
            .iter()
            .all(|hop| hop.gateway.is_none() && facts.link(hop.link).is_some_and(holds))
    };
    let several = route.dst.prefix() < host_length(route.dst.ip()) && !route.is_wide();
    let global = !crate::model::is_link_local(route.dst.ip());
    route.table == RT_TABLE_MAIN && several && global && !route.is_special && on_link(route)
}

/// Priority of the first rule that looks the network up in main. Later rules do no harm.
fn exempt_from(facts: &Facts, route: &Route) -> Option<u32> {
    let net = route.dst;
    let within = |to: IpNetwork| to.prefix() <= net.prefix() && to.contains(net.ip());
    let exempts = |rule: &&Rule| {
        rule.family == route.family()
            && rule.action == Action::Lookup(RT_TABLE_MAIN)
            && rule.to.is_some_and(within)
    };
    facts.foreign_rules().filter(exempts).map(|rule| rule.priority).min()
}

/// The note about one network. `taken`: priorities that are in use.
fn note(facts: &Facts, taken: &BTreeSet<u32>, route: &Route, rule: &Rule, address: IpAddr) -> Note {
    let links: Vec<_> = route.nexthops.iter().map(|hop| facts.link_name(hop.link)).collect();
    let what = format!(
        "{} behind {} gets no answer from {address}: the rule \"{rule}\" sends replies elsewhere",
        route.dst,
        links.join(", ")
    );
    let place = (1..rule.priority).rev().find(|p| !taken.contains(p)).unwrap_or_default();
    let family = names::IP_OPTION.of(Family::of(address));
    let remedy = format!(
        "add a rule before it: ip {family}rule add to {} lookup main pref {place}",
        route.dst
    );
    Note { what, remedy }
}
