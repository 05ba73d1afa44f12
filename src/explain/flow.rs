//! One request through the node: the rules of netfilter in the hooks, and the kernel's look-ups in between.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::ask::{Asker, Explained};
use super::not_bound::{Target, not_bound};
use super::{
    Answers, Chosen, Departure, Ending, LostAnswer, Packet, Side, Translated, ending, rules,
};
use crate::backend::Marker;
use crate::error::Error;
use crate::model::{Address, Family, Link, Route, Rule};
use crate::netfilter::walk::{Nat, NewAddress, Outcome};
use crate::netfilter::{self, Hook, Interface};
use crate::netlink::conntrack::Connection;
use crate::netlink::route::{Lookup, Way};
use crate::netlink::uapi::{IPPROTO_TCP, IPPROTO_UDP, RTN_LOCAL, RTN_UNICAST};
use crate::plan;
use crate::plan::proof::OUTSIDE;

/// NodePorts that are named at most.
const NODE_PORTS: usize = 32;

/// A request behind prerouting, or behind output where the node sends it.
struct Seen {
    /// As DNAT leaves it.
    packet: Packet,
    is_translated: bool,
    /// The marks that other programs have put on it and on its connection.
    mark: u32,
    connection: u32,
    /// The rule that keeps it from being tracked.
    untracked_by: Option<String>,
}

impl Asker<'_> {
    /// What becomes of a request: one answer for each backend that DNAT may choose.
    pub(crate) fn explain(&mut self, packet: Packet) -> Result<Vec<Explained>, Error> {
        let hook = if packet.is_of_node() { Hook::Output } else { Hook::Prerouting };
        let iif = (!packet.is_of_node()).then_some(packet.link);
        let oif = match iif {
            Some(_) => None,
            None => self.way(lookup_of(&packet, packet.to, 0))?.map(|way| way.link),
        };
        let start = self.in_hook(&packet, iif, oif, (0, 0), false);
        let mut outcomes: Vec<Outcome> = Vec::new();
        for outcome in self.netfilter.walk(hook, start, true, &self.view.facts) {
            if !outcomes.contains(&outcome) {
                outcomes.push(outcome);
            }
        }
        let alive = self.alive(&packet);
        choose_by_conntrack(&mut outcomes, &alive);
        // The kernel gives elements of a map in no order.
        outcomes.sort_by_key(|outcome| (outcome.packet.to, outcome.packet.port));
        let count = outcomes.len();
        let each = outcomes.into_iter().enumerate();
        each.map(|(at, outcome)| self.one(packet, outcome, (at + 1, count), &alive)).collect()
    }

    /// Protocols and ports that rules send on by DNAT where the node's own address is called, and whether
    /// there are more than these.
    pub(crate) fn node_ports(&self, family: Family) -> (Vec<(u8, u16)>, bool) {
        let of_uplink = |a: &&Address| Family::of(a.ip) == family && self.is_uplink(a.link);
        let Some(own) = self.public_addresses().find(of_uplink).copied() else {
            return (Vec::new(), false);
        };
        let mut found = Vec::new();
        for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
            for port in self.netfilter.ports() {
                let packet = Packet::plain(OUTSIDE.of(family), own.ip, own.link);
                let packet = packet.to_port(protocol, port);
                let start = self.in_hook(&packet, Some(own.link), None, (0, 0), false);
                let facts = &self.view.facts;
                let outcomes = self.netfilter.walk(Hook::Prerouting, start, true, facts);
                if outcomes.iter().any(|outcome| outcome.nat.is_some()) {
                    if found.len() == NODE_PORTS {
                        return (found, true);
                    }
                    found.push((protocol, port));
                }
            }
        }
        (found, false)
    }

    fn one(
        &mut self,
        packet: Packet,
        outcome: Outcome,
        which: (usize, usize),
        alive: &[Connection],
    ) -> Result<Explained, Error> {
        let filter = self.filter(packet.from, packet.link)?;
        let seen = Seen {
            packet: Packet { to: outcome.packet.to, port: outcome.packet.port, ..packet },
            is_translated: outcome.nat.is_some(),
            mark: outcome.packet.mark,
            connection: outcome.packet.connection,
            untracked_by: outcome.packet.untracked_by,
        };
        let to = outcome.packet.to;
        let alive = alive.iter().filter(|one| one.reply.from.ip() == to).copied().collect();
        let translated = Translated { nat: outcome.nat, which, unsure: outcome.unsure, alive };
        let in_force = self.in_force;
        if outcome.is_dropped {
            let without = Side { ending: Ending::Dropped, departure: None };
            let not_bound = Some("a rule of netfilter drops it".into());
            let (back, with) = (None, None);
            return Ok(Explained {
                packet,
                translated,
                filter,
                without,
                back,
                with,
                not_bound,
                in_force,
            });
        }
        let answers = self.answers(&seen, 0)?;
        let without = self.side(&seen, &answers, false)?;
        let (mut with, mut not_bound) = self.with(&packet, &seen, &answers)?;
        if with.is_none() {
            // symroute lets the answer to what this node has given another source in.
            let answered = self.side(&seen, &answers, true)?;
            if answered != without {
                (with, not_bound) = (Some(answered), None);
            }
        }
        let back = answers.back;
        Ok(Explained { packet, translated, filter, without, back, with, not_bound, in_force })
    }

    /// What is with symroute, or why it leaves the request alone.
    fn with(
        &mut self,
        packet: &Packet,
        seen: &Seen,
        without: &Answers,
    ) -> Result<(Option<Side>, Option<String>), Error> {
        if let Some(by) = &seen.untracked_by {
            return Ok((None, Some(format!("{by}: a rule keeps it from being tracked"))));
        }
        if let Some(via) = self.steered(seen, without) {
            let answers = if self.in_force {
                self.answers(seen, self.view.settings.field.of(via))?
            } else {
                Answers { request: self.by_table(via, seen.packet.to), ..without.clone() }
            };
            return Ok((Some(self.side(seen, &answers, true)?), None));
        }
        let to = self.way(plain(seen.packet.to))?;
        let source = self.way(plain(packet.from))?;
        let target = Target {
            called: packet.to,
            is_remote: seen.is_translated && to.is_some_and(|way| self.leaves(&way)),
            way: to.as_ref(),
            source_is_inside: source.is_some_and(|way| self.leads_inside(way.link)),
        };
        let plan::Plan { uplinks, .. } = &self.view.plan;
        let uplink = uplinks.iter().find(|uplink| uplink.link == packet.link).map(|u| u.id);
        let crate::node::View { facts, settings, plan, .. } = &self.view;
        let why = not_bound(&seen.packet, target, facts, settings, plan);
        let (None, Some(id)) = (&why, uplink) else { return Ok((None, why)) };
        let turns = target.is_remote && to.is_some_and(|way| way.link == packet.link);
        let by_iptables = self.view.plan.marker() != Marker::Nftables;
        // There such a connection stays with the node's own routing.
        let side = if self.in_force {
            let field = self.view.settings.field;
            let d = if turns && !by_iptables { field.d() } else { 0 };
            let answers = self.answers(seen, field.of(id) | d)?;
            self.side(seen, &answers, true)?
        } else if turns && by_iptables {
            self.side(seen, without, true)?
        } else {
            self.foreseen(seen, id, turns, to)?
        };
        Ok((Some(side), None))
    }

    /// The uplink that masquerade steering sends a pod's request out by.
    fn steered(&self, seen: &Seen, without: &Answers) -> Option<u32> {
        let packet = &seen.packet;
        let steering = self.view.plan.steering.get(&Family::of(packet.to))?;
        let by = without.request.as_ref()?.way.link;
        let is_marked = seen.mark & steering.mark.mask == steering.mark.value;
        let is_of_pod = !packet.is_of_node() && self.leads_inside(packet.link);
        let is_left_out = self.view.facts.left_out.contains(&packet.from);
        let is_steered = is_marked && is_of_pod && !is_left_out && steering.away_from.contains(&by);
        is_steered.then_some(steering.via)
    }

    /// With the plan's table, where it is not in force.
    fn foreseen(
        &mut self,
        seen: &Seen,
        id: u32,
        turns: bool,
        to: Option<Way>,
    ) -> Result<Side, Error> {
        let arrives = |way: &Way| {
            way.kind == RTN_LOCAL
                || way.kind == RTN_UNICAST && (seen.is_translated || self.leads_inside(way.link))
        };
        let ending = match to {
            Some(way) if arrives(&way) => {
                self.by_table(id, seen.packet.from).map_or(Ending::NoReply, Ending::Answered)
            }
            Some(way) if way.kind == RTN_UNICAST => Ending::PassesThrough,
            _ => Ending::Refused,
        };
        let request = match to {
            Some(way) if turns => self.by_table(id, seen.packet.to).map_or(way, |c| c.way),
            Some(way) => way,
            None => return Ok(Side { ending, departure: None }),
        };
        let departure = self.departure(seen, &request, true)?;
        Ok(Side { ending, departure })
    }

    /// The way to an address by the table that the plan makes for an uplink.
    fn by_table(&mut self, id: u32, to: IpAddr) -> Option<Chosen> {
        let plan = &self.view.plan;
        let table = plan.uplinks.iter().find(|uplink| uplink.id == id)?.table;
        let of_table = |r: &&Route| r.table == table && r.dst.contains(to) && r.kind == RTN_UNICAST;
        let best = plan.routes.iter().filter(of_table).max_by_key(|r| r.dst.prefix())?;
        let hop = best.nexthops.first()?;
        let way = Way { kind: RTN_UNICAST, table, link: hop.link, gateway: hop.gateway };
        let of_family = |r: &&Rule| r.family == Family::of(to);
        let mark = self.view.settings.field.of(id);
        let lookup = Lookup { to, from: None, iif: None, mark };
        let rule =
            rules::chosen(plan.rules.iter().filter(of_family), &lookup, None, table).cloned();
        let mac = self.mac(&way);
        Some(Chosen { way, rule, mac })
    }

    fn side(&mut self, seen: &Seen, answers: &Answers, with: bool) -> Result<Side, Error> {
        let Packet { from, link, .. } = seen.packet;
        let filter = self.filter(from, link)?;
        let ending = ending(&seen.packet, answers, filter, seen.is_translated, |link| {
            self.leads_inside(link)
        });
        let departure = match (&ending, &answers.request) {
            (Ending::Leaves(_) | Ending::Answered(_), Some(request)) => {
                self.departure(seen, &request.way, with)?
            }
            _ => None,
        };
        Ok(Side { ending, departure })
    }

    /// How the request leaves the node again; none where it does not, or where the source that it has is
    /// none of the node's.
    fn departure(
        &mut self,
        seen: &Seen,
        request: &Way,
        with: bool,
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
        // symroute lets the answer to what this node has given another source in by the uplink of that
        // address.
        let arrives = owner.filter(|_| !is_tunnelled).unwrap_or(link);
        let is_let_in = with && nat.is_some() && self.is_uplink(arrives);
        let lost = if is_let_in { None } else { self.lost(packet, arrives)? };
        let by = nat.map(|nat| nat.by);
        Ok(Some(Departure { link, source, by, owner, is_tunnelled, lost }))
    }

    /// Whether the reverse path filter drops the answer to a request at an interface. Before it looks, the
    /// answer has got the request's own source as destination again.
    fn lost(&mut self, request: &Packet, link: u32) -> Result<Option<LostAnswer>, Error> {
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

    /// The address that MASQUERADE takes (`inet_select_addr`, net/ipv4/devinet.c): the first one of the
    /// interface, or of any other.
    fn masqueraded_as(&self, link: u32, family: Family) -> Option<IpAddr> {
        let addresses = &self.view.facts.addresses;
        let usable = || addresses.iter().filter(|a| a.scope == 0 && Family::of(a.ip) == family);
        let own = usable().find(|a| a.link == link);
        own.or_else(|| usable().min_by_key(|a| a.link)).map(|a| a.ip)
    }

    fn answers(&mut self, seen: &Seen, ours: u32) -> Result<Answers, Error> {
        let Packet { from, to, link, .. } = seen.packet;
        let field = self.view.settings.field.mask();
        let with_ours = |mark: u32| if ours == 0 { mark } else { mark & !field | ours };
        let mark = with_ours(seen.mark);
        if seen.packet.is_of_node() {
            let request = self.chosen(lookup_of(&seen.packet, to, mark))?;
            return Ok(Answers { request, ..Answers::default() });
        }
        let request = self.chosen(Lookup { to, from: Some(from), iif: Some(link), mark })?;
        // Without an answer the kernel has no way there, or its filter says no.
        let goes = match &request {
            Some(chosen) => Some(chosen.way),
            None => self.way(Lookup { mark, ..plain(to) })?,
        };
        let forwarded = goes.filter(|way| way.kind == RTN_UNICAST);
        // The filter looks the mark up where src_valid_mark says so.
        let is_valid = self.facts().src_valid_mark.get(&link).is_some_and(|value| *value != 0);
        let judged = if is_valid { mark } else { 0 };
        // The source is the node's, or the kernel would not take it for a packet of its own.
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
            Some(way) if way.kind == RTN_LOCAL => self.reply(seen, None, with_ours)?,
            Some(way) if way.kind == RTN_UNICAST => {
                let is_answered = seen.is_translated || self.leads_inside(way.link);
                if is_answered { self.reply(seen, Some(way.link), with_ours)? } else { None }
            }
            _ => None,
        };
        Ok(Answers { request, back, reply })
    }

    /// The way of the reply, which comes from the node itself or in by an interface.
    fn reply(
        &mut self,
        seen: &Seen,
        iif: Option<u32>,
        with_ours: impl Fn(u32) -> u32,
    ) -> Result<Option<Chosen>, Error> {
        let Packet { from, to, protocol, .. } = seen.packet;
        let link = iif.unwrap_or(0);
        let turned = Packet { protocol, ..Packet::plain(to, from, link) };
        let hook = if iif.is_some() { Hook::Prerouting } else { Hook::Output };
        let reply = self.in_hook(&turned, iif, None, (0, seen.connection), true);
        let outcomes = self.netfilter.walk(hook, reply, false, &self.view.facts);
        let mark = with_ours(outcomes.first().map_or(0, |outcome| outcome.packet.mark));
        self.chosen(Lookup { to: from, from: Some(to), iif, mark })
    }

    fn in_hook(
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
            connection,
            is_reply,
            untracked_by: None,
        }
    }

    /// The rules that may keep a request from being tracked: table and chain of each.
    pub(crate) fn untracking(&self, packet: &Packet) -> BTreeSet<String> {
        let arriving = self.in_hook(packet, Some(packet.link), None, (0, 0), false);
        self.netfilter.untracking(arriving, &self.view.facts)
    }

    /// Whether a way leads out of the node.
    fn leaves(&self, way: &Way) -> bool {
        way.kind == RTN_UNICAST && !self.leads_inside(way.link)
    }
}

/// Keeps the outcomes that connections of the client really have. conntrack has chosen for each of them.
fn choose_by_conntrack(outcomes: &mut Vec<Outcome>, alive: &[Connection]) {
    for connection in alive {
        let (called, server) = (connection.original.to, connection.reply.from);
        let is_known = outcomes.iter().any(|one| one.packet.to == server.ip());
        if let (false, Some(one)) = (is_known, outcomes.first()) {
            let to = NewAddress::Destination(server.ip(), Some(server.port()));
            let nat = (called != server).then(|| Nat { to, by: "conntrack".into() });
            let packet = netfilter::Packet {
                to: server.ip(),
                port: Some(server.port()),
                ..one.packet.clone()
            };
            outcomes.push(Outcome { packet, nat, ..one.clone() });
        }
    }
    if !alive.is_empty() {
        outcomes.retain(|one| alive.iter().any(|c| c.reply.from.ip() == one.packet.to));
    }
}

/// The look-up of a packet that the node itself sends.
fn lookup_of(packet: &Packet, to: IpAddr, mark: u32) -> Lookup {
    Lookup { to, from: Some(packet.from), iif: None, mark }
}

fn plain(to: IpAddr) -> Lookup {
    Lookup { to, from: None, iif: None, mark: 0 }
}
