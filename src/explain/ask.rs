//! Asks the kernel about a packet.

use std::net::IpAddr;

use super::{Answers, Chosen, Ending, Packet, ending, not_bound, rules};
use crate::config::Settings;
use crate::error::Error;
use crate::model::{Address, Facts, Family, Route, RpFilter, Rule, is_link_local};
use crate::netlink::route::{self, Lookup, Way};
use crate::netlink::uapi::{IFF_LOOPBACK, RTN_LOCAL, RTN_UNICAST};
use crate::node::apply::Kernel;
use crate::node::proof::ways;
use crate::node::{Node, View, sysctl};

/// A packet, and what becomes of it.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) packet: Packet,
    pub(crate) filter: RpFilter,
    pub(crate) without: Ending,
    /// The way back to the client that the reverse path filter goes by, without symroute.
    pub(crate) back: Option<Chosen>,
    /// With symroute; none where it binds no such connection.
    pub(crate) with: Option<Ending>,
    pub(crate) not_bound: Option<String>,
    /// Whether symroute is in force, so that the kernel itself has said what is with it.
    pub(crate) in_force: bool,
}

impl Explained {
    /// What becomes of the packet as the node is now.
    pub(crate) fn now(&self) -> &Ending {
        match &self.with {
            Some(with) if self.in_force => with,
            _ => &self.without,
        }
    }
}

/// The node as it is asked.
#[derive(Debug)]
pub(crate) struct Asker<'a> {
    kernel: &'a mut Kernel,
    pub(crate) view: View,
    rules: Vec<Rule>,
    in_force: bool,
}

impl<'a> Asker<'a> {
    /// Reads what there is. Changes nothing. Where nothing is in force, the plan is by these settings.
    pub(crate) fn of(node: &'a mut Node, settings: &Settings) -> Result<Self, Error> {
        let in_force = node.record()?.is_some();
        let view = node.view(settings)?;
        let mut rules = Vec::new();
        for family in Family::ALL {
            let found = route::rules(&mut node.kernel.rtnetlink, family).unwrap_or_default();
            rules.extend(found.into_iter().map(|found| found.rule));
        }
        Ok(Self { kernel: &mut node.kernel, view, rules, in_force })
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

    /// The interfaces that a request to this address may arrive on: the one that has the address, or else
    /// every uplink.
    pub(crate) fn arrivals(&self, to: IpAddr) -> Vec<u32> {
        let facts = self.facts();
        let real = |link: &u32| facts.link(*link).is_some_and(|l| l.flags & IFF_LOOPBACK == 0);
        let owner = facts.addresses.iter().find(|a| a.ip == to).map(|a| a.link).filter(real);
        let is_uplink = |link: u32| self.view.plan.uplinks.iter().any(|u| u.link == link);
        match owner.filter(|link| is_uplink(*link)) {
            Some(link) => vec![link],
            None => self.uplinks(),
        }
    }

    /// What becomes of a request.
    pub(crate) fn explain(&mut self, packet: Packet) -> Result<Explained, Error> {
        let filter = self.filter(&packet)?;
        let answers = self.answers(&packet, 0)?;
        let without = ending(&packet, &answers, filter, |link| self.leads_inside(link));
        let source = self.way(Lookup { to: packet.from, from: None, iif: None, mark: 0 })?;
        let source_is_inside = source.is_some_and(|way| self.leads_inside(way.link));
        let to = self.way(Lookup { to: packet.to, from: None, iif: None, mark: 0 })?;
        let View { facts, settings, plan, .. } = &self.view;
        let not_bound = not_bound(&packet, facts, settings, plan, source_is_inside, to.as_ref());
        let with = match &not_bound {
            Some(_) => None,
            None if self.in_force => {
                let uplinks = &self.view.plan.uplinks;
                let id = uplinks.iter().find(|u| u.link == packet.link).map_or(0, |u| u.id);
                let mark = self.view.settings.field.of(id);
                let answers = self.answers(&packet, mark)?;
                Some(ending(&packet, &answers, filter, |link| self.leads_inside(link)))
            }
            None => Some(self.foreseen(&packet, to.as_ref())),
        };
        let in_force = self.in_force;
        Ok(Explained { packet, filter, without, back: answers.back, with, not_bound, in_force })
    }

    /// With the plan's table, where it is not in force.
    fn foreseen(&self, packet: &Packet, to: Option<&Way>) -> Ending {
        let arrives = |way: &&Way| {
            way.kind == RTN_LOCAL || way.kind == RTN_UNICAST && self.leads_inside(way.link)
        };
        let plan = &self.view.plan;
        let Some(uplink) = plan.uplinks.iter().find(|u| u.link == packet.link) else {
            return Ending::Refused;
        };
        match to.filter(arrives) {
            Some(_) => {}
            None if to.is_some_and(|way| way.kind == RTN_UNICAST) => return Ending::PassesThrough,
            None => return Ending::Refused,
        }
        let of_table = |r: &&Route| {
            r.table == uplink.table && r.dst.contains(packet.from) && r.kind == RTN_UNICAST
        };
        let best = plan.routes.iter().filter(of_table).max_by_key(|r| r.dst.prefix());
        let Some(hop) = best.and_then(|route| route.nexthops.first()) else {
            return Ending::NoReply;
        };
        let table = uplink.table;
        let way = Way { kind: RTN_UNICAST, table, link: hop.link, gateway: hop.gateway };
        let of_family = |r: &&Rule| r.family == Family::of(packet.from);
        let mark = self.view.settings.field.of(uplink.id);
        let lookup = Lookup { to: packet.from, from: Some(packet.to), iif: None, mark };
        let rule = rules::chosen(plan.rules.iter().filter(of_family), &lookup, None, table);
        Ending::Answered(Chosen { way, rule: rule.cloned() })
    }

    fn answers(&mut self, packet: &Packet, mark: u32) -> Result<Answers, Error> {
        let Packet { from, to, link } = *packet;
        let request = self.chosen(Lookup { to, from: Some(from), iif: Some(link), mark })?;
        // The filter looks the mark up where src_valid_mark says so.
        let is_valid = self.facts().src_valid_mark.get(&link).is_some_and(|value| *value != 0);
        let judged = if is_valid { mark } else { 0 };
        // The source is the node's, or the kernel would not take it for a packet of its own.
        let own = self.facts().addresses.iter().any(|a| a.ip == to).then_some(to);
        let back = self.chosen(Lookup { to: from, from: own, iif: None, mark: judged })?;
        let reply = match request.as_ref().map(|chosen| chosen.way) {
            Some(way) if way.kind == RTN_LOCAL => {
                self.chosen(Lookup { to: from, from: Some(to), iif: None, mark })?
            }
            Some(way) if way.kind == RTN_UNICAST && self.leads_inside(way.link) => {
                self.chosen(Lookup { to: from, from: Some(to), iif: Some(way.link), mark })?
            }
            _ => None,
        };
        Ok(Answers { request, back, reply })
    }

    /// Whether an interface leads to pods or the like: it is no uplink, and no route outside uses it.
    pub(crate) fn leads_inside(&self, link: u32) -> bool {
        let plan = &self.view.plan;
        let is_default =
            |r: &Route| r.is_default() && r.nexthops.iter().any(|hop| hop.link == link);
        !plan.uplinks.iter().any(|u| u.link == link) && !self.facts().routes.iter().any(is_default)
    }

    fn filter(&self, packet: &Packet) -> Result<RpFilter, Error> {
        match packet.from {
            IpAddr::V4(_) => sysctl::rp_filter_of(&self.facts().link_name(packet.link)),
            IpAddr::V6(_) => Ok(RpFilter::default()),
        }
    }

    fn way(&mut self, lookup: Lookup) -> Result<Option<Way>, Error> {
        let asked = ways(&mut self.kernel.rtnetlink, &[lookup]);
        let mut ways = asked.map_err(Error::kernel("ask for a route"))?;
        Ok(ways.pop().flatten())
    }

    fn chosen(&mut self, lookup: Lookup) -> Result<Option<Chosen>, Error> {
        let Some(way) = self.way(lookup)? else { return Ok(None) };
        let iif = lookup.iif.map(|link| self.facts().link_name(link));
        let of_family = |rule: &&Rule| rule.family == Family::of(lookup.to);
        let rules = self.rules.iter().filter(of_family);
        let rule = rules::chosen(rules, &lookup, iif.as_deref(), way.table).cloned();
        Ok(Some(Chosen { way, rule }))
    }
}
