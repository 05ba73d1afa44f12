//! Facts from the kernel. [`facts`] dumps tables: it is never on the fast path of an ADD.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use nix::errno::Errno;

use super::apply::Kernel;
use super::sysctl;
use super::unseen::Unseen;
use crate::backend::iptables::programs::Programs;
use crate::backend::iptables::{builtin_chains, ipset};
use crate::backend::nftables::rules::TableFamily;
use crate::backend::nftables::table;
use crate::config::{Backend, Settings};
use crate::error::Error;
use crate::model::{
    Action, Address, Facts, Family, Flowtables, FoundRule, Link, Mangle, Neighbours, PodFacts,
    Route, Variant, VariantUse,
};
use crate::names;
use crate::netlink::uapi::{IFF_LOOPBACK, RT_TABLE_LOCAL, RT_TABLE_MAIN, RTN_UNICAST};
use crate::netlink::{self, route};
use crate::plan::prefixes::any_in;
use crate::plan::{ours, routers, uplinks};
use crate::process;

/// Seconds that a UDP connection has to have left when it leaves a flowtable.
const LEFT: u32 = 10;

/// Everything that reconcile looks at. `owned`: the settings by which state is known as ours,
/// first those that are wanted. `by_iptables`: whether iptables marks by now. `unseen`: what becomes
/// of what the caller may not read. `pod`: what is known of the pod, where this is one's namespace.
pub(crate) fn facts(
    kernel: &mut Kernel,
    owned: &[&Settings],
    by_iptables: bool,
    unseen: &mut Unseen,
    pod: Option<PodFacts>,
) -> Result<Facts, Error> {
    let Kernel { rtnetlink, netfilter, .. } = &mut *kernel;
    let links = route::links(rtnetlink).map_err(Error::kernel("list interfaces"))?;
    bounded(pod.as_ref(), "interfaces", links.len(), names::LINKS_OF_POD)?;
    let addresses = route::addresses(rtnetlink).map_err(Error::kernel("list addresses"))?;
    bounded(pod.as_ref(), "addresses", addresses.len(), names::ADDRESSES_OF_POD)?;
    let mut facts = Facts { links, pod, addresses, ipvs: has_ipvs(), ..Facts::default() };
    let has_ipv4 = facts.addresses.iter().filter(|a| a.scope == 0 && a.ip.is_ipv4());
    let has_ipv4: BTreeSet<u32> = has_ipv4.map(|a| a.link).collect();
    let ipv4 = |l: &&Link| l.flags & IFF_LOOPBACK == 0 && has_ipv4.contains(&l.index);
    facts.rp_filter = sysctl::rp_filter(facts.links.iter().filter(ipv4))?;
    for family in Family::ALL {
        let rules = supported(route::rules(rtnetlink, family), family)
            .map_err(Error::kernel(format!("list {family} rules")))?;
        // Tables of the node's own addresses, and from their default route on those that have one.
        let tables = RefCell::new(by_source(&rules, &facts.addresses));
        let missed = RefCell::new(BTreeSet::new());
        let keep = |r: &Route| {
            if r.is_default() && r.table != RT_TABLE_LOCAL {
                tables.borrow_mut().insert(r.table);
            }
            let kept = matters(r, owned) || tables.borrow().contains(&r.table);
            if !kept {
                missed.borrow_mut().insert(r.table);
            }
            kept
        };
        let failed = || Error::kernel(format!("list {family} routes"));
        let mut routes =
            supported(route::routes(rtnetlink, family, keep), family).map_err(failed())?;
        // IPv6 gives a table's default route last.
        if !tables.borrow().is_disjoint(&missed.borrow()) {
            routes = supported(route::routes(rtnetlink, family, keep), family).map_err(failed())?;
        }
        let (forward, nowhere): (Vec<Route>, _) =
            routes.into_iter().partition(|r| r.kind == RTN_UNICAST);
        facts.routes.extend(forward);
        let main = nowhere.into_iter().filter(|r| r.table == RT_TABLE_MAIN);
        facts.nowhere.extend(main.map(|r| r.dst));
        facts.rules.extend(rules);
    }
    facts.ours =
        ours::take(owned, &facts.links, facts.pod.is_some(), &mut facts.routes, &mut facts.rules);
    // What looks like ours does not count: it goes.
    bounded(facts.pod.as_ref(), "rules", facts.rules.len(), names::RULES_OF_POD)?;
    let hops = facts.routes.iter().map(|route| route.nexthops.len().max(1)).sum();
    bounded(facts.pod.as_ref(), "routes", hops, names::ROUTES_OF_POD)?;
    match table::table(netfilter, TableFamily::Inet) {
        Err(error) if is_missing(&error) => facts.tooling.nftables = false,
        other => {
            let inet = other.map_err(Error::kernel("read table inet symroute"));
            facts.ours.table = unseen.rules(inet)?;
            let arp = table::table(netfilter, TableFamily::Arp);
            let arp = arp.map_err(Error::kernel("read table arp symroute"));
            facts.ours.arp = unseen.rules(arp)?;
        }
    }
    if facts.tooling.nftables && owned.first().is_some_and(|settings| settings.offload) {
        facts.tooling.flowtables = flowtables(netfilter, &facts, unseen)?;
        facts.tooling.keeps_udp = keeps_udp();
    }
    if by_iptables || owned.iter().any(|s| may_use_iptables(s, &facts)) {
        let read = iptables(kernel, owned, &mut facts);
        unseen.rules(read)?;
        if unseen.hides_rules() {
            // Which programs there are is seen.
            let installed = Programs::installed().into_iter();
            facts.tooling.iptables.extend(installed.map(|v| (v, VariantUse::default())));
        }
    }
    facts.src_valid_mark = sysctl::src_valid_mark(&facts.links)?;
    // The end needs no plan, so no routers.
    let ends = facts.pod.as_ref().is_some_and(|pod| pod.ends);
    if let Some(settings) = owned.first().filter(|_| !ends) {
        facts.neighbours = routers(&mut kernel.rtnetlink, &facts, settings)?;
    }
    Ok(facts)
}

/// Error: a pod has more of something than is looked at. To go is never refused.
fn bounded(
    pod: Option<&PodFacts>,
    what: &'static str,
    count: usize,
    most: usize,
) -> Result<(), Error> {
    match pod {
        Some(pod) if !pod.ends && count > most => Err(Error::TooMany { what, count, most }),
        _ => Ok(()),
    }
}

/// Whether conntrack keeps a UDP connection that leaves a flowtable: the kernel takes the one time-out off the other
/// then (`flow_offload_fixup_ct`, `net/netfilter/nf_flow_table_core.c`).
fn keeps_udp() -> bool {
    let seconds = |name: &str| sysctl::value(&format!("netfilter/{name}"));
    let stream = seconds("nf_conntrack_udp_timeout_stream");
    let flow = seconds("nf_flowtable_udp_timeout");
    stream.zip(flow).is_none_or(|(stream, flow)| stream >= flow.saturating_add(LEFT))
}

/// What the kernel's flowtables are good for. One that is there shows that there are some.
fn flowtables(
    netfilter: &mut netlink::Socket,
    facts: &Facts,
    unseen: &Unseen,
) -> Result<Flowtables, Error> {
    // `nft_flow_route` (net/netfilter/nft_flow_offload.c) minds the mark since this release.
    if process::kernel_release() < Some((5, 19)) {
        return Ok(Flowtables::WithoutMarks);
    }
    if unseen.hides_rules() || facts.ours.offloads() {
        return Ok(Flowtables::Usable);
    }
    let has_some = table::has_flowtables(netfilter).map_err(Error::kernel("ask for flowtables"))?;
    Ok(if has_some { Flowtables::Usable } else { Flowtables::Missing })
}

/// Hardware addresses of the routers of uplinks that may have several.
pub(crate) fn routers(
    rtnetlink: &mut netlink::Socket,
    facts: &Facts,
    settings: &Settings,
) -> Result<Neighbours, Error> {
    // What is wrong with the settings is for the plan to say.
    let chosen = uplinks::choose(facts, settings).unwrap_or_default();
    let wanted: BTreeSet<_> = routers::candidates(facts, settings, chosen.into_iter()).collect();
    if wanted.is_empty() {
        return Ok(Neighbours::new());
    }
    let found = route::neighbours(rtnetlink, |link, ip| wanted.contains(&(link, ip)));
    found.map_err(Error::kernel("list neighbours"))
}

/// Whether the kernel has IPVS. The module may be loaded at any time.
pub(crate) fn has_ipvs() -> bool {
    // It has parameters, so it is here too where it is built in. /proc/net/ip_vs takes longer.
    fs::exists("/sys/module/ip_vs").unwrap_or(false)
}

/// There is nothing behind the number of the subsystem, or no nfnetlink at all.
pub(crate) fn is_missing(error: &netlink::Error) -> bool {
    matches!(error.errno, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT)
}

fn may_use_iptables(settings: &Settings, facts: &Facts) -> bool {
    match settings.backend {
        Backend::Nftables => false,
        Backend::Auto => !facts.tooling.nftables,
        Backend::Iptables | Backend::Variant(_) => true,
    }
}

/// What iptables has of ours, and how its variants are used.
fn iptables(kernel: &mut Kernel, owned: &[&Settings], facts: &mut Facts) -> Result<(), Error> {
    let netfilter = &mut kernel.netfilter;
    let sets = ipset::names(netfilter).map_err(Error::kernel("list ipsets"))?;
    let ours = |name: &String| name == names::NODE_SET || name.starts_with(names::CHAIN_PREFIX);
    for name in sets.into_iter().filter(ours) {
        let found = ipset::set(netfilter, &name);
        let found = found.map_err(Error::kernel(format!("read ipset {name}")))?;
        facts.ours.ipsets.extend(found.map(|set| (name, set)));
    }
    // The variant is open: it takes a look at the rules of others.
    let open = owned.first().is_some_and(|s| {
        matches!(s.backend, Backend::Auto | Backend::Iptables) && may_use_iptables(s, facts)
    });
    for variant in Programs::installed() {
        for family in Family::ALL {
            // First, since an old iptables-nft makes them when it is asked what there is.
            let existing = match variant {
                Variant::Nft => builtin_chains::existing(netfilter, family)
                    .map_err(Error::kernel(format!("list {family} chains of table mangle")))?,
                Variant::Legacy => None,
            };
            let mangle = match Programs::mangle(variant, family) {
                // Where one can't look, there is nothing of ours: an IPv6 that the kernel lacks.
                Err(Error::Iptables { operation, message }) => {
                    log::debug!("{operation}: {message}");
                    continue;
                }
                other => Mangle { existing, ..other? },
            };
            facts.ours.mangle.insert((variant, family), mangle);
        }
        let usage = if open { Programs::use_of(variant)? } else { VariantUse::default() };
        facts.tooling.iptables.insert(variant, usage);
    }
    Ok(())
}

/// A kernel without IPv6 has none of its objects.
fn supported<T>(
    found: Result<Vec<T>, netlink::Error>,
    family: Family,
) -> Result<Vec<T>, netlink::Error> {
    match found {
        Err(error)
            if family == Family::V6
                && matches!(error.errno, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// The tables that rules look up for an address of the node.
fn by_source(rules: &[FoundRule], addresses: &[Address]) -> BTreeSet<u32> {
    let own: BTreeSet<IpAddr> = addresses.iter().map(|a| a.ip).collect();
    let table = |found: &FoundRule| match found.rule.action {
        Action::Lookup(RT_TABLE_LOCAL) => None,
        Action::Lookup(table) => {
            found.rule.from.is_some_and(|from| any_in(&own, from)).then_some(table)
        }
        _ => None,
    };
    rules.iter().filter_map(table).collect()
}

/// Default routes of any table, what main has, what our tables have, and what lies on a link.
/// Of a large routing table elsewhere nothing else is kept.
fn matters(route: &Route, owned: &[&Settings]) -> bool {
    let ours = || owned.iter().any(|settings| ours::is_table(settings, route.table));
    let on_link = || route.nexthops.iter().any(|hop| hop.gateway.is_none());
    route.table != RT_TABLE_LOCAL
        && (route.is_default() || route.table == RT_TABLE_MAIN || on_link() || ours())
}
