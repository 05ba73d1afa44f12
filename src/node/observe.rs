//! Reads facts from the kernel. [`facts`] dumps tables, so the fast path of an ADD never calls it.

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

/// Seconds that conntrack must keep a UDP connection after it leaves a flowtable.
const UDP_SECONDS: u32 = 10;

/// Reads all facts that a reconcile uses. `owned`: the wanted settings, then earlier ones; they identify
/// symroute's state. `by_iptables`: whether iptables marks at present. `unseen`: notes or refuses what the
/// caller may not read. `pod`: facts about the pod, in its namespace.
pub(crate) fn facts(
    kernel: &mut Kernel,
    owned: &[&Settings],
    by_iptables: bool,
    unseen: &mut Unseen,
    pod: Option<PodFacts>,
) -> Result<Facts, Error> {
    let Kernel { rtnetlink, netfilter, .. } = &mut *kernel;
    let links = route::links(rtnetlink).map_err(Error::kernel("list interfaces"))?;
    check_bound(pod.as_ref(), "interfaces", links.len(), names::LINKS_OF_POD)?;
    let addresses = route::addresses(rtnetlink).map_err(Error::kernel("list addresses"))?;
    check_bound(pod.as_ref(), "addresses", addresses.len(), names::ADDRESSES_OF_POD)?;
    let mut facts = Facts { links, pod, addresses, ipvs: has_ipvs(), ..Facts::default() };
    let has_ipv4 = facts.addresses.iter().filter(|a| a.scope == 0 && a.ip.is_ipv4());
    let has_ipv4: BTreeSet<u32> = has_ipv4.map(|a| a.link).collect();
    let ipv4 = |l: &&Link| l.flags & IFF_LOOPBACK == 0 && has_ipv4.contains(&l.index);
    facts.rp_filter = sysctl::rp_filter(facts.links.iter().filter(ipv4))?;
    for family in Family::ALL {
        let rules = empty_if_unsupported(route::rules(rtnetlink, family), family)
            .map_err(Error::kernel(format!("list {family} rules")))?;
        // Tables of rules by the node's own addresses. During the dump, each table with a default route is
        // added.
        let tables = RefCell::new(tables_by_source(&rules, &facts.addresses));
        let missed = RefCell::new(BTreeSet::new());
        let keep = |r: &Route| {
            if r.is_default() && r.table != RT_TABLE_LOCAL {
                tables.borrow_mut().insert(r.table);
            }
            let kept = is_needed(r, owned) || tables.borrow().contains(&r.table);
            if !kept {
                missed.borrow_mut().insert(r.table);
            }
            kept
        };
        let failed = || Error::kernel(format!("list {family} routes"));
        let mut routes = empty_if_unsupported(route::routes(rtnetlink, family, keep), family)
            .map_err(failed())?;
        // IPv6 dumps a table's default route last, after routes that were not kept.
        if !tables.borrow().is_disjoint(&missed.borrow()) {
            routes = empty_if_unsupported(route::routes(rtnetlink, family, keep), family)
                .map_err(failed())?;
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
    // Rules that look like symroute's do not count: the plugin removes them.
    check_bound(facts.pod.as_ref(), "rules", facts.rules.len(), names::RULES_OF_POD)?;
    let hops = facts.routes.iter().map(|route| route.nexthops.len().max(1)).sum();
    check_bound(facts.pod.as_ref(), "routes", hops, names::ROUTES_OF_POD)?;
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
        facts.tooling.flowtables = probe_flowtables(netfilter, &facts, unseen)?;
        facts.tooling.keeps_udp = keeps_udp();
    }
    if by_iptables || owned.iter().any(|s| may_use_iptables(s, &facts)) {
        let read = read_iptables(kernel, owned, &mut facts);
        unseen.rules(read)?;
        if unseen.hides_rules() {
            // Any user can see which programs are installed.
            let installed = Programs::installed().into_iter();
            facts.tooling.iptables.extend(installed.map(|v| (v, VariantUse::default())));
        }
    }
    facts.src_valid_mark = sysctl::src_valid_mark(&facts.links)?;
    // A pod that ends needs no plan, and so no routers.
    let ends = facts.pod.as_ref().is_some_and(|pod| pod.is_ending);
    if let Some(settings) = owned.first().filter(|_| !ends) {
        facts.neighbours = routers(&mut kernel.rtnetlink, &facts, settings)?;
    }
    Ok(facts)
}

/// Error: the pod has more of something than the plugin reads. The end of a pod is never refused.
fn check_bound(
    pod: Option<&PodFacts>,
    what: &'static str,
    count: usize,
    most: usize,
) -> Result<(), Error> {
    match pod {
        Some(pod) if !pod.is_ending && count > most => Err(Error::TooMany { what, count, most }),
        _ => Ok(()),
    }
}

/// Whether conntrack keeps a UDP connection that leaves a flowtable. The kernel then subtracts the flowtable's
/// time-out from that of the stream (`flow_offload_fixup_ct`, `net/netfilter/nf_flow_table_core.c`).
fn keeps_udp() -> bool {
    let seconds = |name: &str| sysctl::value(&format!("netfilter/{name}"));
    let stream = seconds("nf_conntrack_udp_timeout_stream");
    let flow = seconds("nf_flowtable_udp_timeout");
    stream.zip(flow).is_none_or(|(stream, flow)| stream >= flow.saturating_add(UDP_SECONDS))
}

/// Whether the kernel's flowtables are usable. An existing one of symroute's proves that the kernel has them.
fn probe_flowtables(
    netfilter: &mut netlink::Socket,
    facts: &Facts,
    unseen: &Unseen,
) -> Result<Flowtables, Error> {
    // `nft_flow_route` (net/netfilter/nft_flow_offload.c) uses the mark since this release.
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
    // The plan reports wrong settings.
    let chosen = uplinks::choose(facts, settings).unwrap_or_default();
    let wanted: BTreeSet<_> = routers::candidates(facts, settings, chosen.into_iter()).collect();
    if wanted.is_empty() {
        return Ok(Neighbours::new());
    }
    let found = route::neighbours(rtnetlink, |link, ip| wanted.contains(&(link, ip)));
    found.map_err(Error::kernel("list neighbours"))
}

/// Whether the kernel has IPVS at this moment: the module may be loaded at any time.
pub(crate) fn has_ipvs() -> bool {
    // The folder exists for a built-in IPVS too, because it has parameters. /proc/net/ip_vs is slower.
    fs::exists("/sys/module/ip_vs").unwrap_or(false)
}

/// Whether the error means that the kernel lacks this part of nfnetlink, or nfnetlink itself.
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

/// Reads symroute's state in iptables and ipsets, and how the variants are used.
fn read_iptables(kernel: &mut Kernel, owned: &[&Settings], facts: &mut Facts) -> Result<(), Error> {
    let netfilter = &mut kernel.netfilter;
    let sets = ipset::names(netfilter).map_err(Error::kernel("list ipsets"))?;
    let ours = |name: &String| name == names::NODE_SET || name.starts_with(names::CHAIN_PREFIX);
    for name in sets.into_iter().filter(ours) {
        let found = ipset::set(netfilter, &name);
        let found = found.map_err(Error::kernel(format!("read ipset {name}")))?;
        facts.ours.ipsets.extend(found.map(|set| (name, set)));
    }
    // If the variant is not decided, the rules of other programs decide it.
    let open = owned.first().is_some_and(|s| {
        matches!(s.backend, Backend::Auto | Backend::Iptables) && may_use_iptables(s, facts)
    });
    for variant in Programs::installed() {
        for family in Family::ALL {
            // Before `mangle`: an old iptables-nft creates the chains when it lists them.
            let existing = match variant {
                Variant::Nft => builtin_chains::existing(netfilter, family)
                    .map_err(Error::kernel(format!("list {family} chains of table mangle")))?,
                Variant::Legacy => None,
            };
            let mangle = match Programs::mangle(variant, family) {
                // A table that cannot be listed holds nothing of symroute's: for example where the kernel lacks
                // IPv6.
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

/// An empty list if the kernel has no IPv6.
fn empty_if_unsupported<T>(
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

/// Tables that rules look up for an address of the node.
fn tables_by_source(rules: &[FoundRule], addresses: &[Address]) -> BTreeSet<u32> {
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

/// Whether the facts need a route: default routes, on-link routes, and all routes of main and of symroute's
/// tables. Other routes of a large routing table are dropped.
fn is_needed(route: &Route, owned: &[&Settings]) -> bool {
    let ours = || owned.iter().any(|settings| ours::is_table(settings, route.table));
    let on_link = || route.nexthops.iter().any(|hop| hop.gateway.is_none());
    route.table != RT_TABLE_LOCAL
        && (route.is_default() || route.table == RT_TABLE_MAIN || on_link() || ours())
}
