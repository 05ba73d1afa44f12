//! One request through the node: the netfilter rules at the hooks, and the kernel's look-ups between them.

use std::net::IpAddr;

use super::answers::{Seen, lookup_of, plain};
use super::ask::{Asker, Explained};
use super::not_bound::{Destination, not_bound};
use super::{Answers, Chosen, Ending, Packet, Side, Translated, rules};
use crate::backend::Marker;
use crate::error::Error;
use crate::model::{Address, Family, Route, Rule};
use crate::netfilter::walk::{Nat, NewAddress, Outcome};
use crate::netfilter::{self, Bound, Hook};
use crate::netlink::conntrack::Connection;
use crate::netlink::route::{Lookup, Way};
use crate::netlink::uapi::{IPPROTO_TCP, IPPROTO_UDP, RTN_LOCAL, RTN_UNICAST};
use crate::plan;
use crate::plan::proof::OUTSIDE;

/// Maximum number of NodePorts that are named.
const NODE_PORTS: usize = 32;

/// Whether other programs leave symroute's mark on the packets of a connection.
#[derive(Debug, Clone, Copy)]
struct Kept {
    by_request: bool,
    by_reply: bool,
}

impl Asker<'_> {
    /// What happens to a request: one result for each backend that DNAT may choose.
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
        let alive = self.connections_like(&packet);
        choose_by_conntrack(&mut outcomes, &alive);
        // The kernel dumps the elements of a map in no particular order.
        outcomes.sort_by_key(|outcome| (outcome.packet.to, outcome.packet.port));
        let count = outcomes.len();
        let each = outcomes.into_iter().enumerate();
        each.map(|(at, outcome)| self.explain_outcome(packet, outcome, (at + 1, count), &alive))
            .collect()
    }

    /// Protocols and ports for which rules apply DNAT if the node's own address is the destination. The flag
    /// says whether there are more.
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

    fn explain_outcome(
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
            mark: if packet.is_of_node() { outcome.packet.routed } else { outcome.packet.mark },
            connection: outcome.packet.connection,
            untracked_by: outcome.packet.untracked_by.clone(),
            bound: None,
        };
        let to = outcome.packet.to;
        let alive = alive.iter().filter(|one| one.reply.from.ip() == to).copied().collect();
        let untracked_by = outcome.packet.untracked_by;
        let (nat, unsure) = (outcome.nat, outcome.unsure);
        let translated = Translated { nat, which, unsure, untracked_by, alive };
        let (in_force, is_by_uplink) = (self.in_force, self.is_uplink(packet.link));
        let explained = |without, back, with| {
            let (packet, filter) = (packet, filter);
            Explained { packet, translated, filter, without, back, with, in_force, is_by_uplink }
        };
        if outcome.is_dropped {
            let without = Side { ending: Ending::Dropped, departure: None, mark_is_lost: false };
            return Ok(explained(without, None, Err("a rule of netfilter drops it".into())));
        }
        let answers = self.answers(&seen)?;
        let without = self.side(&seen, &answers, false)?;
        let mut with = self.side_with_symroute(&packet, &seen, &answers)?;
        if with.is_err() {
            // symroute accepts the reply to a packet whose source the node changed.
            let answered = self.side(&seen, &answers, true)?;
            if answered != without {
                with = Ok(answered);
            }
        }
        Ok(explained(without, answers.back, with))
    }

    /// What happens with symroute, or the reason why symroute ignores the request.
    fn side_with_symroute(
        &mut self,
        packet: &Packet,
        seen: &Seen,
        without: &Answers,
    ) -> Result<Result<Side, String>, Error> {
        if let Some(why) = &self.refusal {
            return Ok(Err(why.clone()));
        }
        let field = self.view.settings.field;
        if let Some(via) = self.steered(seen, without) {
            let answers = if self.in_force {
                let mark = seen.mark & !field.mask() | field.of(via);
                self.answers(&Seen { mark, ..seen.clone() })?
            } else {
                Answers { request: self.chosen_by_table(via, seen.packet.to), ..without.clone() }
            };
            return self.side(seen, &answers, true).map(Ok);
        }
        let to = self.way(plain(seen.packet.to))?;
        let source = self.way(plain(packet.from))?;
        let (first, called) = (self.view.settings.rules().ask_alone, packet.to);
        let is_about = |rule: &Rule| {
            let is_before = rule.priority < first && rule.mark.is_none();
            is_before && rule.from.is_some_and(|net| net.contains(called))
        };
        let destination = Destination {
            called: packet.to,
            is_remote: seen.is_translated && to.is_some_and(|way| self.leaves(&way)),
            way: to.as_ref(),
            rule: self.rules.iter().find(|rule| is_about(rule)),
            source_is_inside: source.is_some_and(|way| self.leads_inside(way.link)),
        };
        let plan::Plan { uplinks, .. } = &self.view.plan;
        let uplink = uplinks.iter().find(|uplink| uplink.link == packet.link).map(|u| u.id);
        let crate::node::View { facts, settings, plan, .. } = &self.view;
        if let Some(why) = not_bound(&seen.packet, destination, facts, settings, plan) {
            return Ok(Err(why));
        }
        let Some(id) = uplink else { return Ok(Err("it binds no such connection".into())) };
        let turns = destination.is_remote && to.is_some_and(|way| way.link == packet.link);
        let by_iptables = self.view.plan.marker() != Marker::Nftables;
        // iptables marks a request before it knows the route, and the connection when the request leaves.
        let early = if turns && !by_iptables { field.d() } else { 0 };
        let late = if turns { field.d() } else { 0 };
        let marks = [field.of(id) | early, field.of(id) | late];
        let bound = self.bound(packet, seen, marks, by_iptables);
        let kept = self.mark_kept(&bound, to);
        let mark_is_lost = !(kept.by_request && kept.by_reply);
        let side = if self.in_force {
            let answers = self.answers(&bound)?;
            self.side(&bound, &answers, true)?
        } else if !kept.by_request || turns && by_iptables && packet.from.is_ipv4() {
            // Strict rp_filter checks the request against main, so the node's own routing decides.
            self.side(seen, without, true)?
        } else {
            let table = kept.by_reply.then_some(id);
            self.side_by_plan(&bound, table, turns && !by_iptables, to)?
        };
        Ok(Ok(Side { mark_is_lost, ..side }))
    }

    /// The request with the marks that all rules leave on it.
    fn bound(
        &self,
        packet: &Packet,
        seen: &Seen,
        [mark, connection]: [u32; 2],
        is_late: bool,
    ) -> Seen {
        let field = self.view.settings.field.mask();
        let bound = Some(Bound { field, mark, connection, is_late });
        let start = self.in_hook(packet, Some(packet.link), None, (0, 0), false);
        let start = netfilter::Packet { bound, ..start };
        let outcomes = self.netfilter.walk(Hook::Prerouting, start, true, &self.view.facts);
        let is_same =
            |one: &&Outcome| (one.packet.to, one.packet.port) == (seen.packet.to, seen.packet.port);
        // conntrack may know a backend that no rule has any more. Use the marks for another backend.
        let found = outcomes.iter().find(is_same).or(outcomes.first());
        let (mark, connection) =
            found.map_or((0, 0), |one| (one.packet.mark, one.packet.connection));
        Seen { mark, connection, bound, ..seen.clone() }
    }

    /// Whether request and reply carry symroute's mark at the routing decision. A rule of another program may
    /// remove it, and an untracked reply gets none.
    fn mark_kept(&self, bound: &Seen, to: Option<Way>) -> Kept {
        let Some(Bound { field, mark, connection: of_reply, .. }) = bound.bound else {
            return Kept { by_request: true, by_reply: true };
        };
        let iif = to.filter(|way| way.kind == RTN_UNICAST).map(|way| way.link);
        let connection = self.connection_mark_after(bound, iif);
        let reply = self.mark_of_reply(bound, iif, connection);
        Kept { by_request: bound.mark & field == mark, by_reply: reply & field == of_reply }
    }

    /// The id of the uplink to which masquerade steering sends a pod's request.
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

    /// What would happen if the plan's table of this uplink were in force. `id`: `None` if the reply loses its mark.
    fn side_by_plan(
        &mut self,
        seen: &Seen,
        id: Option<u32>,
        turns: bool,
        to: Option<Way>,
    ) -> Result<Side, Error> {
        let arrives = |way: &Way| {
            way.kind == RTN_LOCAL
                || way.kind == RTN_UNICAST && (seen.is_translated || self.leads_inside(way.link))
        };
        let ending = match to {
            Some(way) if arrives(&way) => {
                let reply = match id {
                    Some(id) => self.chosen_by_table(id, seen.packet.from),
                    None => self.reply(seen, (way.kind == RTN_UNICAST).then_some(way.link))?,
                };
                reply.map_or(Ending::NoReply, Ending::Answered)
            }
            Some(way) if way.kind == RTN_UNICAST => Ending::PassesThrough,
            _ => Ending::Refused,
        };
        let request = match to {
            Some(way) => match id.filter(|_| turns) {
                Some(id) => {
                    self.chosen_by_table(id, seen.packet.to).map_or(way, |chosen| chosen.way)
                }
                None => way,
            },
            None => return Ok(Side { ending, departure: None, mark_is_lost: false }),
        };
        let departure = self.departure(seen, &request, true)?;
        Ok(Side { ending, departure, mark_is_lost: false })
    }

    /// The route to an address in the table that the plan makes for an uplink.
    fn chosen_by_table(&mut self, id: u32, to: IpAddr) -> Option<Chosen> {
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
}

/// Keeps only the outcomes that existing connections have, because conntrack has already chosen for them.
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
