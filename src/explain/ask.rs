//! Asks the kernel about a packet.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Chosen, Packet, Side, Translated, rules};
use crate::backend::Marker;
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

/// A packet, and what becomes of it.
#[derive(Debug)]
pub(crate) struct Explained {
    /// As it arrives.
    pub(crate) packet: Packet,
    pub(crate) translated: Translated,
    pub(crate) filter: RpFilter,
    pub(crate) without: Side,
    /// The way back to the client that the reverse path filter goes by, without symroute.
    pub(crate) back: Option<Chosen>,
    /// With symroute, or why that binds no such connection.
    pub(crate) with: Result<Side, String>,
    /// Whether symroute is in force, so that the kernel itself has said what is with it.
    pub(crate) in_force: bool,
    /// Whether it came in by an uplink.
    pub(crate) is_by_uplink: bool,
}

impl Explained {
    /// What becomes of the packet as the node is now.
    pub(crate) fn now(&self) -> &Side {
        match &self.with {
            Ok(with) if self.in_force => with,
            _ => &self.without,
        }
    }
}

/// The node as it is asked.
#[derive(Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) kernel: &'a mut Kernel,
    pub(crate) view: View,
    /// All rules of both families, those of symroute among them.
    pub(crate) rules: Vec<Rule>,
    /// Whether symroute is in force.
    pub(crate) in_force: bool,
    /// The rules of netfilter.
    pub(crate) netfilter: Ruleset,
    /// Why symroute can't be in force by the settings; none where it can.
    pub(crate) refusal: Option<String>,
}

impl<'a> Asker<'a> {
    /// Reads what there is. Changes nothing. Where nothing is in force, the plan is by these settings.
    pub(crate) fn of(node: &'a mut Node, settings: &Settings) -> Result<Self, Error> {
        let view = node.view(settings)?;
        Self::with_view(node, view, None)
    }

    /// The same where the settings may not hold: then there is no plan, and requests are asked about without it.
    pub(crate) fn of_any(node: &'a mut Node, settings: &Settings) -> Result<Self, Error> {
        match node.view(settings) {
            // What is in force stays in force when it could not be brought into force any more.
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
        // Where the rules can't be read, those of symroute are taken to be there.
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

    /// The node's addresses that a client outside may ask.
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

    /// Where a packet with this source comes from: the interface that it arrives on, one of several where it
    /// is not known, or 0 for the node itself.
    pub(crate) fn arrivals(&mut self, from: IpAddr, to: IpAddr) -> Result<Vec<u32>, Error> {
        let facts = self.facts();
        if facts.addresses.iter().any(|a| a.ip == from) {
            return Ok(vec![0]);
        }
        let real = |link: &u32| facts.link(*link).is_some_and(|l| l.flags & IFF_LOOPBACK == 0);
        let owner = facts.addresses.iter().find(|a| a.ip == to).map(|a| a.link).filter(real);
        // What comes from a pod arrives by the pod's interface.
        let source = self.way(Lookup { to: from, from: None, iif: None, mark: 0 })?;
        let inside = source.map(|way| way.link).filter(|link| self.leads_inside(*link));
        Ok(match inside.or(owner.filter(|link| self.is_uplink(*link))) {
            Some(link) => vec![link],
            // Without a plan there are no uplinks.
            None if self.refusal.is_some() => {
                owner.map_or_else(|| self.outside(), |link| vec![link])
            }
            None => self.uplinks(),
        })
    }

    /// The interfaces with an address that lead to no pods.
    fn outside(&self) -> Vec<u32> {
        let links: BTreeSet<u32> = self.public_addresses().map(|own| own.link).collect();
        let leads_outside = |link: &u32| {
            let is_real =
                self.facts().link(*link).is_some_and(|link| link.flags & IFF_LOOPBACK == 0);
            is_real && !self.leads_inside(*link)
        };
        links.into_iter().filter(leads_outside).collect()
    }

    /// The interface that leads to an address; none where no route does.
    pub(crate) fn link_of(&mut self, ip: IpAddr) -> Result<Option<u32>, Error> {
        let way = self.way(Lookup { to: ip, from: None, iif: None, mark: 0 })?;
        Ok(way.map(|way| way.link))
    }

    /// The connections of such requests that are alive. A client's port is asked for where it is known.
    pub(super) fn alive(&mut self, packet: &Packet) -> Vec<Connection> {
        // Without a port they may be of any Service.
        if packet.port.is_none() {
            return Vec::new();
        }
        let found = conntrack::between(&mut self.kernel.netfilter, packet.from, packet.to);
        // Without conntrack there are none.
        let mut found = found.unwrap_or_default();
        found.retain(|one| {
            let Tuple { from, to, protocol } = one.original;
            packet.protocol.is_none_or(|wanted| wanted == protocol)
                && packet.port == Some(to.port())
                && packet.client_port.is_none_or(|wanted| wanted == from.port())
        });
        found
    }

    /// Whether an interface leads to pods or the like: it is no uplink, and no route outside uses it.
    pub(crate) fn leads_inside(&self, link: u32) -> bool {
        let is_default =
            |r: &Route| r.is_default() && r.nexthops.iter().any(|hop| hop.link == link);
        !self.is_uplink(link) && !self.facts().routes.iter().any(is_default)
    }

    /// The filter that a packet with this source meets at an interface. IPv6 has none.
    pub(super) fn filter(&self, from: IpAddr, link: u32) -> Result<RpFilter, Error> {
        match from {
            IpAddr::V4(_) if link != 0 => sysctl::rp_filter_of(&self.facts().link_name(link)),
            _ => Ok(RpFilter::default()),
        }
    }

    /// The kernel's answer to one look-up; none where it has no route.
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

    /// The hardware address of its router, where it has one and the kernel knows it.
    pub(super) fn mac(&mut self, way: &Way) -> Option<crate::model::Mac> {
        route::neighbour(&mut self.kernel.rtnetlink, way.link, way.gateway?)
    }
}

/// Where symroute would see packets.
fn foreseen_table(marker: Marker) -> Table {
    let by_nftables = [
        (Hook::Prerouting, base_chains::PREROUTING),
        (Hook::Output, base_chains::MANGLE),
        (Hook::Postrouting, base_chains::POSTROUTING),
    ];
    // The first rule of each chain of mangle.
    let by_iptables =
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
            .map(|hook| (hook, base_chains::MANGLE));
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
