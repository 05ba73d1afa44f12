//! Networks behind the node that ask one of its addresses and get no answer: a rule by that address
//! sends the reply out by an uplink, as MAAS, netplan and DHCP clients set it up. The plugin does not
//! steer such replies, since their requests came in by no uplink.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::conflicts::last_of_ours;
use super::uplinks::outside;
use super::{Note, Plan};
use crate::config::Settings;
use crate::model::{Action, Facts, Family, Link, Route, Rule, whole};
use crate::names;
use crate::netlink::uapi::{RT_TABLE_LOCAL, RT_TABLE_MAIN};

/// So many networks are looked at: a VPN may have thousands.
const MOST: usize = 32;
/// Kinds of interface that have one pod behind them: their CNI sees to them.
const OF_PODS: [&str; 2] = ["veth", "dummy"];

/// The networks behind the node that get no answer, each with the remedy.
pub(crate) fn find(facts: &Facts, settings: &Settings, plan: &Plan) -> Vec<Note> {
    let by_address: Vec<(&Rule, IpAddr, u32)> = all(facts)
        .filter_map(|rule| {
            let Action::Lookup(table) = rule.action else { return None };
            let address = rule.from.filter(|from| from.prefix() == whole(from.ip()))?.ip();
            let is_own = facts.addresses.iter().any(|a| a.ip == address && is_uplink(plan, a.link));
            let by_us = [RT_TABLE_LOCAL, RT_TABLE_MAIN].contains(&table) || rule.mark.is_some();
            (is_own && !by_us).then_some((rule, address, table))
        })
        .collect();
    let mut notes = Vec::new();
    if by_address.is_empty() {
        return notes;
    }
    let outside = outside(facts, &plan.src_valid_mark);
    let behind = facts.routes.iter().filter(|r| is_behind(facts, &outside, r));
    for route in behind.take(MOST) {
        for &(rule, address, table) in &by_address {
            let is_answered = rule.family != route.family()
                || leads_back(facts, table, route)
                || is_exempt(facts, rule, route.dst);
            if !is_answered {
                notes.push(note(facts, settings, route, rule, address));
            }
        }
    }
    notes
}

fn all(facts: &Facts) -> impl Iterator<Item = &Rule> {
    facts.rules.iter().map(|found| &found.rule)
}

fn is_uplink(plan: &Plan, link: u32) -> bool {
    plan.uplinks.iter().any(|uplink| uplink.link == link)
}

/// Whether main leads this whole network to something that does not lead outside.
pub(crate) fn is_inside(facts: &Facts, outside: &BTreeSet<u32>, net: IpNetwork) -> bool {
    let covers = |r: &&Route| {
        r.table == RT_TABLE_MAIN && r.dst.prefix() <= net.prefix() && r.dst.contains(net.ip())
    };
    let best = facts.routes.iter().filter(covers).max_by_key(|r| r.dst.prefix());
    best.is_some_and(|r| !r.nexthops.iter().any(|hop| outside.contains(&hop.link)))
}

/// Whether main leads there, to a network of several hosts on a link that does not lead outside.
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
    let several = route.dst.prefix() < whole(route.dst.ip()) && !route.is_wide();
    let global = !crate::model::is_link_local(route.dst.ip());
    route.table == RT_TABLE_MAIN && several && global && !route.special && on_link(route)
}

/// Whether a table leads to the network as main does, or to nothing at all.
fn leads_back(facts: &Facts, table: u32, route: &Route) -> bool {
    let covers = |r: &&Route| {
        r.table == table && r.family() == route.family() && r.dst.contains(route.dst.ip())
    };
    let best = facts.routes.iter().filter(covers).max_by_key(|r| r.dst.prefix());
    best.is_none_or(|r| {
        r.nexthops.iter().any(|hop| route.nexthops.iter().any(|h| h.link == hop.link))
    })
}

/// Whether a rule before this one looks the network up in main.
fn is_exempt(facts: &Facts, rule: &Rule, net: IpNetwork) -> bool {
    let within = |to: IpNetwork| to.prefix() <= net.prefix() && to.contains(net.ip());
    all(facts).any(|before| {
        before.family == rule.family
            && before.priority < rule.priority
            && before.action == Action::Lookup(RT_TABLE_MAIN)
            && before.to.is_some_and(within)
    })
}

fn note(facts: &Facts, settings: &Settings, route: &Route, rule: &Rule, address: IpAddr) -> Note {
    let links: Vec<_> = route.nexthops.iter().map(|hop| facts.link_name(hop.link)).collect();
    let what = format!(
        "{} behind {} gets no answer from {address}: the rule \"{rule}\" sends replies elsewhere",
        route.dst,
        links.join(", ")
    );
    let ours = settings.rules().ask_alone..=settings.priority + last_of_ours(facts);
    let taken = |p: u32| ours.contains(&p) || all(facts).any(|other| other.priority == p);
    let place = (1..rule.priority).rev().find(|&p| !taken(p)).unwrap_or_default();
    let family = names::IP_OPTION.of(Family::of(address));
    let way_out = format!(
        "add a rule before it: ip {family}rule add to {} lookup main pref {place}",
        route.dst
    );
    Note { what, way_out }
}
