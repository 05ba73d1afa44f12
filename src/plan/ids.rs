//! Assigns ids to uplinks. An uplink keeps its id while it exists, because live connections carry it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::json;

use crate::backend::iptables::node_set;
use crate::backend::nftables::sets::router_key;
use crate::config::{Invalid, Settings};
use crate::model::{Action, ElementData, Facts, Family, Link, Mac, Nexthop, Route};
use crate::names;

/// The ids of these uplinks, by id. The kernel is the record: ids are read from the map of ids, then from the
/// rules, then from the tables. New uplinks get the lowest free ids.
/// Error: more uplinks than the mask has ids.
pub(crate) fn assign<'a>(
    facts: &Facts,
    settings: &Settings,
    chosen: &[&'a Link],
) -> Result<BTreeMap<u32, &'a Link>, Invalid> {
    let max = largest_id(facts, settings);
    if chosen.len() > max as usize {
        let names: Vec<_> = chosen.iter().map(|l| l.name.as_str()).collect();
        let hint = format!(
            "{} uplinks, but markMask {} has ids for {max}; leave some out with \"!name\" or set \
             a wider markMask",
            names.len(),
            settings.field,
        );
        return Err(Invalid::new("uplinks", &json!(names), hint));
    }
    let mut ids: BTreeMap<u32, &Link> = BTreeMap::new();
    let mut without: Vec<&Link> = Vec::new();
    for &link in chosen {
        let known = [from_map, from_rules, from_tables]
            .iter()
            .find_map(|record| record(facts, settings, link))
            .filter(|id| (1..=max).contains(id) && !ids.contains_key(id));
        match known {
            Some(id) => drop(ids.insert(id, link)),
            None => without.push(link),
        }
    }
    // Connections of an uplink that has just gone still carry its id.
    let stale = recorded_ids(facts, settings);
    let by_router: BTreeSet<u32> = recorded_routers(facts).into_iter().map(|(_, id)| id).collect();
    for link in without {
        let free = |id: &u32| !ids.contains_key(id);
        let fresh = (1..=max).find(|id| free(id) && !stale.contains(id));
        let of_no_router = || (1..=max).find(|id| free(id) && !by_router.contains(id));
        // There are at least as many ids as uplinks.
        if let Some(id) = fresh.or_else(of_no_router).or_else(|| (1..=max).find(free)) {
            ids.insert(id, link);
        }
    }
    Ok(ids)
}

/// The largest id to assign. A pod uses the very largest for the mark of replies that are not bound.
fn largest_id(facts: &Facts, settings: &Settings) -> u32 {
    settings.field.max_id() - u32::from(facts.pod.is_some())
}

/// The id of one of several routers: its present id, or the lowest that no uplink, router or connection uses.
/// None if all are in use.
pub(crate) fn of_router(
    facts: &Facts,
    settings: &Settings,
    link: u32,
    mac: Mac,
    gateways: &BTreeMap<Family, IpAddr>,
    taken: &BTreeSet<u32>,
) -> Option<u32> {
    let max = largest_id(facts, settings);
    let routers = recorded_routers(facts);
    let by_mac =
        routers.iter().find_map(|(key, id)| (*key == router_key(link, mac)).then_some(*id));
    let leads = |route: &&Route| {
        let gateway = gateways.get(&route.family()).copied();
        let by_it =
            |hops: &[Nexthop]| matches!(hops, [hop] if (hop.link, hop.gateway) == (link, gateway));
        route.is_default() && super::ours::is_table(settings, route.table) && by_it(&route.nexthops)
    };
    let free = |id: &u32| (1..=max).contains(id) && !taken.contains(id);
    let by_table = facts.ours.routes.iter().filter(leads).map(|r| r.table - settings.table_base);
    let stale = recorded_ids(facts, settings);
    // A recorded id may belong to a router of another uplink, and connections carry it.
    let fresh = || (1..=max).find(|id| free(id) && !stale.contains(id));
    by_mac.into_iter().chain(by_table).find(free).or_else(fresh)
}

/// Key (interface and hardware address) and id of each router in the nftables map.
fn recorded_routers(facts: &Facts) -> Vec<(Vec<u8>, u32)> {
    // This map has all routers, those with the uplink's own id included.
    let maps = facts.ours.table.iter().filter_map(|t| t.sets.get(names::REROUTED));
    let element = |(key, data): &(Vec<u8>, ElementData)| match data {
        ElementData::Goto(chain) => Some((key.clone(), chain.rsplit('_').next()?.parse().ok()?)),
        _ => None,
    };
    maps.flat_map(|set| &set.elements).filter_map(element).collect()
}

/// Interface index and id of each uplink, as recorded in the nftables table or the ipset.
fn recorded_uplinks(facts: &Facts, settings: &Settings) -> Vec<(u32, u32)> {
    let maps = facts.ours.table.iter().filter_map(|t| t.sets.get(names::IDS));
    let in_table = maps.flat_map(|set| &set.elements).filter_map(|(key, data)| {
        Some((u32::from_ne_bytes(key.as_slice().try_into().ok()?), id_of(data, settings)?))
    });
    let notes = facts.ours.ipsets.get(names::NODE_SET).map(|set| node_set::read(&set.members));
    in_table.chain(notes.into_iter().flat_map(|notes| notes.ids)).collect()
}

/// The id in an element of the map of ids.
fn id_of(data: &ElementData, settings: &Settings) -> Option<u32> {
    let ElementData::Value(mark) = data else { return None };
    let mark = u32::from_ne_bytes(mark.as_slice().try_into().ok()?);
    // A mark outside the field was written under another markMask.
    (mark & !settings.field.id_mask() == 0).then(|| settings.field.id(mark))
}

/// All recorded ids, including those of uplinks and routers that have gone.
fn recorded_ids(facts: &Facts, settings: &Settings) -> BTreeSet<u32> {
    let tables = facts.ours.routes.iter().map(|route| route.table);
    let by_table = tables.filter(|&table| super::ours::is_table(settings, table));
    let all = recorded_uplinks(facts, settings).into_iter().map(|(_, id)| id);
    let all = all.chain(recorded_routers(facts).into_iter().map(|(_, id)| id));
    all.chain(by_table.map(|table| table - settings.table_base)).collect()
}

/// Hardware address, from the nftables map, of a router with an id of its own.
pub(crate) fn remembered_mac(
    facts: &Facts,
    settings: &Settings,
    link: u32,
    ip: IpAddr,
) -> Option<Mac> {
    let leads = |id: u32| {
        let only = |r: &Route| matches!(&r.nexthops[..], [hop] if (hop.link, hop.gateway) == (link, Some(ip)));
        let mut of_table = facts.ours.routes.iter().filter(|r| r.table == settings.table(id));
        of_table.any(|route| route.is_default() && only(route))
    };
    recorded_routers(facts).into_iter().find_map(|(key, id)| {
        let mac: Mac = key.get(4..10)?.try_into().ok()?;
        (key == router_key(link, mac) && leads(id)).then_some(mac)
    })
}

fn from_map(facts: &Facts, settings: &Settings, link: &Link) -> Option<u32> {
    let uplinks = recorded_uplinks(facts, settings);
    uplinks.into_iter().find_map(|(index, id)| (index == link.index).then_some(id))
}

fn from_rules(facts: &Facts, settings: &Settings, link: &Link) -> Option<u32> {
    facts.ours.rules.iter().map(|found| &found.rule).find_map(|rule| match (&rule.iif, rule.mark) {
        (Some(iif), Some(mark))
            if *iif == link.name
                && rule.priority == settings.rules().request
                && mark.mask == settings.field.mask()
                && rule.action == Action::Goto(settings.rules().end) =>
        {
            Some(settings.field.id(mark.value))
        }
        _ => None,
    })
}

fn from_tables(facts: &Facts, settings: &Settings, link: &Link) -> Option<u32> {
    let ours = |table| super::ours::is_table(settings, table);
    let through = facts
        .ours
        .routes
        .iter()
        .find(|r| ours(r.table) && r.nexthops.iter().any(|hop| hop.link == link.index))?;
    Some(through.table - settings.table_base)
}
