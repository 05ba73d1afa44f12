//! A request after its first hook: the kernel's look-ups for the request and for its reply, and the later hooks
//! that both pass.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::ask::Asker;
use super::{Answers, Chosen, Departure, Ending, LostAnswer, Packet, Side, ending};
use crate::backend::Marker;
use crate::backend::iptables::chains::MANGLE;
use crate::backend::nftables::base_chains::PREROUTING;
use crate::error::Error;
use crate::model::{Family, Link};
use crate::netfilter::walk::{NewAddress, Outcome};
use crate::netfilter::{self, Bound, Hook, Interface};
use crate::netlink::route::{Lookup, Way};
use crate::netlink::uapi::{RTN_LOCAL, RTN_UNICAST};

/// A request after prerouting, or after output if the node sends it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// The packet after DNAT.
    pub(super) packet: Packet,
    pub(super) is_translated: bool,
    /// The packet mark that rules have set. `connection` is the connection mark.
    pub(super) mark: u32,
    pub(super) connection: u32,
    /// The rule that keeps the request from being tracked.
    pub(super) untracked_by: Option<String>,
    /// The marks with which symroute binds the connection; `None` without symroute.
    pub(super) bound: Option<Bound>,
}

impl Asker<'_> {
    pub(super) fn side(
        &mut self,
        seen: &Seen,
        answers: &Answers,
        with_symroute: bool,
    ) -> Result<Side, Error> {
        let Packet { from, link, .. } = seen.packet;
        let filter = self.filter(from, link)?;
        let ending = ending(&seen.packet, answers, filter, seen.is_translated, |link| {
            self.leads_inside(link)
        });
        let departure = match (&ending, &answers.request) {
            (Ending::Leaves(_) | Ending::Answered(_), Some(request)) => {
                self.departure(seen, &request.way, with_symroute)?
            }
            _ => None,
        };
        Ok(Side { ending, departure, mark_is_lost: false })
    }

    /// How the request leaves the node. `None` if it does not leave, or if its source is not an address of the
    /// node.
    pub(super) fn departure(
        &mut self,
        seen: &Seen,
        request: &Way,
        with_symroute: bool,
    ) -> Result<Option<Departure>, Error> {
        if request.kind != RTN_UNICAST {
            return Ok(None);
        }
        let packet = &seen.packet;
        let link = request.link;
        let iif = (!packet.is_of_node()).then_some(packet.link);
        let marks = (seen.mark, seen.connection);
        let mut leaving = self.in_hook(packet, iif, Some(link), marks, false);
        leaving.untracked_by.clone_from(&seen.untracked_by);
        let facts = &self.view.facts;
        let outcomes = self.netfilter.walk(Hook::Postrouting, leaving, true, facts);
        let nat = outcomes.into_iter().find_map(|outcome| outcome.nat);
        let source = match nat.as_ref().map(|nat| nat.to) {
            Some(NewAddress::Source(source)) => source,
            Some(NewAddress::OfInterface) => {
                match self.masqueraded_as(link, Family::of(packet.from)) {
                    Some(source) => source,
                    None => return Ok(None),
                }
            }
            Some(NewAddress::Destination(..)) | None if packet.is_of_node() => packet.from,
            _ => return Ok(None),
        };
        let owner = facts.addresses.iter().find(|a| a.ip == source).map(|a| a.link);
        let is_checked = !self.leads_inside(link);
        let owner = owner.filter(|owner| is_checked && *owner != link && self.is_uplink(*owner));
        let is_tunnelled = facts.link(link).is_some_and(Link::is_tunnel);
        // The reply to a packet whose source the node changed arrives on the uplink that has that source.
        // symroute makes the source check of that uplink accept it.
        let arrives = owner.filter(|_| !is_tunnelled).unwrap_or(link);
        let is_let_in = with_symroute && nat.is_some() && self.is_uplink(arrives);
        let lost = if is_let_in { None } else { self.lost_reply(packet, arrives)? };
        let by = nat.map(|nat| nat.by);
        Ok(Some(Departure { link, source, by, owner, is_tunnelled, lost }))
    }

    /// The reply to a request, if the reverse path filter of the interface drops it. Before the filter runs,
    /// NAT has restored the source of the request as the reply's destination.
    fn lost_reply(&mut self, request: &Packet, link: u32) -> Result<Option<LostAnswer>, Error> {
        let filter = self.filter(request.to, link)?;
        let iif = (!request.is_of_node()).then_some(request.link);
        let lookup = Lookup { to: request.to, from: Some(request.from), iif, mark: 0 };
        let mut back = self.chosen(lookup)?;
        if back.is_none() {
            back = self.chosen(plain(request.to))?;
        }
        let passes = filter.lets_in(link, back.as_ref().map(|chosen| chosen.way.link));
        Ok((!passes).then_some(LostAnswer { link, filter, back }))
    }

    /// The address that MASQUERADE chooses (`inet_select_addr`, net/ipv4/devinet.c): the first of the
    /// interface, otherwise the first of any interface.
    fn masqueraded_as(&self, link: u32, family: Family) -> Option<IpAddr> {
        let addresses = &self.view.facts.addresses;
        let usable = || addresses.iter().filter(|a| a.scope == 0 && Family::of(a.ip) == family);
        let own = usable().find(|a| a.link == link);
        own.or_else(|| usable().min_by_key(|a| a.link)).map(|a| a.ip)
    }

    pub(super) fn answers(&mut self, seen: &Seen) -> Result<Answers, Error> {
        let (Packet { from, to, link, .. }, mark) = (seen.packet, seen.mark);
        if seen.packet.is_of_node() {
            let request = self.chosen(lookup_of(&seen.packet, to, mark))?;
            return Ok(Answers { request, ..Answers::default() });
        }
        let request = self.chosen(Lookup { to, from: Some(from), iif: Some(link), mark })?;
        // Without an answer the kernel has no route, or its reverse path filter drops the packet.
        let way = match &request {
            Some(chosen) => Some(chosen.way),
            None => self.way(Lookup { mark, ..plain(to) })?,
        };
        let forwarded = way.filter(|way| way.kind == RTN_UNICAST);
        // The filter looks up the mark only if src_valid_mark is on.
        let is_valid = self.facts().src_valid_mark.get(&link).is_some_and(|value| *value != 0);
        let judged = if is_valid { mark } else { 0 };
        // The kernel accepts only its own addresses as the source of a packet that the node sends.
        let own = self.facts().addresses.iter().any(|a| a.ip == to).then_some(to);
        let mut back = None;
        if let Some(way) = forwarded {
            let lookup = Lookup { to: from, from: Some(to), iif: Some(way.link), mark: judged };
            back = self.chosen(lookup)?;
        }
        if back.is_none() {
            back = self.chosen(Lookup { to: from, from: own, iif: None, mark: judged })?;
        }
        let reply = match request.as_ref().map(|chosen| chosen.way) {
            Some(way) if way.kind == RTN_LOCAL => self.reply(seen, None)?,
            Some(way) if way.kind == RTN_UNICAST => {
                let is_answered = seen.is_translated || self.leads_inside(way.link);
                if is_answered { self.reply(seen, Some(way.link))? } else { None }
            }
            _ => None,
        };
        Ok(Answers { request, back, reply })
    }

    /// The route of the reply, which arrives on interface `iif`, or comes from the node itself if that is
    /// `None`.
    pub(super) fn reply(&mut self, seen: &Seen, iif: Option<u32>) -> Result<Option<Chosen>, Error> {
        let Packet { from, to, .. } = seen.packet;
        let connection = self.connection_mark_after(seen, iif);
        let mark = self.mark_of_reply(seen, iif, connection);
        self.chosen(Lookup { to: from, from: Some(to), iif, mark })
    }

    /// The connection mark after the request has left through `oif`, or has reached the node itself if that is
    /// `None`.
    pub(super) fn connection_mark_after(&self, seen: &Seen, oif: Option<u32>) -> u32 {
        if seen.untracked_by.is_some() {
            return seen.connection;
        }
        let (iif, mut marks) = (Some(seen.packet.link), (seen.mark, seen.connection));
        let hooks: &[Hook] = match oif {
            Some(_) => &[Hook::Forward, Hook::Postrouting],
            None => &[Hook::Input],
        };
        for hook in hooks {
            let packet = self.in_hook(&seen.packet, iif, oif, marks, false);
            let packet = netfilter::Packet { bound: seen.bound, ..packet };
            let outcomes = self.netfilter.walk(*hook, packet, true, &self.view.facts);
            // A dropped packet gets no reply.
            let mut passed = outcomes.into_iter().filter(|one| !one.is_dropped);
            marks = passed.next().map_or(marks, |one| (one.packet.mark, one.packet.connection));
        }
        marks.1
    }

    /// The packet mark with which the kernel routes the reply.
    pub(super) fn mark_of_reply(&self, seen: &Seen, iif: Option<u32>, connection: u32) -> u32 {
        let Packet { from, to, protocol, .. } = seen.packet;
        let turned = Packet { protocol, ..Packet::plain(to, from, iif.unwrap_or(0)) };
        let hook = if iif.is_some() { Hook::Prerouting } else { Hook::Output };
        let reply = self.in_hook(&turned, iif, None, (0, connection), true);
        let untracked_by = seen.untracked_by.clone();
        let reply = netfilter::Packet { bound: seen.bound, untracked_by, ..reply };
        let outcomes = self.netfilter.walk(hook, reply, false, &self.view.facts);
        let mark = |one: &Outcome| if iif.is_some() { one.packet.mark } else { one.packet.routed };
        outcomes.first().map_or(0, mark)
    }

    pub(super) fn in_hook(
        &self,
        packet: &Packet,
        iif: Option<u32>,
        oif: Option<u32>,
        (mark, connection): (u32, u32),
        is_reply: bool,
    ) -> netfilter::Packet {
        let named = |link: u32| Interface(link, self.facts().link_name(link));
        netfilter::Packet {
            iif: iif.map(named),
            oif: oif.map(named),
            from: packet.from,
            to: packet.to,
            protocol: packet.protocol,
            port: packet.port,
            mark,
            routed: mark,
            connection,
            is_reply,
            untracked_by: None,
            bound: None,
        }
    }

    /// Table and chain of each rule that may keep a request from being tracked.
    pub(crate) fn untracking_rules(&self, packet: &Packet) -> BTreeSet<String> {
        let arriving = self.in_hook(packet, Some(packet.link), None, (0, 0), false);
        self.netfilter.untracking_rules(arriving, &self.view.facts)
    }

    /// Table and chain of each rule that checks the return path of a request before symroute marks it.
    pub(crate) fn source_checks(&self, packet: &Packet) -> BTreeSet<String> {
        let by = match self.view.plan.marker() {
            Marker::Nftables => PREROUTING,
            Marker::Iptables(_) => MANGLE,
        };
        let arriving = self.in_hook(packet, Some(packet.link), None, (0, 0), false);
        self.netfilter.source_checks(arriving, &self.view.facts, by)
    }

    /// Whether a route leads out of the node.
    pub(super) fn leaves(&self, way: &Way) -> bool {
        way.kind == RTN_UNICAST && !self.leads_inside(way.link)
    }
}

/// The look-up for a packet that the node itself sends.
pub(super) fn lookup_of(packet: &Packet, to: IpAddr, mark: u32) -> Lookup {
    Lookup { to, from: Some(packet.from), iif: None, mark }
}

pub(super) fn plain(to: IpAddr) -> Lookup {
    Lookup { to, from: None, iif: None, mark: 0 }
}
