//! Leads a packet through the chains of a table, like `nft_do_chain` (`net/netfilter/nf_tables_core.c`) and
//! `ipt_do_table` (`net/ipv4/netfilter/ip_tables.c`).

use std::cell::Cell;

use super::sets::bytes;
use super::walk::{Local, MAX_DEPTH, MAX_OUTCOMES, Nat, NewAddress, Outcome};
use super::{
    Bound, Chain, Condition, Hook, Interface, Match, Packet, Part, Rule, SOURCE_CHECK, Table,
    Target,
};
use crate::model::MarkMatch;

/// How a packet leaves a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The packet continues after the call of the chain.
    Returned,
    /// The packet has left the base chain and continues.
    Accepted,
    Dropped,
}

/// Variants of a packet in a chain: `next` continue with the next rule, `ended` have left the chain.
#[derive(Debug, Default)]
struct Paths {
    next: Vec<Outcome>,
    ended: Vec<(Outcome, End)>,
}

/// The parameters of a packet's way through the chains of a table.
pub(super) struct Walk<'a> {
    pub(super) table: &'a Table,
    pub(super) local: &'a dyn Local,
    pub(super) hook: Hook,
    /// Whether the chain runs before conntrack, so that `notrack` works (`nft_notrack_eval`, `xt_ct_target`).
    pub(super) is_early: bool,
    /// Number of rules that may still be followed.
    pub(super) left: Cell<u32>,
}

impl Walk<'_> {
    pub(super) fn chain(
        &self,
        name: &str,
        chain: &Chain,
        start: Outcome,
        depth: usize,
    ) -> Vec<(Outcome, End)> {
        let mut paths = Paths { next: vec![start], ended: Vec::new() };
        for rule in &chain.rules {
            for outcome in std::mem::take(&mut paths.next) {
                self.rule(name, rule, outcome, depth, &mut paths);
            }
            dedup_and_cap(&mut paths.next);
            dedup_and_cap(&mut paths.ended);
        }
        // Packets without a verdict come first, so that the limit on outcomes does not drop them.
        let mut ends: Vec<_> = paths.next.into_iter().map(|next| (next, End::Returned)).collect();
        ends.extend(paths.ended);
        dedup_and_cap(&mut ends);
        ends
    }

    fn rule(
        &self,
        chain: &str,
        rule: &Rule,
        mut outcome: Outcome,
        depth: usize,
        paths: &mut Paths,
    ) {
        if !self.take_rule_budget() {
            self.note(chain, &mut outcome, "more rules in all than can be followed");
            return paths.next.push(outcome);
        }
        for (at, part) in rule.0.iter().enumerate() {
            match part {
                Part::If(condition) => match self.judge(condition, &outcome.packet) {
                    Fits::Yes => {}
                    Fits::No => return paths.next.push(outcome),
                    Fits::Perhaps => paths.next.push(outcome.clone()),
                    Fits::Unknown(why) => {
                        let changes =
                            || rule.0[at..].iter().any(|part| self.changes(part, MAX_DEPTH));
                        if why == SOURCE_CHECK || changes() {
                            self.note(chain, &mut outcome, &why);
                        }
                        return paths.next.push(outcome);
                    }
                },
                Part::Do(target) => match self.apply(chain, target, outcome, depth, paths) {
                    Some(goes_on) => outcome = goes_on,
                    None => return,
                },
            }
        }
        paths.next.push(outcome);
    }

    /// Counts a rule. False if the limit is reached.
    fn take_rule_budget(&self) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    /// Records a part of a rule that was skipped.
    fn note(&self, chain: &str, outcome: &mut Outcome, what: &str) {
        let text = format!("{}, {chain}: \"{what}\"", self.table.name);
        if !outcome.unsure.contains(&text) {
            outcome.unsure.push(text);
        }
    }

    /// Applies the target. Returns the packet if it continues with the same rule.
    fn apply(
        &self,
        chain: &str,
        target: &Target,
        mut outcome: Outcome,
        depth: usize,
        paths: &mut Paths,
    ) -> Option<Outcome> {
        let packet = &mut outcome.packet;
        let to = match target {
            Target::Nothing => return Some(outcome),
            // An untracked packet has no connection mark.
            Target::Connection(_) if packet.untracked_by.is_some() => return Some(outcome),
            Target::Mark(mix) if mix.take != 0 && packet.untracked_by.is_some() => {
                return Some(outcome);
            }
            Target::Mark(mix) => {
                packet.mark = mix.apply(packet.mark, packet.connection);
                return Some(outcome);
            }
            Target::Connection(mix) => {
                packet.connection = mix.apply(packet.connection, packet.mark);
                return Some(outcome);
            }
            Target::Symroute => {
                packet.apply_symroute(self.hook);
                return Some(outcome);
            }
            Target::Untrack if !self.is_early => return Some(outcome),
            Target::Untrack => {
                let place = || format!("{}, {chain}", self.table.name);
                packet.untracked_by.get_or_insert_with(place);
                return Some(outcome);
            }
            Target::Unknown(what) => {
                self.note(chain, &mut outcome, what);
                return Some(outcome);
            }
            Target::Return | Target::Accept | Target::Drop => {
                let end = match target {
                    Target::Accept => End::Accepted,
                    Target::Drop => End::Dropped,
                    _ => End::Returned,
                };
                paths.ended.push((outcome, end));
                return None;
            }
            Target::Jump(name) => {
                self.call(name, true, outcome, depth, paths);
                return None;
            }
            Target::Goto(name) => {
                self.call(name, false, outcome, depth, paths);
                return None;
            }
            Target::Map(fields, set) => {
                let found = bytes(fields, packet, self.local).and_then(|key| set.find(&key));
                let Some(found) = found else {
                    paths.next.push(outcome);
                    return None;
                };
                return self.apply(chain, found, outcome, depth, paths);
            }
            Target::Choice(targets) => {
                for target in targets {
                    let chosen = self.apply(chain, target, outcome.clone(), depth, paths);
                    paths.next.extend(chosen);
                }
                return None;
            }
            Target::Dnat { to, port } => {
                packet.to = *to;
                packet.port = port.or(packet.port);
                NewAddress::Destination(*to, *port)
            }
            Target::Snat(from) => NewAddress::Source(*from),
            Target::Masquerade => NewAddress::OfInterface,
        };
        outcome.nat = Some(Nat { to, by: format!("{}, {chain}", self.table.name) });
        paths.ended.push((outcome, End::Accepted));
        None
    }

    /// Calls a chain. The packet continues after the call only if `returns`.
    fn call(&self, name: &str, returns: bool, outcome: Outcome, depth: usize, paths: &mut Paths) {
        let called = self.table.chains.get(name).filter(|_| depth > 0);
        let Some(called) = called else { return paths.next.push(outcome) };
        for (outcome, end) in self.chain(name, called, outcome, depth - 1) {
            if end == End::Returned && returns {
                paths.next.push(outcome);
            } else {
                paths.ended.push((outcome, end));
            }
        }
    }

    /// Whether a part of a rule may change the packet or its connection.
    fn changes(&self, part: &Part, depth: usize) -> bool {
        let Part::Do(target) = part else { return false };
        match target {
            Target::Nothing | Target::Symroute | Target::Return | Target::Accept | Target::Drop => {
                false
            }
            // A chain that can't be followed may change the packet.
            Target::Jump(_) | Target::Goto(_) if !self.take_rule_budget() => true,
            Target::Jump(name) | Target::Goto(name) => {
                let called = self.table.chains.get(name).filter(|_| depth > 0);
                let mut parts = called.iter().flat_map(|chain| &chain.rules).flat_map(|r| &r.0);
                parts.any(|part| self.changes(part, depth - 1))
            }
            _ => true,
        }
    }

    fn judge(&self, condition: &Condition, packet: &Packet) -> Fits {
        let has = |mark: u32, MarkMatch { value, mask }: MarkMatch| mark & mask == value;
        let fits = match &condition.is {
            Match::Bytes(fields, wanted) => {
                // nftables ends the rule for a packet that lacks the field.
                let Some(found) = bytes(fields, packet, self.local) else { return Fits::No };
                // `wanted` is shorter than the field for a prefix of an address or of a name.
                found.starts_with(wanted)
            }
            Match::Among(fields, set) => {
                let Some(found) = bytes(fields, packet, self.local) else { return Fits::No };
                set.find(&found).is_some()
            }
            Match::In(name) => is_named(name, packet.iif.as_ref()),
            Match::Out(name) => is_named(name, packet.oif.as_ref()),
            Match::From(net) => net.contains(packet.from),
            Match::To(net) => net.contains(packet.to),
            Match::Protocol(protocol) => packet.protocol == Some(*protocol),
            Match::Port(first, last) => {
                packet.port.is_some_and(|port| (*first..=*last).contains(&port))
            }
            Match::Ports(ranges) => packet.port.is_some_and(|port| {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
            }),
            Match::ToNode { is_of_iif } => {
                let link = packet.iif.as_ref().filter(|_| *is_of_iif);
                self.local.has(packet.to, link.map(|Interface(_, name)| name.as_str()))
            }
            Match::FromNode => self.local.has(packet.from, None),
            Match::Mark(wanted) => has(packet.mark, *wanted),
            // Untracked packets match neither form (`connmark_mt`).
            Match::Connection(_) if packet.untracked_by.is_some() => return Fits::No,
            Match::Connection(wanted) => has(packet.connection, *wanted),
            Match::State { .. } if packet.untracked_by.is_some() => false,
            Match::State { new, established } => {
                if packet.is_reply {
                    *established
                } else {
                    *new
                }
            }
            Match::Chance => return Fits::Perhaps,
            Match::Unknown(text) => return Fits::Unknown(text.clone()),
        };
        if fits == condition.inverted { Fits::No } else { Fits::Yes }
    }
}

impl Packet {
    /// Applies symroute's rules to the marks: they mark a request, restore the mark of a reply from its
    /// connection, and clear the mark of a packet that leaves.
    fn apply_symroute(&mut self, hook: Hook) {
        let Some(Bound { field, mark, connection, is_late }) = self.bound else { return };
        let is_tracked = self.untracked_by.is_none();
        let bind = |own: &mut u32| *own = *own & !field | connection;
        match hook {
            Hook::Prerouting | Hook::Output if self.is_reply => {
                if self.connection & field == connection && is_tracked {
                    self.mark = self.mark & !field | connection;
                }
            }
            Hook::Prerouting => {
                self.mark = self.mark & !field | mark;
                if is_tracked && !is_late {
                    bind(&mut self.connection);
                }
            }
            Hook::Input | Hook::Forward if !self.is_reply && is_late => {
                if is_tracked {
                    bind(&mut self.connection);
                }
                self.mark &= !field;
            }
            Hook::Input | Hook::Postrouting => self.mark &= !field,
            Hook::Forward | Hook::Output => {}
        }
    }
}

#[derive(Debug)]
enum Fits {
    No,
    Yes,
    Perhaps,
    /// The match is not understood; holds its text.
    Unknown(String),
}

/// Removes duplicates, and cuts the list to the maximum number of outcomes.
fn dedup_and_cap<T: PartialEq>(list: &mut Vec<T>) {
    let mut at = 0;
    while at < list.len() {
        if list[..at].contains(&list[at]) {
            list.remove(at);
        } else {
            at += 1;
        }
    }
    list.truncate(MAX_OUTCOMES);
}

/// Whether the interface has this name. A name that ends in `+` is a prefix (iptables(8)).
fn is_named(wanted: &str, found: Option<&Interface>) -> bool {
    let name = found.map_or("", |Interface(_, name)| name.as_str());
    wanted.strip_suffix('+').map_or(name == wanted, |begin| name.starts_with(begin))
}
