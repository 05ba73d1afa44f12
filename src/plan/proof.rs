//! Prepares the look-ups by which an ADD proves that a node is ready: two for each uplink and
//! family.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Plan, Uplink};
use crate::config::Settings;
use crate::model::{Facts, Family, PerFamily, Route, host_length, is_link_local};
use crate::netlink::uapi::{IFF_LOOPBACK, IFF_UP, RT_TABLE_MAIN};

/// Addresses outside every cluster (RFC 5737, RFC 3849).
pub(crate) const OUTSIDE: PerFamily<IpAddr> = PerFamily(
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
);

/// Values for two look-ups about one uplink and family. A bound reply must leave through the uplink
/// and its table. A request that arrives on the uplink must reach the node and pass the kernel's
/// reverse path filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) link: u32,
    pub(crate) table: u32,
    pub(crate) mark: u32,
    /// An address that the uplink's table leads to.
    pub(crate) outside: IpAddr,
    /// An address of the node in the family, if it has one.
    pub(crate) local: Option<IpAddr>,
}

/// The questions that prove the plan.
pub(crate) fn questions(facts: &Facts, settings: &Settings, plan: &Plan) -> Vec<Question> {
    let about = |uplink: &Uplink, family| {
        let outside = outside(facts, plan, uplink, family)?;
        let local = local(facts, uplink, family);
        let mark = settings.field.of(uplink.id);
        Some(Question { link: uplink.link, table: uplink.table, mark, outside, local })
    };
    let uplinks = plan.uplinks.iter().flat_map(Uplink::units);
    uplinks.flat_map(|uplink| Family::ALL.into_iter().filter_map(|f| about(uplink, f))).collect()
}

/// Families in which main has one best way outside. Of several hops, or several routes with one
/// metric (router advertisements), the kernel may choose another each time.
pub(crate) fn with_one_way(facts: &Facts) -> impl Iterator<Item = Family> {
    let main = |r: &&Route| r.is_default() && r.table == RT_TABLE_MAIN;
    Family::ALL.into_iter().filter(move |&family| {
        let defaults = || facts.routes.iter().filter(main).filter(|r| r.family() == family);
        let best = defaults().map(|r| r.metric).min();
        let hops = defaults().filter(|r| Some(r.metric) == best).map(|r| r.nexthops.len());
        hops.sum::<usize>() == 1
    })
}

/// An address that the uplink's table leads to; none if the table is empty.
fn outside(facts: &Facts, plan: &Plan, uplink: &Uplink, family: Family) -> Option<IpAddr> {
    let of_uplink = |r: &&Route| r.table == uplink.table && r.family() == family;
    let mut routes = plan.routes.iter().filter(of_uplink).peekable();
    routes.peek()?;
    if routes.clone().any(Route::is_default) {
        return Some(OUTSIDE.of(family));
    }
    let own: BTreeSet<IpAddr> = facts.addresses.iter().map(|a| a.ip).collect();
    let own = |ip: IpAddr| own.contains(&ip);
    let usable = |net: ipnetwork::IpNetwork| {
        let edge = |ip: IpAddr| {
            net.is_ipv4() && net.prefix() < 31 && (ip == net.network() || ip == net.broadcast())
        };
        net.iter().take(8).find(|&ip| !own(ip) && !edge(ip))
    };
    routes.find_map(|route| {
        if route.dst.prefix() == host_length(route.dst.ip()) {
            return Some(route.dst.ip()).filter(|&ip| !own(ip));
        }
        usable(route.dst)
    })
}

/// An address of the node in the family, preferably one of the uplink.
fn local(facts: &Facts, uplink: &Uplink, family: Family) -> Option<IpAddr> {
    let usable = |link: u32| {
        facts.link(link).is_some_and(|l| {
            l.flags & IFF_UP != 0
                && l.flags & IFF_LOOPBACK == 0
                && l.port_of.as_deref() != Some("vrf")
        })
    };
    let global = facts.addresses.iter().filter(|a| {
        Family::of(a.ip) == family && a.scope == 0 && !is_link_local(a.ip) && usable(a.link)
    });
    global.min_by_key(|a| a.link != uplink.link).map(|a| a.ip)
}
