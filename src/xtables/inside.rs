//! Which prefixes lie inside: the node leads them to something that is not outside. With nftables
//! the kernel is asked per connection; iptables can't, so they are listed.
//!
//! Routes to single addresses are left out: pods come and go with them, enrolled ones are known
//! from their own set, and an address that has moved to another node must not count as inside.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::facts::{Facts, Family, Member, Route};
use crate::netlink::ipset::whole;
use crate::netlink::uapi::RT_TABLE_MAIN;
use crate::plan::gateways::is_link_local;

/// The members of the set, for interfaces that lead outside.
#[must_use]
pub fn members(facts: &Facts, outside: &BTreeSet<u32>, family: Family) -> Vec<Member> {
    let listed = |net: &IpNetwork| {
        Family::of(net.ip()) == family && net.prefix() < whole(net.ip()) && !is_link_local(net.ip())
    };
    let of_main = |r: &&Route| r.table == RT_TABLE_MAIN && !r.is_wide() && listed(&r.dst);
    // Of several routes to the same prefix the one with the lowest metric counts.
    let mut leads: BTreeMap<IpNetwork, (u32, bool)> = BTreeMap::new();
    for route in facts.routes.iter().filter(of_main) {
        let inside = !route.nexthops.iter().any(|hop| outside.contains(&hop.link));
        let entry = leads.entry(route.dst).or_insert((route.metric, inside));
        if route.metric < entry.0 {
            *entry = (route.metric, inside);
        }
    }
    for net in facts.nowhere.iter().filter(|net| listed(net) && net.prefix() > 1) {
        leads.entry(*net).or_insert((0, true));
    }
    let is_inside: Vec<IpNetwork> =
        leads.iter().filter(|(_, (_, inside))| *inside).map(|(net, _)| *net).collect();
    let within = |net: &IpNetwork| {
        is_inside.iter().any(|wide| wide.prefix() < net.prefix() && wide.contains(net.ip()))
    };
    let member = |(net, (_, inside)): (IpNetwork, (u32, bool))| Member {
        address: net.network(),
        prefix: net.prefix(),
        nomatch: !inside,
        comment: None,
    };
    // An exception is needed only within something longer.
    leads.into_iter().filter(|(net, (_, inside))| *inside || within(net)).map(member).collect()
}
