//! The plan: from facts and settings to the desired state of a node. Pure: no kernel, no files.

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

/// The desired state of a node. The empty plan is the node without us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The uplinks in the order of their ids.
    pub(crate) uplinks: Vec<Uplink>,
    /// Families that have rules.
    pub(crate) families: BTreeSet<Family>,
    /// The content of the uplinks' tables, in the order in which it can be made.
    pub(crate) routes: Vec<Route>,
    /// The rules, in the order in which they are made.
    pub(crate) rules: Vec<Rule>,
    /// Indexes of the interfaces that need `src_valid_mark`.
    pub(crate) src_valid_mark: BTreeSet<u32>,
    /// Of those, the ones that have to be put back one day.
    pub(crate) restore: BTreeSet<u32>,
    /// The nftables table; none for no table.
    pub(crate) ruleset: Option<Ruleset>,
    /// The table of family arp, with whatever backend.
    pub(crate) arp: Option<Ruleset>,
    /// What is there instead with iptables.
    pub(crate) xtables: Option<Xtables>,
    /// Built-in chains of iptables-nft that come with us and have to go one day.
    pub(crate) made: BTreeSet<(Family, String)>,
    /// Masquerade steering of each family that has it.
    pub(crate) steering: BTreeMap<Family, Steering>,
    /// What an ADD asks to see that the node is like this.
    pub(crate) proof: Vec<Question>,
    pub(crate) notes: Vec<Note>,
    /// Rules before ours that send replies elsewhere.
    pub(crate) stray: Option<Stray>,
    /// Interfaces that are no uplinks, for a person to know.
    pub(crate) left_out: Vec<LeftOut>,
    /// NICs without an address and a default route: index and name.
    pub(crate) silent: Vec<(u32, String)>,
    /// Uplinks whose connections are not offloaded although the settings want it: with several routers, a
    /// connection may change its router, and the flowtable would not notice.
    pub(crate) not_offloaded: Vec<String>,
    /// Networks behind the node that get no answer from it, whether symroute is in force or not.
    pub(crate) unanswered: Vec<Note>,
}

impl Plan {
    /// Whether connections are put into a flowtable.
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
    /// How each family that it carries gets out.
    pub(crate) ways: BTreeMap<Family, Way>,
    /// Routers that have ids of their own, where there are several.
    pub(crate) routers: Vec<Router>,
    /// Hardware addresses of its usual router.
    pub(crate) usual_macs: Vec<Mac>,
}

impl Uplink {
    /// What was counted by the ids of the uplink and of its routers, in all.
    pub(crate) fn total(&self, by_id: &BTreeMap<u32, u64>) -> u64 {
        self.units().filter_map(|unit| by_id.get(&unit.id)).sum()
    }

    /// The uplink, and what it is by each of its routers.
    pub(crate) fn units(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.routers.iter().map(|router| &router.by_it))
    }
}

/// How an uplink leads outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// The hops of its default route, by a router or on the link; empty for no default route.
    pub(crate) hops: Vec<Nexthop>,
    pub(crate) source: GatewaySource,
    /// `RTA_METRICS` of the default route that it was taken from.
    pub(crate) metrics: Vec<u8>,
}

/// How an uplink's gateway was learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GatewaySource {
    /// From the key `gateways`.
    Configured,
    /// From a default route in this table.
    DefaultRoute(u32),
    /// From the default route of another interface, whose gateway lies in a subnet of this one.
    Inferred(String),
    /// From the result of the plugin that made a pod's interface.
    Result,
    /// The node is at the other end of a pod's interface, if it is known by which address.
    Peer,
    /// None is needed: what is sent arrives at the other end.
    PointToPoint,
    /// The settings say that there is none.
    OnLink,
    /// Nowhere.
    Unknown,
}

impl Way {
    /// The routers that it leads by.
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

/// Something that is off, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    /// What is off.
    pub(crate) what: String,
    pub(crate) way_out: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.way_out)
    }
}

/// The desired state, with the settings as they are once the plugin has made its choices.
/// Error: the first setting that can't be kept on this node, with the remedy.
pub(crate) fn decide(facts: &Facts, settings: &Settings) -> Result<(Settings, Plan), Invalid> {
    let settings = conflicts::avoid(facts, settings);
    let plan = plan(facts, &settings)?;
    if !settings.automatic.priority {
        return Ok((settings, plan));
    }
    let better = plan.stray.as_ref().and_then(Stray::choice);
    let Some(better) = better else { return Ok((settings, plan)) };
    // A choice is never an error.
    let moved = Settings { priority: better, ..settings.clone() };
    match self::plan(facts, &moved) {
        Ok(plan) => Ok((moved, plan)),
        Err(_) => Ok((settings, plan)),
    }
}

/// The desired state for these facts and settings.
/// Error: the first setting that can't be kept on this node, with the remedy.
pub(crate) fn plan(facts: &Facts, settings: &Settings) -> Result<Plan, Invalid> {
    let chosen = uplinks::choose(facts, settings)?;
    if facts.pod.is_some() && chosen.len() < 2 {
        // All replies leave by the one interface anyway.
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
        let uplink = routers::of(facts, settings, link, uplink, &mut taken, &mut plan.notes);
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
    mark(facts, settings, marker, &mut plan)?;
    plan.proof = proof::questions(facts, settings, &plan);
    plan.unanswered = unanswered::find(facts, settings, &plan);
    plan.stray = precedence::find(facts, settings, &plan);
    plan.notes.extend(plan.stray.as_ref().map(|stray| stray.note(settings)));
    Ok(plan)
}

/// Adds to the plan what marks: a table of nftables, or chains of iptables.
fn mark(
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
    let unit = |u: &Uplink, routers: Vec<(Mac, u32)>, router| spec::Uplink {
        id: u.id,
        link: u.link,
        name: u.name.clone(),
        mtu: facts.link(u.link).map_or(0, |link| link.mtu),
        ways: u.ways.iter().filter(|(_, way)| !way.hops.is_empty()).map(|(f, _)| *f).collect(),
        routers,
        router,
    };
    let all = |u: &Uplink| -> Vec<_> {
        let mut routers: Vec<_> = u.routers.iter().map(|r| (r.mac, r.by_it.id)).collect();
        if !routers.is_empty() {
            routers.extend(u.usual_macs.iter().map(|&mac| (mac, u.id)));
        }
        let by_router = u.routers.iter().map(|r| unit(&r.by_it, routers.clone(), true));
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
        unbound: facts.pod.as_ref().map(|_| settings.field.unbound()),
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
    plan.made = backend::made(facts, variant, &plan.families);
    let xtables = iptables::chains::build(&spec, variant, families, prefixes, &plan.made);
    backend::check_sets(facts, &xtables)?;
    plan.xtables = Some(xtables);
    Ok(())
}

/// Marks ARP requests by the uplinks whose sources are checked strictly.
fn arp(
    facts: &Facts,
    field: Field,
    uplinks: &[spec::Uplink],
    own: &BTreeSet<(u32, IpAddr)>,
) -> Option<Ruleset> {
    let strict =
        uplinks.iter().filter(|u| !u.router).filter(|u| gateways::is_strict(facts, u.link));
    nftables::arp::build(field, strict, own).filter(|_| facts.tooling.nftables)
}

/// The uplinks' own addresses. One that two of them have says nothing about either.
pub(crate) fn own_addresses(facts: &Facts, uplinks: &BTreeSet<u32>) -> BTreeSet<(u32, IpAddr)> {
    let global = facts.addresses.iter().filter(|a| a.scope == 0 && uplinks.contains(&a.link));
    let all: BTreeSet<(u32, IpAddr)> = global.map(|a| (a.link, a.ip)).collect();
    let mut owners: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (_, ip) in &all {
        *owners.entry(*ip).or_default() += 1;
    }
    all.into_iter().filter(|(_, ip)| owners.get(ip) == Some(&1)).collect()
}

/// The families in which main has no default route.
fn routeless(facts: &Facts) -> Vec<Family> {
    let main = |r: &Route| r.table == RT_TABLE_MAIN && r.is_wide();
    let has = |family| facts.routes.iter().any(|r| main(r) && r.family() == family);
    Family::ALL.into_iter().filter(|&family| !has(family)).collect()
}

/// A family has rules where an uplink carries it.
fn families(uplinks: &[Uplink]) -> BTreeSet<Family> {
    uplinks.iter().flat_map(|u| u.ways.keys().copied()).collect()
}

/// Masquerade steering: through the uplink whose address MASQUERADE will use.
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

/// On where an uplink that carries the family has no address of its own in it.
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
    // Also what seems to leave by it already: IPVS routes without the source, and NAT routes again
    // with it, behind our chains.
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
