//! The plan: computes the desired state of a node from facts and settings, without kernel calls and files.

pub(crate) mod backend;
mod by_source;
pub(crate) mod conflicts;
pub(crate) mod diff;
pub(crate) mod gateways;
pub(crate) mod ids;
pub(crate) mod mark_users;
mod network;
pub(crate) mod offload;
pub(crate) mod ours;
pub(crate) mod precedence;
pub(crate) mod prefixes;
pub(crate) mod proof;
pub(crate) mod routers;
pub(crate) mod routing;
pub(crate) mod unanswered;
pub(crate) mod uplinks;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::backend::iptables::rules::Xtables;
use crate::backend::iptables::{self, inside};
use crate::backend::nftables::chains::build;
use crate::backend::nftables::rules::Ruleset;
use crate::backend::spec::{self, Spec, Steering};
use crate::backend::{Marker, nftables};
use crate::config::{Invalid, Masquerade, Settings};
use crate::model::{Facts, Family, Field, Mac, Nexthop, Route, Rule};
use crate::netlink::uapi::RT_TABLE_MAIN;
use precedence::Stray;
use proof::Question;
use routers::Router;
use uplinks::LeftOut;

/// The desired state of a node. The empty plan describes a node without symroute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Uplinks in the order of their ids.
    pub(crate) uplinks: Vec<Uplink>,
    /// Families in which at least one uplink carries traffic; each has rules.
    pub(crate) families: BTreeSet<Family>,
    /// Routes of the uplinks' tables. A route comes after those that the kernel needs to accept it.
    pub(crate) routes: Vec<Route>,
    /// Rules in the order in which they have to be added.
    pub(crate) rules: Vec<Rule>,
    /// Indexes of the interfaces that need `src_valid_mark`.
    pub(crate) src_valid_mark: BTreeSet<u32>,
    /// Indexes of the interfaces whose `src_valid_mark` was 0 before symroute. Removal sets it back.
    pub(crate) restore: BTreeSet<u32>,
    /// The nftables table of family inet. With iptables it holds only the flowtable, if there is one.
    pub(crate) ruleset: Option<Ruleset>,
    /// The nftables table of family arp. Both backends use it where the kernel has `nf_tables`.
    pub(crate) arp: Option<Ruleset>,
    /// Chains and ipsets of the iptables backend.
    pub(crate) xtables: Option<Xtables>,
    /// Built-in chains of iptables-nft that exist only because of symroute. Removal deletes them.
    pub(crate) made_chains: BTreeSet<(Family, String)>,
    /// Masquerade steering, for each family that needs it.
    pub(crate) steering: BTreeMap<Family, Steering>,
    /// Look-ups by which an ADD proves that the node is in this state.
    pub(crate) proof: Vec<Question>,
    pub(crate) notes: Vec<Note>,
    /// Rules of other programs before symroute's that send replies elsewhere.
    pub(crate) stray: Option<Stray>,
    /// Interfaces that look like uplinks but are not, for the operator's reports.
    pub(crate) left_out: Vec<LeftOut>,
    /// NICs that are up without address and default route: index and name.
    pub(crate) silent: Vec<(u32, String)>,
    /// Names of uplinks with several routers, whose connections are not offloaded although the settings ask for
    /// it. A connection may change its router, and the flowtable would not notice.
    pub(crate) not_offloaded: Vec<String>,
    /// Networks behind the node that get no answer from one of its addresses, with or without symroute.
    pub(crate) unanswered: Vec<Note>,
}

impl Plan {
    /// Whether the interface of this name is a NIC with an address that is not an uplink.
    pub(crate) fn leaves_out_nic(&self, name: &str) -> bool {
        self.left_out.iter().any(|left| left.name == name && left.is_nic())
    }

    /// Whether the plan has a flowtable.
    pub(crate) fn offloads(&self) -> bool {
        self.ruleset.as_ref().is_some_and(|ruleset| ruleset.flowtable.is_some())
    }

    pub(crate) fn marker(&self) -> Marker {
        self.xtables.as_ref().map_or(Marker::Nftables, |x| Marker::Iptables(x.variant))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) id: u32,
    pub(crate) link: u32,
    pub(crate) name: String,
    pub(crate) table: u32,
    /// Next hops of the default route, for each family that the uplink carries.
    pub(crate) ways: BTreeMap<Family, Way>,
    /// Routers with an id and a table of their own; empty for an uplink with one router.
    pub(crate) routers: Vec<Router>,
    /// Hardware addresses of the routers that use the uplink's own id.
    pub(crate) usual_macs: Vec<Mac>,
}

impl Uplink {
    /// Sum of `by_id` over the id of the uplink and those of its routers.
    pub(crate) fn total(&self, by_id: &BTreeMap<u32, u64>) -> u64 {
        self.units().filter_map(|unit| by_id.get(&unit.id)).sum()
    }

    /// The uplink itself, followed by its variant for each router with an id.
    pub(crate) fn units(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.routers.iter().map(|router| &router.uplink_via))
    }
}

/// How traffic of one family leaves through an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// Next hops of the default route, through a router or on the link; empty for no default route.
    pub(crate) hops: Vec<Nexthop>,
    pub(crate) source: GatewaySource,
    /// `RTA_METRICS` of the default route that the hops come from.
    pub(crate) metrics: Vec<u8>,
}

/// How an uplink's gateway was learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GatewaySource {
    /// The configuration key `gateways`.
    Configured,
    /// A default route in this table.
    DefaultRoute(u32),
    /// The default route of another interface of the same network; holds its name.
    Inferred(String),
    /// The result of the plugin that created a pod's interface.
    Result,
    /// The node itself, at the other end of a pod's interface. Without a known address there are no hops.
    Peer,
    /// No gateway is needed: every packet arrives at the other end of the link.
    PointToPoint,
    /// The settings say that the link has no router.
    OnLink,
    /// No source names a gateway.
    Unknown,
}

impl Way {
    /// Addresses of the routers among the next hops.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.hops.iter().filter_map(|hop| hop.gateway)
    }
}

impl fmt::Display for GatewaySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configured => f.write_str("configured"),
            Self::DefaultRoute(RT_TABLE_MAIN) => f.write_str("default route in main"),
            Self::DefaultRoute(table) => write!(f, "default route in table {table}"),
            Self::Inferred(from) => write!(f, "default route of {from}"),
            Self::Result => f.write_str("result of its plugin"),
            Self::Peer => f.write_str("the node"),
            Self::PointToPoint => f.write_str("point-to-point"),
            Self::OnLink => f.write_str("configured: no router"),
            Self::Unknown => f.write_str("not found"),
        }
    }
}

/// A fault or a risk, and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// What is wrong.
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// Computes the desired state, and the settings with the values that the plugin has chosen for "auto".
/// Error: the first setting that is impossible on this node, with the remedy.
pub(crate) fn decide(facts: &Facts, settings: &Settings) -> Result<(Settings, Plan), Invalid> {
    let settings = conflicts::avoid(facts, settings);
    let plan = plan(facts, &settings)?;
    if !settings.automatic.priority {
        return Ok((settings, plan));
    }
    let better = plan.stray.as_ref().and_then(Stray::choice);
    let Some(better) = better else { return Ok((settings, plan)) };
    // The plugin's own choice must not cause an error: without a valid plan it keeps the old priority.
    let moved = Settings { priority: better, ..settings.clone() };
    match self::plan(facts, &moved) {
        Ok(plan) => Ok((moved, plan)),
        Err(_) => Ok((settings, plan)),
    }
}

/// Computes the desired state for these facts and settings.
/// Error: the first setting that is impossible on this node, with the remedy.
pub(crate) fn plan(facts: &Facts, settings: &Settings) -> Result<Plan, Invalid> {
    let chosen = uplinks::choose(facts, settings)?;
    if facts.pod.is_some() && chosen.len() < 2 {
        // With one interface, all replies leave through it anyway.
        return Ok(Plan::default());
    }
    conflicts::check(facts, settings)?;
    let ids = ids::assign(facts, settings, &chosen)?;
    let mut plan = Plan::default();
    let mut taken: BTreeSet<u32> = ids.keys().copied().collect();
    for (id, link) in ids {
        let (ways, notes) = gateways::ways(facts, settings, link);
        plan.notes.extend(notes);
        let uplink = Uplink {
            id,
            link: link.index,
            name: link.name.clone(),
            table: settings.table(id),
            ways,
            routers: Vec::new(),
            usual_macs: Vec::new(),
        };
        let uplink =
            routers::with_routers(facts, settings, link, uplink, &mut taken, &mut plan.notes);
        plan.notes.extend(routing::notes(facts, &uplink));
        plan.uplinks.push(uplink);
    }
    plan.notes.extend(gateways::unused(settings, &plan.uplinks));
    plan.left_out = uplinks::left_out(facts, settings, &plan.uplinks);
    plan.silent = uplinks::silent(facts, settings, &plan.uplinks);
    plan.families = families(&plan.uplinks);
    let units = || plan.uplinks.iter().flat_map(Uplink::units);
    plan.routes = units().flat_map(|u| routing::routes(facts, u)).collect();
    let marker = backend::choose(facts, settings)?;
    let units: Vec<_> = units().collect();
    plan.rules = routing::rules(settings, &units, &plan.families, marker);
    if facts.pod.is_some() {
        plan.rules.extend(by_source::rules(facts, settings, &plan.uplinks));
    }
    plan.src_valid_mark = plan.uplinks.iter().map(|u| u.link).collect();
    let zero = |link: &u32| facts.src_valid_mark.get(link) == Some(&0);
    let restore = |link: &&u32| zero(link) || facts.restore.contains(link);
    plan.restore = plan.src_valid_mark.iter().filter(restore).copied().collect();
    add_marking(facts, settings, marker, &mut plan)?;
    plan.proof = proof::questions(facts, settings, &plan);
    plan.unanswered = unanswered::find(facts, settings, &plan);
    plan.stray = precedence::find(facts, settings, &plan);
    plan.notes.extend(plan.stray.as_ref().map(|stray| stray.note(settings)));
    Ok(plan)
}

/// Adds the marking to the plan: a table of nftables, or chains of iptables.
fn add_marking(
    facts: &Facts,
    settings: &Settings,
    marker: Marker,
    plan: &mut Plan,
) -> Result<(), Invalid> {
    let mut steering = steering(facts, settings, &plan.uplinks)?;
    let outside = uplinks::outside(facts, &plan.src_valid_mark);
    if let Marker::Iptables(variant) = marker {
        backend::check_names(facts, &outside)?;
        plan.notes.extend(backend::without_steering(settings, variant, &mut steering)?);
    }
    let with_hops = |u: &Uplink| {
        u.ways.iter().filter(|(_, way)| !way.hops.is_empty()).map(|(f, _)| *f).collect()
    };
    let unit = |u: &Uplink, routers: Vec<(Mac, u32)>, is_router| spec::Uplink {
        id: u.id,
        link: u.link,
        name: u.name.clone(),
        mtu: facts.link(u.link).map_or(0, |link| link.mtu),
        default_route_in: with_hops(u),
        routers,
        is_router,
    };
    let all = |u: &Uplink| -> Vec<_> {
        let mut routers: Vec<_> = u.routers.iter().map(|r| (r.mac, r.uplink_via.id)).collect();
        if !routers.is_empty() {
            routers.extend(u.usual_macs.iter().map(|&mac| (mac, u.id)));
        }
        let by_router = u.routers.iter().map(|r| unit(&r.uplink_via, routers.clone(), true));
        [unit(u, routers.clone(), false)].into_iter().chain(by_router).collect()
    };
    let offload = offload::decide(facts, settings, plan)?;
    plan.steering.clone_from(&steering);
    let uplinks: Vec<_> = plan.uplinks.iter().flat_map(all).collect();
    let named: Vec<_> = outside.iter().map(|&link| (link, facts.link_name(link))).collect();
    let own = own_addresses(facts, &plan.src_valid_mark);
    let spec = Spec {
        field: settings.field,
        uplinks: &uplinks,
        outside: &named,
        silent: &plan.silent,
        own: &own,
        host: settings.host,
        hairpin: settings.hairpin,
        unbound: facts.pod.as_ref().map(|_| settings.field.unbound_mark()),
        steering,
        routeless: &routeless(facts),
        hairpins: &facts.hairpins,
        left_out: &facts.left_out,
        exclude: &settings.exclude,
        ipvs: facts.ipvs,
        offload,
        fingerprint: settings.fingerprint(facts.ipvs),
        priority: settings.priority,
        table_base: settings.table_base,
        restore: &plan.restore,
    };
    plan.arp = arp(facts, settings.field, &uplinks, &own);
    let Marker::Iptables(variant) = marker else {
        plan.ruleset = Some(build(&spec));
        return Ok(());
    };
    plan.ruleset = nftables::offload::alone(&spec);
    let prefixes = |family| inside::prefixes(facts, &outside, family);
    let families = plan.families.iter().copied();
    plan.made_chains = backend::made_chains(facts, variant, &plan.families);
    let xtables = iptables::chains::build(&spec, variant, families, prefixes, &plan.made_chains);
    backend::check_sets(facts, &xtables)?;
    plan.xtables = Some(xtables);
    Ok(())
}

/// Builds the table that marks ARP requests on uplinks with strict `rp_filter`.
fn arp(
    facts: &Facts,
    field: Field,
    uplinks: &[spec::Uplink],
    own: &BTreeSet<(u32, IpAddr)>,
) -> Option<Ruleset> {
    let strict =
        uplinks.iter().filter(|u| !u.is_router).filter(|u| gateways::is_strict(facts, u.link));
    nftables::arp::build(field, strict, own).filter(|_| facts.tooling.nftables)
}

/// Global addresses of these uplinks, with the interface index. An address that two uplinks share identifies
/// neither, so it is left out.
pub(crate) fn own_addresses(facts: &Facts, uplinks: &BTreeSet<u32>) -> BTreeSet<(u32, IpAddr)> {
    let global = facts.addresses.iter().filter(|a| a.scope == 0 && uplinks.contains(&a.link));
    let all: BTreeSet<(u32, IpAddr)> = global.map(|a| (a.link, a.ip)).collect();
    let mut owners: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (_, ip) in &all {
        *owners.entry(*ip).or_default() += 1;
    }
    all.into_iter().filter(|(_, ip)| owners.get(ip) == Some(&1)).collect()
}

/// Families in which main has no default route.
fn routeless(facts: &Facts) -> Vec<Family> {
    let main = |r: &Route| r.table == RT_TABLE_MAIN && r.is_wide();
    let has = |family| facts.routes.iter().any(|r| main(r) && r.family() == family);
    Family::ALL.into_iter().filter(|&family| !has(family)).collect()
}

/// Families that at least one uplink carries.
fn families(uplinks: &[Uplink]) -> BTreeSet<Family> {
    uplinks.iter().flat_map(|u| u.ways.keys().copied()).collect()
}

/// Decides masquerade steering per family: to the uplink whose address MASQUERADE will use.
/// Error: `via` names no uplink.
fn steering(
    facts: &Facts,
    settings: &Settings,
    uplinks: &[Uplink],
) -> Result<BTreeMap<Family, Steering>, Invalid> {
    let mut out = BTreeMap::new();
    for family in Family::ALL {
        let steering = match &settings.masquerade {
            Masquerade::Off => None,
            Masquerade::Auto => steer_auto(facts, settings, uplinks, family),
            Masquerade::Mark { mark, via } => {
                let chosen = match via {
                    Some(name) => uplinks.iter().find(|u| u.name == *name),
                    None => by_main_route(facts, uplinks, family),
                };
                let Some(via) = chosen else {
                    if via.is_none() {
                        continue;
                    }
                    let value = settings.to_json()["masquerade"].clone();
                    let names: Vec<_> = uplinks.iter().map(|u| u.name.as_str()).collect();
                    let hint =
                        format!("\"via\" is not an uplink; uplinks are: {}", names.join(", "));
                    return Err(Invalid::new("masquerade", &value, hint));
                };
                let away_from = uplinks.iter().map(|u| u.link).collect();
                Some(Steering { mark: *mark, via: via.id, away_from })
            }
        };
        out.extend(steering.map(|steering| (family, steering)));
    }
    Ok(out)
}

/// Steering for `auto`: needed if an uplink carries the family without an address in it.
fn steer_auto(
    facts: &Facts,
    settings: &Settings,
    uplinks: &[Uplink],
    family: Family,
) -> Option<Steering> {
    debug_assert!(settings.masquerade == Masquerade::Auto);
    let away_from: BTreeSet<u32> = uplinks
        .iter()
        .filter(|u| u.ways.contains_key(&family) && !uplinks::has_address(facts, u.link, family))
        .map(|u| u.link)
        .collect();
    if away_from.is_empty() {
        return None;
    }
    let via = by_main_route(facts, uplinks, family).filter(|u| !away_from.contains(&u.link))?;
    let mark = crate::names::KUBE_MASQUERADE;
    // Packets that seem to leave through the target uplink are included. IPVS routes before the source address
    // is known, and NAT routes again with it, after symroute's chains.
    let away_from = away_from.into_iter().chain([via.link]).collect();
    Some(Steering { mark, via: via.id, away_from })
}

/// The uplink of main's default route with the lowest metric.
fn by_main_route<'a>(facts: &Facts, uplinks: &'a [Uplink], family: Family) -> Option<&'a Uplink> {
    facts
        .routes
        .iter()
        .filter(|r| r.table == RT_TABLE_MAIN && r.is_default() && r.family() == family)
        .min_by_key(|r| r.metric)?
        .nexthops
        .iter()
        .find_map(|hop| uplinks.iter().find(|u| u.link == hop.link))
}

#[cfg(test)]
mod tests;
