//! How each uplink leads outside: its gateway, and where that was learned.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::json;

use super::uplinks::has_address;
use super::{GatewaySource, Note, Uplink, Way};
use crate::config::{Invalid, Settings};
use crate::model::{Facts, Family, Link, Route, is_link_local};
use crate::netlink::uapi::{IFF_POINTOPOINT, RT_TABLE_MAIN};

/// The way out of an uplink for each family that it carries.
/// Error: a configured gateway outside the uplink's subnets.
pub(crate) fn ways(
    facts: &Facts,
    settings: &Settings,
    link: &Link,
) -> Result<BTreeMap<Family, Way>, Invalid> {
    let mut ways = BTreeMap::new();
    for family in Family::ALL {
        if let Some(way) = way(facts, settings, link, family)? {
            ways.insert(family, way);
        }
    }
    Ok(ways)
}

fn way(
    facts: &Facts,
    settings: &Settings,
    link: &Link,
    family: Family,
) -> Result<Option<Way>, Invalid> {
    if let Some(ip) = configured(settings, &link.name, family) {
        check(facts, link, ip)?;
        let metrics = Vec::new();
        return Ok(Some(Way { gateway: Some(ip), source: GatewaySource::Configured, metrics }));
    }
    if !carries(facts, link, family) {
        return Ok(None);
    }
    let defaults = defaults(facts, family);
    let own = defaults.iter().find_map(|route| {
        let hop = route.nexthops.iter().find(|hop| hop.link == link.index)?;
        let source = match hop.gateway {
            Some(_) => GatewaySource::DefaultRoute(route.table),
            None => GatewaySource::PointToPoint,
        };
        Some(Way { gateway: hop.gateway, source, metrics: route.metrics.clone() })
    });
    if own.is_some() {
        return Ok(own);
    }
    if link.flags & IFF_POINTOPOINT != 0 {
        let source = GatewaySource::PointToPoint;
        return Ok(Some(Way { gateway: None, source, metrics: Vec::new() }));
    }
    let inferred = defaults.iter().flat_map(|route| &route.nexthops).find_map(|hop| {
        let ip = hop.gateway.filter(|&ip| in_subnet(facts, link, ip))?;
        let source = GatewaySource::Inferred(facts.link_name(hop.link));
        Some(Way { gateway: Some(ip), source, metrics: Vec::new() })
    });
    let unknown = Way { gateway: None, source: GatewaySource::Unknown, metrics: Vec::new() };
    Ok(Some(inferred.unwrap_or(unknown)))
}

fn configured(settings: &Settings, name: &str, family: Family) -> Option<IpAddr> {
    settings.gateways.get(name)?.iter().copied().find(|&ip| Family::of(ip) == family)
}

/// Default routes: main's first, then by metric, then by table.
fn defaults(facts: &Facts, family: Family) -> Vec<&Route> {
    let mut found: Vec<_> =
        facts.routes.iter().filter(|r| r.is_default() && r.family() == family).collect();
    found.sort_by_key(|r| (r.table != RT_TABLE_MAIN, r.metric, r.table));
    found
}

/// Whether traffic of the family can come in by this uplink: it has a global address, or a route
/// leads through it.
fn carries(facts: &Facts, link: &Link, family: Family) -> bool {
    has_address(facts, link.index, family)
        || facts.routes.iter().any(|r| {
            r.family() == family
                && !r.special
                && !is_link_local(r.dst.ip())
                && r.nexthops.iter().any(|hop| hop.link == link.index)
        })
}

/// Whether an address lies in a connected subnet of the interface.
fn in_subnet(facts: &Facts, link: &Link, ip: IpAddr) -> bool {
    let own = |a: &&crate::model::Address| a.link == link.index;
    facts.addresses.iter().filter(own).any(|a| a.net.contains(ip) && a.ip != ip)
        || facts.routes.iter().any(|r| {
            !r.is_default()
                && r.dst.contains(ip)
                && r.nexthops.iter().any(|hop| hop.link == link.index && hop.gateway.is_none())
        })
}

/// An address of the node itself, or the first or last of an IPv4 subnet of its.
fn is_own(facts: &Facts, ip: IpAddr) -> bool {
    let edge = |net: ipnetwork::IpNetwork| {
        net.is_ipv4() && net.prefix() < 31 && (ip == net.network() || ip == net.broadcast())
    };
    facts.addresses.iter().any(|a| a.ip == ip || edge(a.net))
}

/// A configured gateway has to lie in a subnet of its uplink, where that has any.
fn check(facts: &Facts, link: &Link, ip: IpAddr) -> Result<(), Invalid> {
    let family = Family::of(ip);
    let wrong = |hint: String| {
        Err(Invalid::new(format!("gateways.{}", link.name), &json!(ip.to_string()), hint))
    };
    if is_own(facts, ip) {
        return wrong("is the node's own address, or one of all hosts; set its router".into());
    }
    if is_link_local(ip) || !has_address(facts, link.index, family) || in_subnet(facts, link, ip) {
        return Ok(());
    }
    let subnets: Vec<_> = facts
        .addresses
        .iter()
        .filter(|a| a.link == link.index && Family::of(a.ip) == family)
        .map(|a| a.net.to_string())
        .collect();
    wrong(format!(
        "lies outside every connected subnet of {} ({}); set a router of that subnet",
        link.name,
        subnets.join(", "),
    ))
}

/// A note for each configured gateway whose uplink is not there.
pub(crate) fn unused(settings: &Settings, uplinks: &[Uplink]) -> Vec<Note> {
    let absent = settings.gateways.keys().filter(|name| uplinks.iter().all(|u| u.name != **name));
    absent
        .map(|name| Note {
            what: format!("gateways.{name} is set, but {name} is no uplink"),
            way_out: format!("add \"{name}\" to \"uplinks\" or remove its gateway"),
        })
        .collect()
}
