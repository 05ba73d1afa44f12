//! Rules of a pod by its own addresses: what a socket sends that is bound to one, and a look-up for RDMA, leaves by
//! the interface with that address.
//!
//! ```text
//! P+3  to NETWORK    goto P+5                     what lies behind an uplink
//! P+4  from ADDRESS  lookup main                  what lies inside, default routes aside
//! P+5  from ADDRESS  lookup the uplink's table
//! ```
//! Without the first two, what the pod's own containers behind a bridge ask would be answered by an uplink, and
//! strict `rp_filter` would drop the question.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Uplink, own_addresses};
use crate::config::Settings;
use crate::model::{Action, Facts, Family, Route, Rule, is_link_local};
use crate::names;
use crate::netlink::uapi::{RT_TABLE_MAIN, RTPROT_KERNEL};

/// The rules, targets first.
pub(super) fn rules(facts: &Facts, settings: &Settings, uplinks: &[Uplink]) -> Vec<Rule> {
    let at = settings.rules();
    let tables: BTreeMap<u32, u32> = uplinks.iter().map(|u| (u.link, u.table)).collect();
    let links: BTreeSet<u32> = tables.keys().copied().collect();
    let own = own_addresses(facts, &links);
    let rule = |ip: IpAddr, priority, action| Rule {
        // Ours ask for an address alone.
        other_selectors: true,
        ..Rule::of_all(Family::of(ip), priority, action, RTPROT_KERNEL)
    };
    let from = |ip: IpAddr, priority, table| {
        let from = Some(Family::host_route(ip));
        Rule { from, ..rule(ip, priority, Action::Lookup(table)) }
    };
    let by_table =
        own.iter().filter_map(|(link, ip)| Some(from(*ip, at.source, *tables.get(link)?)));
    let inside = own.iter().map(|(_, ip)| {
        // Default routes do not count.
        Rule { suppress: Some(0), ..from(*ip, at.inside, RT_TABLE_MAIN) }
    });
    let families: BTreeSet<Family> = own.iter().map(|(_, ip)| Family::of(*ip)).collect();
    let networks = networks(facts, &links).into_iter();
    let outside = networks
        .filter(|net| families.contains(&Family::of(net.ip())))
        .map(|net| Rule { to: Some(net), ..rule(net.ip(), at.end, Action::Goto(at.source)) });
    by_table.chain(inside).chain(outside).collect()
}

/// The networks that main leads to by an uplink, without those that lie in another one of them.
fn networks(facts: &Facts, uplinks: &BTreeSet<u32>) -> Vec<IpNetwork> {
    let outward = |r: &&Route| {
        let leads = r.nexthops.iter().any(|hop| uplinks.contains(&hop.link));
        r.table == RT_TABLE_MAIN && r.dst.prefix() != 0 && !r.special && leads
    };
    let all = facts.routes.iter().filter(outward).map(|r| r.dst);
    let mut all: Vec<IpNetwork> = all.filter(|net| !is_link_local(net.ip())).collect();
    all.sort_by_key(IpNetwork::prefix);
    let mut kept: Vec<IpNetwork> = Vec::new();
    for net in all {
        let covered = kept.iter().any(|wide| wide.contains(net.ip()));
        if !covered && kept.len() < names::NETWORKS_OF_POD {
            kept.push(net);
        }
    }
    kept
}
