//! The network of an uplink, as far as the node's facts show it. Two NICs of one network reach the same routers
//! and hosts.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::prefixes::Prefixes;
use crate::model::{Address, Facts, Nexthop, Route, host_length, is_link_local};
use crate::netlink::uapi::{IFF_POINTOPOINT, RT_TABLE_MAIN};

/// Prefixes whose hosts an interface reaches without a router.
pub(super) struct Network {
    prefixes: Prefixes<()>,
    /// Indexes of the interfaces that have a subnet in common with this one.
    beside: BTreeSet<u32>,
}

impl Network {
    /// The network of an interface: its subnets and on-link routes. The address of a router, or an address with
    /// a full-length prefix, adds the narrowest subnet on the node that contains it. That is done only if no
    /// subnet of the interface contains the address. Another interface may lead to a wider network (a VPN to
    /// 10.0.0.0/8), which shows nothing about this link.
    pub(super) fn of(facts: &Facts, link: u32, routers: impl Iterator<Item = IpAddr>) -> Self {
        let on_link = |r: &&Route| !r.is_wide() && !r.is_special && r.is_on_link();
        let through = |r: &&Route| r.nexthops.iter().any(|hop| hop.link == link);
        let is_own = |a: &&Address| a.link == link && a.scope == 0;
        let addresses = || facts.addresses.iter().filter(is_own);
        let own_routes = facts.routes.iter().filter(on_link).filter(through).map(|r| r.dst);
        let mut prefixes: BTreeSet<_> = addresses().filter_map(subnet).chain(own_routes).collect();
        let shown: Prefixes<()> = prefixes.iter().copied().collect();
        let is_shown =
            |ip: &IpAddr| shown.around(*ip).any(|(net, ())| net.prefix() < host_length(*ip));
        let alone: Vec<IpAddr> =
            addresses().map(|a| a.ip).chain(routers).filter(|ip| !is_shown(ip)).collect();
        if !alone.is_empty() {
            let subnets = subnets(facts);
            let nearest = |ip| subnets.around(ip).next().map(|(net, ())| net);
            prefixes.extend(alone.into_iter().filter_map(nearest));
        }
        prefixes.retain(|net| !is_link_local(net.ip()));
        let is_beside = |a: &&Address| subnet(a).is_some_and(|net| prefixes.contains(&net));
        let beside = facts.addresses.iter().filter(is_beside).map(|a| a.link).collect();
        Self { prefixes: prefixes.into_iter().collect(), beside }
    }

    pub(super) fn has(&self, net: IpNetwork) -> bool {
        self.prefixes.around(net.ip()).any(|(known, ())| known == net)
    }

    /// Whether the router of another interface's hop is in this network. A link-local address alone does not
    /// show that: then the two interfaces must share a subnet.
    pub(super) fn reaches(&self, hop: &Nexthop) -> bool {
        match hop.gateway {
            None => false,
            Some(ip) if is_link_local(ip) => self.beside.contains(&hop.link),
            Some(ip) => self.prefixes.has(ip),
        }
    }
}

/// Subnets of all interfaces except tunnels, by main's on-link routes, and subnets by all addresses.
fn subnets(facts: &Facts) -> Prefixes<()> {
    let lan = facts.links.iter().filter(|link| link.flags & IFF_POINTOPOINT == 0);
    let lan: BTreeSet<u32> = lan.map(|link| link.index).collect();
    let leads = |r: &&Route| {
        r.table == RT_TABLE_MAIN
            && !r.is_wide()
            && !r.is_special
            && r.is_on_link()
            && r.nexthops.iter().all(|hop| lan.contains(&hop.link))
    };
    let routes = facts.routes.iter().filter(leads).map(|r| r.dst);
    routes.chain(facts.addresses.iter().filter_map(subnet)).collect()
}

/// The subnet of a global address; none for an address with a full-length prefix.
fn subnet(address: &Address) -> Option<IpNetwork> {
    let Address { net, ip, scope, .. } = address;
    let several = *scope == 0 && net.prefix() < host_length(*ip);
    several.then(|| IpNetwork::new(net.network(), net.prefix()).ok()).flatten()
}
