//! Asks the kernel and the netfilter rules where a packet goes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Chosen, Packet, Side, Translated, rules};
use crate::backend::Marker;
use crate::backend::iptables::chains::MANGLE;
use crate::backend::nftables::base_chains;
use crate::config::Settings;
use crate::error::Error;
use crate::model::{Address, Facts, Family, Route, RpFilter, Rule, is_link_local};
use crate::netfilter::walk::Local;
use crate::netfilter::{Hook, Ruleset, Table, read};
use crate::netlink::conntrack::{self, Connection, Tuple};
use crate::netlink::route::{self, Lookup, Way};
use crate::netlink::uapi::IFF_LOOPBACK;
use crate::node::apply::Kernel;
use crate::node::proof::ways;
use crate::node::{Node, View, sysctl};

/// What happens to a packet without symroute and with it.
#[derive(Debug)]
pub(crate) struct Explained {
    /// The packet as it arrives.
    pub(crate) packet: Packet,
    pub(crate) translated: Translated,
    pub(crate) filter: RpFilter,
    pub(crate) without: Side,
    /// The route back to the client that the reverse path filter finds without symroute.
    pub(crate) back: Option<Chosen>,
    /// What happens with symroute, or the reason why symroute does not bind such a connection.
    pub(crate) with: Result<Side, String>,
    /// Whether symroute is in force, so that `with` comes from the kernel and not from the plan.
    pub(crate) in_force: bool,
    /// Whether the packet arrives on an uplink.
    pub(crate) is_by_uplink: bool,
}

impl Explained {
    /// What happens to the packet on the node as it is now.
    pub(crate) fn now(&self) -> &Side {
        match &self.with {
            Ok(with) if self.in_force => with,
            _ => &self.without,
        }
    }
}

/// A snapshot of the node, with access to the kernel for look-ups.
#[derive(Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) kernel: &'a mut Kernel,
    pub(crate) view: View,
    /// All ip rules of both families, including those of symroute.
    pub(crate) rules: Vec<Rule>,
    /// Whether symroute is in force.
    pub(crate) in_force: bool,
    /// The rules of netfilter.
    pub(crate) netfilter: Ruleset,
    /// Why the settings can't work on this node; `None` if they can.
    pub(crate) refusal: Option<String>,
}

impl<'a> Asker<'a> {
    /// Reads the node without changing it. If nothing is in force, the plan comes from `settings`.
    pub(crate) fn of(node: &'a mut Node, settings: &Settings) -> Result<Self, Error> {
        let view = node.view(settings)?;
        Self::with_view(node, view, None)
    }

    /// Reads the node even if `settings` can't work on it; then there is no plan and `refusal` has the reason.
    pub(crate) fn of_any(node: &'a mut Node, settings: &Settings) -> Result<Self, Error> {
        match node.view(settings) {
            // A configuration in force stays in force, even if it could not be activated now.
            Err(Error::Config(why)) if node.record()?.is_none() => {
                let view = node.view_without_plan(settings)?;
                Self::with_view(node, view, Some(why.to_string()))
            }
            view => Self::with_view(node, view?, None),
        }
    }

    fn with_view(node: &'a mut Node, view: View, refusal: Option<String>) -> Result<Self, Error> {
        let in_force = node.record()?.is_some();
        let mut rules = Vec::new();
        for family in Family::ALL {
            let found = route::rules(&mut node.kernel.rtnetlink, family).unwrap_or_default();
            rules.extend(found.into_iter().map(|found| found.rule));
        }
        let mut netfilter = read::ruleset(&mut node.kernel.netfilter);
        netfilter.unread.extend(node.unseen.line());
        // If the rules can't be read, assume that those of symroute exist.
        let is_unread = node.unseen.hides_rules() || !netfilter.unread.is_empty();
        let is_seen = netfilter.has_symroute();
        if refusal.is_none() && (!in_force || is_unread && !is_seen) {
            netfilter.tables.insert(0, foreseen_table(view.plan.marker()));
        }
        Ok(Self { kernel: &mut node.kernel, view, rules, in_force, netfilter, refusal })
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.view.facts
    }

    /// The addresses of the node that a client outside can reach.
    pub(crate) fn public_addresses(&self) -> impl Iterator<Item = &Address> {
        let addresses = self.facts().addresses.iter();
        addresses.filter(|a| a.scope == 0 && !is_link_local(a.ip) && !a.ip.is_loopback())
    }

    pub(crate) fn uplinks(&self) -> Vec<u32> {
        self.view.plan.uplinks.iter().map(|uplink| uplink.link).collect()
    }

    pub(crate) fn is_uplink(&self, link: u32) -> bool {
        self.view.plan.uplinks.iter().any(|uplink| uplink.link == link)
    }

    /// Whether the interface is a NIC with an address that is not an uplink.
    pub(crate) fn is_unused_nic(&self, link: u32) -> bool {
        let name = self.facts().link_name(link);
        self.view.plan.leaves_out_nic(&name)
    }

    /// The interfaces on which a packet with this source may arrive. The list is `[0]` for a packet that the
    /// node itself sends.
    pub(crate) fn arrivals(&mut self, from: IpAddr, to: IpAddr) -> Result<Vec<u32>, Error> {
        let facts = self.facts();
        if facts.addresses.iter().any(|a| a.ip == from) {
            return Ok(vec![0]);
        }
        let real = |link: &u32| facts.link(*link).is_some_and(|l| l.flags & IFF_LOOPBACK == 0);
        let owner = facts.addresses.iter().find(|a| a.ip == to).map(|a| a.link).filter(real);
        // A packet from a pod arrives on the pod's interface.
        let source = self.way(Lookup { to: from, from: None, iif: None, mark: 0 })?;
        let inside = source.map(|way| way.link).filter(|link| self.leads_inside(*link));
        let on_owner = |link: &u32| self.is_uplink(*link) || self.is_unused_nic(*link);
        Ok(match inside.or(owner.filter(on_owner)) {
            Some(link) => vec![link],
            // Without a plan no uplinks are known.
            None if self.refusal.is_some() => {
                owner.map_or_else(|| self.outside(), |link| vec![link])
            }
            None => self.uplinks(),
        })
    }

    /// Interfaces with a public address that do not lead to pods.
    fn outside(&self) -> Vec<u32> {
        let links: BTreeSet<u32> = self.public_addresses().map(|own| own.link).collect();
        let leads_outside = |link: &u32| {
            let is_real =
                self.facts().link(*link).is_some_and(|link| link.flags & IFF_LOOPBACK == 0);
            is_real && !self.leads_inside(*link)
        };
        links.into_iter().filter(leads_outside).collect()
    }

    /// The interface of the route to an address; `None` without a route.
    pub(crate) fn link_of(&mut self, ip: IpAddr) -> Result<Option<u32>, Error> {
        let way = self.way(Lookup { to: ip, from: None, iif: None, mark: 0 })?;
        Ok(way.map(|way| way.link))
    }

    /// Connections in conntrack that match the request. The client's port must match if it is known.
    pub(super) fn connections_like(&mut self, packet: &Packet) -> Vec<Connection> {
        // Without a port, the connections may belong to different Services.
        if packet.port.is_none() {
            return Vec::new();
        }
        let found = conntrack::list_between(&mut self.kernel.netfilter, packet.from, packet.to);
        // Without conntrack there are no connections.
        let mut found = found.unwrap_or_default();
        found.retain(|one| {
            let Tuple { from, to, protocol } = one.original;
            packet.protocol.is_none_or(|wanted| wanted == protocol)
                && packet.port == Some(to.port())
                && packet.client_port.is_none_or(|wanted| wanted == from.port())
        });
        found
    }

    /// Whether an interface leads to pods or the like: it is not an uplink and has no default route.
    pub(crate) fn leads_inside(&self, link: u32) -> bool {
        let is_default =
            |r: &Route| r.is_default() && r.nexthops.iter().any(|hop| hop.link == link);
        !self.is_uplink(link) && !self.facts().routes.iter().any(is_default)
    }

    /// The reverse path filter that a packet with this source meets at an interface. IPv6 has none.
    pub(super) fn filter(&self, from: IpAddr, link: u32) -> Result<RpFilter, Error> {
        match from {
            IpAddr::V4(_) if link != 0 => sysctl::rp_filter_of(&self.facts().link_name(link)),
            _ => Ok(RpFilter::default()),
        }
    }

    /// The kernel's answer to a look-up; `None` without a route.
    pub(crate) fn way(&mut self, lookup: Lookup) -> Result<Option<Way>, Error> {
        let asked = ways(&mut self.kernel.rtnetlink, &[lookup]);
        let mut ways = asked.map_err(Error::kernel("ask for a route"))?;
        Ok(ways.pop().flatten())
    }

    pub(super) fn chosen(&mut self, lookup: Lookup) -> Result<Option<Chosen>, Error> {
        let Some(way) = self.way(lookup)? else { return Ok(None) };
        let iif = lookup.iif.map(|link| self.facts().link_name(link));
        let of_family = |rule: &&Rule| rule.family == Family::of(lookup.to);
        let rules = self.rules.iter().filter(of_family);
        let rule = rules::chosen(rules, &lookup, iif.as_deref(), way.table).cloned();
        let mac = self.mac(&way);
        Ok(Some(Chosen { way, rule, mac }))
    }

    /// The hardware address of the router of a route, if there is a router and the kernel knows the address.
    pub(super) fn mac(&mut self, way: &Way) -> Option<crate::model::Mac> {
        route::neighbour(&mut self.kernel.rtnetlink, way.link, way.gateway?)
    }
}

/// A table that stands for symroute's rules where they would be.
fn foreseen_table(marker: Marker) -> Table {
    let by_nftables = [
        (Hook::Prerouting, base_chains::PREROUTING),
        (Hook::Output, base_chains::OUTPUT),
        (Hook::Postrouting, base_chains::POSTROUTING),
    ];
    // The iptables backend has the first rule in each chain of mangle.
    let by_iptables =
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
            .map(|hook| (hook, MANGLE));
    match marker {
        Marker::Nftables => Table::of_symroute(&by_nftables),
        Marker::Iptables(_) => Table::of_symroute(&by_iptables),
    }
}

impl Local for Facts {
    fn has(&self, address: IpAddr, link: Option<&str>) -> bool {
        let is_here = |link: u32, name: &str| self.link(link).is_some_and(|l| l.name == name);
        let mut own = self.addresses.iter().filter(|a| a.ip == address);
        own.any(|a| link.is_none_or(|name| is_here(a.link, name)))
            || link.is_none() && address.is_loopback()
    }
}
