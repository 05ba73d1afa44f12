//! Leads a packet through the chains of a hook, as `nf_hook_slow` (net/netfilter/core.c) and `nft_do_chain`
//! (`nf_tables_core.c`) do.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::sets::bytes;
use super::{Chain, Condition, Hook, Interface, Match, Packet, Part, Rule, Ruleset, Table, Target};
use crate::model::{Family, MarkMatch};

/// Outcomes that are followed at most: a Service may have thousands of backends.
const OUTCOMES: usize = 64;
/// Chains that call each other at most (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// A change of an address, and which rule makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nat {
    pub(crate) to: NewAddress,
    /// Table and chain with the rule.
    pub(crate) by: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewAddress {
    Destination(IpAddr, Option<u16>),
    Source(IpAddr),
    /// An address of the interface that the packet leaves by.
    OfInterface,
}

/// A packet behind the chains of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) packet: Packet,
    pub(crate) nat: Option<Nat>,
    pub(crate) is_dropped: bool,
    /// Rules that could not be judged, each once.
    pub(crate) unsure: Vec<String>,
}

/// What the rules ask about the node.
pub(crate) trait Local {
    /// Whether the node has this address; with a name, whether that interface has it.
    fn has(&self, address: IpAddr, link: Option<&str>) -> bool;
}

/// How a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The packet goes on behind the call.
    Returned,
    /// It is through with the base chain.
    Accepted,
    Dropped,
}

impl Ruleset {
    /// Where the packet may get in this hook. `is_first`: whether it is the first of its connection, so that
    /// chains of NAT see it.
    pub(crate) fn walk(
        &self,
        hook: Hook,
        packet: Packet,
        is_first: bool,
        local: &dyn Local,
    ) -> Vec<Outcome> {
        let family = Family::of(packet.to);
        let mut bases: Vec<(&Table, &str, &Chain)> = Vec::new();
        for table in self.tables.iter().filter(|t| t.family.is_none_or(|own| own == family)) {
            let of_hook = table.chains.iter().filter(|(_, chain)| {
                chain.base.is_some_and(|base| base.hook == hook && (is_first || !base.is_nat))
            });
            bases.extend(of_hook.map(|(name, chain)| (table, name.as_str(), chain)));
        }
        bases.sort_by_key(|(_, _, chain)| chain.base.map(|base| base.priority));
        let start = Outcome { packet, nat: None, is_dropped: false, unsure: Vec::new() };
        let mut outcomes = vec![start];
        for (table, name, chain) in bases {
            let is_nat = chain.base.is_some_and(|base| base.is_nat);
            // A connection gets an address in each hook once.
            let is_through = |one: &Outcome| one.is_dropped || is_nat && one.nat.is_some();
            let (through, going): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(is_through);
            outcomes = through;
            for outcome in going {
                let walk = Walk { table, local };
                let drops = chain.base.is_some_and(|base| base.drops);
                for (mut outcome, end) in walk.chain(name, chain, outcome, DEPTH) {
                    outcome.is_dropped |= end == End::Dropped || drops && end == End::Returned;
                    if !outcomes.contains(&outcome) {
                        outcomes.push(outcome);
                    }
                }
            }
            outcomes.truncate(OUTCOMES);
        }
        if hook != Hook::Postrouting && is_first {
            return outcomes
                .into_iter()
                .flat_map(|one| self.balanced(one))
                .take(OUTCOMES)
                .collect();
        }
        outcomes
    }

    /// What IPVS makes of a packet that no DNAT has changed: one outcome for each server.
    fn balanced(&self, outcome: Outcome) -> Vec<Outcome> {
        let packet = &outcome.packet;
        let called = (packet.protocol, packet.port, packet.to);
        let service = self.services.iter().find(|service| {
            called == (Some(service.protocol), Some(service.port), service.address)
        });
        let Some(service) = service.filter(|_| outcome.nat.is_none() && !outcome.is_dropped) else {
            return vec![outcome];
        };
        let to_server = |&(to, port): &(IpAddr, u16)| {
            let packet = Packet { to, port: Some(port), ..outcome.packet.clone() };
            let by = format!("IPVS, {}", service.scheduler);
            let nat = Nat { to: NewAddress::Destination(to, Some(port)), by };
            Outcome { packet, nat: Some(nat), ..outcome.clone() }
        };
        if service.servers.is_empty() {
            let unsure = vec![format!("IPVS, {}: the Service has no server", service.scheduler)];
            return vec![Outcome { is_dropped: true, unsure, ..outcome }];
        }
        service.servers.iter().map(to_server).collect()
    }
}

impl Ruleset {
    /// Whether a rule that packets meet in this hook may give them such a mark. A target of TPROXY may.
    pub(crate) fn may_mark(&self, hook: Hook, mark: MarkMatch) -> bool {
        let marks = |target: &Target| match target {
            Target::Mark(mix) => mix.xor & mark.mask == mark.value,
            Target::Unknown(what) => what.to_lowercase().contains("tproxy"),
            _ => false,
        };
        self.tables.iter().any(|table| {
            let called = table.called_in(hook);
            let chains = called.iter().filter_map(|name| table.chains.get(*name));
            let mut parts = chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.0);
            parts.any(|part| matches!(part, Part::Do(target) if marks(target)))
        })
    }
}

impl Table {
    /// The chains that packets may get to in this hook.
    fn called_in(&self, hook: Hook) -> BTreeSet<&str> {
        let is_base = |chain: &Chain| chain.base.is_some_and(|base| base.hook == hook);
        let bases = self.chains.iter().filter(|(_, chain)| is_base(chain));
        let mut left: Vec<&str> = bases.map(|(name, _)| name.as_str()).collect();
        let mut called = BTreeSet::new();
        while let Some(name) = left.pop() {
            let Some(chain) = self.chains.get(name).filter(|_| called.insert(name)) else {
                continue;
            };
            for part in chain.rules.iter().flat_map(|rule| &rule.0) {
                match part {
                    Part::Do(Target::Map(_, set)) => {
                        left.extend(set.elements.iter().filter_map(|(_, target)| target.chain()));
                    }
                    Part::Do(Target::Choice(targets)) => {
                        left.extend(targets.iter().filter_map(Target::chain));
                    }
                    Part::Do(target) => left.extend(target.chain()),
                    Part::If(_) => {}
                }
            }
        }
        called
    }
}

impl Target {
    fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(name) | Self::Goto(name) => Some(name),
            _ => None,
        }
    }
}

/// Packets in a chain: those that go on with the next rule, and those that are through.
#[derive(Debug, Default)]
struct Paths {
    next: Vec<Outcome>,
    ended: Vec<(Outcome, End)>,
}

struct Walk<'a> {
    table: &'a Table,
    local: &'a dyn Local,
}

impl Walk<'_> {
    fn chain(
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
            paths.next.truncate(OUTCOMES);
        }
        let Paths { next, mut ended } = paths;
        ended.extend(next.into_iter().map(|outcome| (outcome, End::Returned)));
        ended.truncate(OUTCOMES);
        ended
    }

    fn rule(
        &self,
        chain: &str,
        rule: &Rule,
        mut outcome: Outcome,
        depth: usize,
        paths: &mut Paths,
    ) {
        for (at, part) in rule.0.iter().enumerate() {
            match part {
                Part::If(condition) => match self.judge(condition, &outcome.packet) {
                    Fits::Yes => {}
                    Fits::No => return paths.next.push(outcome),
                    Fits::Perhaps => paths.next.push(outcome.clone()),
                    Fits::Unknown(why) => {
                        if rule.0[at..].iter().any(|part| self.changes(part, DEPTH)) {
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

    /// Notes a part of a rule that was passed over.
    fn note(&self, chain: &str, outcome: &mut Outcome, what: &str) {
        let text = format!("{}, {chain}: \"{what}\"", self.table.name);
        if !outcome.unsure.contains(&text) {
            outcome.unsure.push(text);
        }
    }

    /// Does what the target says; gives the packet back where it goes on with the rule.
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
            Target::Mark(mix) => {
                packet.mark = mix.of(packet.mark, packet.connection);
                return Some(outcome);
            }
            Target::Connection(mix) => {
                packet.connection = mix.of(packet.connection, packet.mark);
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

    /// Calls a chain, and returns behind the call if `returns`.
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

    /// Whether this part of a rule may change the packet or its connection.
    fn changes(&self, part: &Part, depth: usize) -> bool {
        let Part::Do(target) = part else { return false };
        match target {
            Target::Nothing | Target::Return | Target::Accept | Target::Drop => false,
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
                // A packet without such a field does not meet the rest of the rule.
                let Some(found) = bytes(fields, packet, self.local) else { return Fits::No };
                // A prefix of an address or of a name has fewer bytes.
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
            Match::ToNode { here } => {
                let link = packet.iif.as_ref().filter(|_| *here);
                self.local.has(packet.to, link.map(|Interface(_, name)| name.as_str()))
            }
            Match::FromNode => self.local.has(packet.from, None),
            Match::Mark(wanted) => has(packet.mark, *wanted),
            Match::Connection(wanted) => has(packet.connection, *wanted),
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

#[derive(Debug)]
enum Fits {
    No,
    Yes,
    Perhaps,
    /// A match of these words is not understood.
    Unknown(String),
}

/// A name that ends in `+` stands for all that begin so (iptables(8)).
fn is_named(wanted: &str, found: Option<&Interface>) -> bool {
    let name = found.map_or("", |Interface(_, name)| name.as_str());
    wanted.strip_suffix('+').map_or(name == wanted, |begin| name.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::super::iptables::parse;
    use super::*;

    struct Node;
    impl Local for Node {
        fn has(&self, address: IpAddr, link: Option<&str>) -> bool {
            let of = |ip: &str| address == ip.parse::<IpAddr>().unwrap();
            of("10.20.0.10") && link.is_none_or(|l| l == "eth0")
                || of("10.21.0.10") && link.is_none_or(|l| l == "eth1")
        }
    }

    fn packet(to: &str, port: u16) -> Packet {
        Packet {
            iif: Some(Interface(3, "eth1".into())),
            oif: None,
            from: "203.0.113.9".parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: Some(6),
            port: Some(port),
            mark: 0,
            connection: 0,
            is_reply: false,
        }
    }

    fn walk(text: &str, hook: Hook, packet: Packet, is_first: bool) -> Vec<Outcome> {
        let tables = parse("iptables", Family::V4, text);
        Ruleset { tables, ..Ruleset::default() }.walk(hook, packet, is_first, &Node)
    }

    const SERVICE: &str = "*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j KUBE-SVC
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-EXT
-A KUBE-EXT -j KUBE-MARK-MASQ
-A KUBE-EXT -j KUBE-SVC
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SVC ! -s 10.244.0.0/16 -d 10.96.0.10/32 -j KUBE-MARK-MASQ
-A KUBE-SVC -m statistic --mode random --probability 0.5 -j KUBE-SEP-A
-A KUBE-SVC -j KUBE-SEP-B
-A KUBE-SEP-A -p tcp -j DNAT --to-destination 10.244.1.5:8080
-A KUBE-SEP-B -p tcp -j DNAT --to-destination 10.244.2.7:8080
COMMIT
";

    #[test]
    fn a_node_port_has_both_backends_and_is_marked() {
        let found = walk(SERVICE, Hook::Prerouting, packet("10.21.0.10", 30080), true);
        let to: Vec<_> = found.iter().map(|one| one.packet.to.to_string()).collect();
        assert_eq!(to, ["10.244.1.5", "10.244.2.7"], "{found:#?}");
        assert!(found.iter().all(|one| one.packet.mark == 0x4000 && one.packet.port == Some(8080)));
        assert_eq!(found[0].nat.as_ref().unwrap().by, "iptables nat, KUBE-SEP-A");
        let later = walk(SERVICE, Hook::Prerouting, packet("10.21.0.10", 30080), false);
        assert!(later.len() == 1 && later[0].nat.is_none(), "{later:?}");
        let other = walk(SERVICE, Hook::Prerouting, packet("10.21.0.10", 22), true);
        assert!(other.len() == 1 && other[0].nat.is_none() && other[0].packet.mark == 0);
        let elsewhere = walk(SERVICE, Hook::Prerouting, packet("10.99.0.1", 30080), true);
        assert!(elsewhere[0].nat.is_none());
    }

    #[test]
    fn ipvs_sends_to_its_servers() {
        let text =
            "TCP  0A600001:0050 rr\n  -> 0AF40105:1F90 Masq 1 0 0\n  -> 0AF40207:1F90 Masq 1 0 0\n";
        let services = super::super::ipvs::parse(text);
        let rules = Ruleset { services, ..Ruleset::default() };
        let found = rules.walk(Hook::Prerouting, packet("10.96.0.1", 80), true, &Node);
        let to: Vec<_> = found.iter().map(|one| one.packet.to.to_string()).collect();
        assert_eq!(to, ["10.244.1.5", "10.244.2.7"]);
        assert_eq!(found[0].nat.as_ref().unwrap().by, "IPVS, rr");
        let other = rules.walk(Hook::Prerouting, packet("10.96.0.1", 81), true, &Node);
        assert!(other.len() == 1 && other[0].nat.is_none());
    }

    #[test]
    fn marks_of_aws() {
        let text = "*mangle\n:PREROUTING ACCEPT [0:0]\n\
            -A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80\n\
            -A PREROUTING -i eni+ -j CONNMARK --restore-mark --mask 0x80\nCOMMIT\n";
        let by = |iif: &str, to, connection| {
            let packet =
                Packet { iif: Some(Interface(2, iif.into())), connection, ..packet(to, 80) };
            let found = walk(text, Hook::Prerouting, packet, true);
            (found[0].packet.mark, found[0].packet.connection)
        };
        assert_eq!(by("eth0", "10.20.0.10", 0), (0, 0x80));
        assert_eq!(by("eth0", "10.21.0.10", 0), (0, 0));
        assert_eq!(by("enipod0", "203.0.113.9", 0x180), (0x80, 0x180));
    }

    #[test]
    fn rules_that_may_set_a_mark() {
        let text = "*mangle\n:OUTPUT ACCEPT [0:0]\n:PREROUTING DROP [0:0]\n:DIVERT - [0:0]\n:LONE - [0:0]\n\
            -A OUTPUT -p tcp -j DIVERT\n-A DIVERT -j MARK --set-xmark 0x1/0x1\n\
            -A LONE -j MARK --set-xmark 0x2/0x2\nCOMMIT\n";
        let rules = Ruleset { tables: parse("iptables", Family::V4, text), ..Ruleset::default() };
        let mark = |value| MarkMatch { value, mask: value };
        assert!(
            rules.may_mark(Hook::Output, mark(1)) && !rules.may_mark(Hook::Prerouting, mark(1))
        );
        assert!(!rules.may_mark(Hook::Output, mark(2)), "no packet gets there");
        let dropped = rules.walk(Hook::Prerouting, packet("10.21.0.10", 80), true, &Node);
        assert!(dropped.len() == 1 && dropped[0].is_dropped, "the policy drops");
    }

    #[test]
    fn what_is_not_understood_is_named_and_passed_over() {
        let text = "*nat\n:PREROUTING ACCEPT [0:0]\n\
            -A PREROUTING -m set --match-set A dst -j DNAT --to-destination 10.0.0.1\n\
            -A PREROUTING -d 10.21.0.10/32 -p udp -m bpf --bytecode x -j DROP\n\
            -A PREROUTING -j PREROUTING\nCOMMIT\n";
        let found = walk(text, Hook::Prerouting, packet("10.21.0.10", 80), true);
        assert!(found.len() == 1 && found[0].nat.is_none() && !found[0].is_dropped, "{found:?}");
        assert_eq!(found[0].unsure, ["iptables nat, PREROUTING: \"--match-set A\""]);
    }
}
