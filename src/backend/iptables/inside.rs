//! Which prefixes lie inside: main leads them to an interface that is not outside. With nftables
//! the rules ask the kernel for each connection. iptables can't, so symroute lists the prefixes.
//!
//! Routes to single addresses inside are not listed, because they come and go with pods: the rules
//! ask main for those. Single addresses that main leads outside are exceptions from that.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::chains::{Prefixes, member};
use crate::model::{Facts, Family, Member, Route, host_length, is_link_local};
use crate::netlink::uapi::RT_TABLE_MAIN;
use crate::plan::prefixes::Prefixes as PrefixMap;

/// Where main leads prefixes and single addresses of a family. `outside`: the interfaces that lead
/// outside.
pub(crate) fn prefixes(facts: &Facts, outside: &BTreeSet<u32>, family: Family) -> Prefixes {
    let inside_by_prefix = inside_by_prefix(facts, outside, family);
    // A blackhole, unreachable or prohibit route does not come and go with a pod, so it is listed.
    let is_single =
        |net: &IpNetwork| net.prefix() == host_length(net.ip()) && !facts.nowhere.contains(net);
    let hosts = inside_by_prefix.iter().filter(|(net, inside)| is_single(net) && !**inside);
    let hosts = hosts.map(|(net, _)| member(net.ip())).collect();
    let listed: BTreeMap<_, _> =
        inside_by_prefix.into_iter().filter(|(net, _)| !is_single(net)).collect();
    let is_inside: PrefixMap<()> =
        listed.iter().filter(|(_, inside)| **inside).map(|(net, _)| *net).collect();
    let within =
        |net: &IpNetwork| is_inside.around(net.ip()).any(|(wide, ())| wide.prefix() < net.prefix());
    let entry = |(net, inside): (IpNetwork, bool)| Member {
        address: net.network(),
        prefix: net.prefix(),
        nomatch: !inside,
        comment: None,
    };
    // An exception is needed only within a shorter prefix that lies inside.
    let needed = listed.into_iter().filter(|(net, inside)| *inside || within(net));
    Prefixes { inside: needed.map(entry).collect(), hosts }
}

/// Maps each prefix in main to whether it lies inside. Of several routes to one prefix the one with
/// the lowest metric counts.
fn inside_by_prefix(
    facts: &Facts,
    outside: &BTreeSet<u32>,
    family: Family,
) -> BTreeMap<IpNetwork, bool> {
    let listed = |net: &IpNetwork| Family::of(net.ip()) == family && !is_link_local(net.ip());
    let of_main = |r: &&Route| r.table == RT_TABLE_MAIN && !r.is_wide() && listed(&r.dst);
    let mut found: BTreeMap<IpNetwork, (u32, bool)> = BTreeMap::new();
    for route in facts.routes.iter().filter(of_main) {
        let inside = !route.nexthops.iter().any(|hop| outside.contains(&hop.link));
        let entry = found.entry(route.dst).or_insert((route.metric, inside));
        if route.metric < entry.0 {
            *entry = (route.metric, inside);
        }
    }
    for net in facts.nowhere.iter().filter(|net| listed(net) && net.prefix() > 1) {
        found.entry(*net).or_insert((0, true));
    }
    found.into_iter().map(|(net, (_, inside))| (net, inside)).collect()
}
