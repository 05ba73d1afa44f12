//! Leads a packet through the base chains of a hook, like `nf_hook_slow` (`net/netfilter/core.c`).

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::chain::{End, Walk};
use super::{Base, Chain, Hook, Packet, Ruleset, SOURCE_CHECK, Table};
use crate::model::Family;
use crate::netlink::uapi::NF_IP_PRI_CONNTRACK;

/// Maximum number of outcomes that are followed. A Service may have thousands of backends.
pub(super) const MAX_OUTCOMES: usize = 64;
/// Maximum depth of calls (`NFT_JUMP_STACK_SIZE`).
pub(super) const MAX_DEPTH: usize = 16;
/// Maximum number of rules that are followed for a packet in a base chain, all outcomes together. A node with
/// ten thousand Services stays below it. Chains that each call the next one many times would exceed any time
/// limit. Fuzzing uses a lower limit, because it leads sixty packets through each input.
const MAX_RULES: u32 = if cfg!(fuzzing) { 1 << 12 } else { 1 << 20 };

/// A change of an address by NAT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nat {
    pub(crate) to: NewAddress,
    /// Table and chain of the rule.
    pub(crate) by: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewAddress {
    Destination(IpAddr, Option<u16>),
    Source(IpAddr),
    /// An address of the interface that the packet leaves through.
    OfInterface,
}

/// A packet after the chains of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) packet: Packet,
    pub(crate) nat: Option<Nat>,
    pub(crate) is_dropped: bool,
    /// Matches and targets that were skipped, without duplicates.
    pub(crate) unsure: Vec<String>,
}

/// Questions that matches ask about the node.
pub(crate) trait Local {
    /// Whether the node has this address; if `link` is given, whether that interface has it.
    fn has(&self, address: IpAddr, link: Option<&str>) -> bool;
}

impl Ruleset {
    /// The possible outcomes of a packet at this hook. `is_first`: whether it is the first packet of its
    /// connection, which passes the NAT chains.
    pub(crate) fn walk(
        &self,
        hook: Hook,
        packet: Packet,
        is_first: bool,
        local: &dyn Local,
    ) -> Vec<Outcome> {
        let is_met = |base: &Base| is_first || !base.is_nat;
        let outcomes = self.pass_hook(hook, is_met, packet, local);
        if matches!(hook, Hook::Prerouting | Hook::Output) && is_first {
            let balanced = outcomes.into_iter().flat_map(|one| self.apply_ipvs(one));
            return balanced.take(MAX_OUTCOMES).collect();
        }
        outcomes
    }

    /// Table and chain of each rule that keeps this packet from being tracked.
    pub(crate) fn untracking_rules(&self, packet: Packet, local: &dyn Local) -> BTreeSet<String> {
        let is_met = |base: &Base| is_early(*base);
        let outcomes = self.pass_hook(Hook::Prerouting, is_met, packet, local).into_iter();
        outcomes.filter(|one| !one.is_dropped).filter_map(|one| one.packet.untracked_by).collect()
    }

    /// Table and chain of each rule that checks the packet's return path at a lower priority than `by`.
    pub(crate) fn source_checks(
        &self,
        packet: Packet,
        local: &dyn Local,
        by: i32,
    ) -> BTreeSet<String> {
        let is_met = |base: &Base| base.priority < by && !base.is_nat;
        let outcomes = self.pass_hook(Hook::Prerouting, is_met, packet, local).into_iter();
        let unsure = outcomes.flat_map(|one| one.unsure);
        let end = format!(": \"{SOURCE_CHECK}\"");
        unsure.filter_map(|text| text.strip_suffix(&end).map(str::to_owned)).collect()
    }

    /// Leads a packet through the base chains of a hook that `is_met` selects, in order of priority.
    fn pass_hook(
        &self,
        hook: Hook,
        is_met: impl Fn(&Base) -> bool,
        packet: Packet,
        local: &dyn Local,
    ) -> Vec<Outcome> {
        let family = Family::of(packet.to);
        let mut bases: Vec<(&Table, &str, &Chain)> = Vec::new();
        for table in self.tables.iter().filter(|t| t.family.is_none_or(|own| own == family)) {
            let is_met = |base: &Base| base.hook == hook && is_met(base);
            let met =
                table.chains.iter().filter(|(_, chain)| chain.base.as_ref().is_some_and(is_met));
            bases.extend(met.map(|(name, chain)| (table, name.as_str(), chain)));
        }
        bases.sort_by_key(|(_, _, chain)| chain.base.map(|base| base.priority));
        let start = Outcome { packet, nat: None, is_dropped: false, unsure: Vec::new() };
        let mut outcomes = vec![start];
        for (table, name, chain) in bases {
            let is_nat = chain.base.is_some_and(|base| base.is_nat);
            // NAT happens once for each hook and connection, and untracked packets have no connection.
            let has_none = |one: &Outcome| one.nat.is_some() || one.packet.untracked_by.is_some();
            let is_through = |one: &Outcome| one.is_dropped || is_nat && has_none(one);
            let (through, going): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(is_through);
            outcomes = through;
            for outcome in going {
                let is_early = chain.base.is_some_and(is_early);
                let walk = Walk { table, local, hook, is_early, left: Cell::new(MAX_RULES) };
                let drops = chain.base.is_some_and(|base| base.drops);
                let reroutes = chain.base.is_some_and(|base| base.reroutes);
                for (mut outcome, end) in walk.chain(name, chain, outcome, MAX_DEPTH) {
                    if reroutes || is_nat && outcome.nat.is_some() {
                        outcome.packet.routed = outcome.packet.mark;
                    }
                    outcome.is_dropped |= end == End::Dropped || drops && end == End::Returned;
                    if !outcomes.contains(&outcome) {
                        outcomes.push(outcome);
                    }
                }
            }
            outcomes.truncate(MAX_OUTCOMES);
        }
        outcomes
    }

    /// Applies IPVS to a packet without DNAT: one outcome for each server.
    fn apply_ipvs(&self, outcome: Outcome) -> Vec<Outcome> {
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

/// Whether the chain runs before conntrack.
fn is_early(base: Base) -> bool {
    base.priority < NF_IP_PRI_CONNTRACK
}

#[cfg(test)]
mod tests {
    use super::super::iptables::parse;
    use super::super::{Bound, Interface};
    use super::*;
    use crate::model::MarkMatch;

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
            routed: 0,
            connection: 0,
            is_reply: false,
            untracked_by: None,
            bound: None,
        }
    }

    fn walk(text: &str, hook: Hook, packet: Packet, is_first: bool) -> Vec<Outcome> {
        let tables = parse("iptables", Family::V4, text);
        Ruleset { tables, ..Ruleset::default() }.walk(hook, packet, is_first, &Node)
    }

    /// In the kernel, a packet would meet 8 to the power of 15 rules here.
    #[test]
    fn chains_that_call_each_other_too_often_are_not_followed_to_the_end() {
        let call = |at: u32| format!("-A C{at} -j C{}\n", at + 1).repeat(8);
        let calls: String = (0..15).map(call).collect();
        for last in ["-A C15 -j MARK --set-xmark 0x1/0x1", "-A C15 --unknown x -j RETURN"] {
            let first = "-A PREROUTING --unknown y -j C0\n-A PREROUTING -j C0";
            let text =
                format!("*mangle\n:PREROUTING ACCEPT [0:0]\n{first}\n{calls}{last}\nCOMMIT\n");
            let outcomes = walk(&text, Hook::Prerouting, packet("10.21.0.10", 80), true);
            assert!(
                outcomes[0].unsure.iter().any(|text| text.contains("rules in all")),
                "{outcomes:?}"
            );
        }
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
    fn rules_that_keep_packets_from_being_tracked() {
        let text = "*raw\n:PREROUTING ACCEPT [0:0]\n:OWN - [0:0]\n-A PREROUTING -i eth1 -j OWN\n\
            -A OWN -p tcp --dport 10250 -j CT --notrack\n-A OWN -p udp -j NOTRACK\n\
            -A OWN -p tcp -j CT --zone 1\nCOMMIT\n*nat\n:PREROUTING ACCEPT [0:0]\n\
            -A PREROUTING -p tcp -j DNAT --to-destination 10.244.1.5:8080\nCOMMIT\n";
        let tables = parse("iptables", Family::V4, text);
        let rules = Ruleset { tables, ..Ruleset::default() };
        let by = |iif: &str, protocol, port| {
            let iif = Some(Interface(3, iif.into()));
            Packet { iif, protocol: Some(protocol), port, ..packet("10.21.0.10", 1) }
        };
        let found = |packet| rules.untracking_rules(packet, &Node).into_iter().collect::<Vec<_>>();
        assert_eq!(found(by("eth1", 6, Some(10250))), ["iptables raw, OWN"]);
        assert_eq!(found(by("eth1", 6, None)), [""; 0]);
        assert_eq!(rules.untracked_ports(), [10250].into());
        assert_eq!(found(by("eth1", 17, Some(53))), ["iptables raw, OWN"]);
        assert_eq!(found(by("eth1", 6, Some(80))), [""; 0]);
        assert_eq!(found(by("eth0", 17, None)), [""; 0]);
        let sent = |port| rules.walk(Hook::Prerouting, by("eth1", 6, Some(port)), true, &Node);
        assert!(sent(10250)[0].nat.is_none(), "what is not tracked gets no other address");
        assert!(sent(80)[0].nat.is_some());
    }

    #[test]
    fn what_is_left_of_symroutes_mark() {
        let rules = |behind: &str| {
            let text = format!(
                "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j symroute-prerouting\n{behind}COMMIT\n"
            );
            Ruleset { tables: parse("iptables", Family::V4, &text), ..Ruleset::default() }
        };
        let bound = Some(Bound { field: 0x1f00, mark: 0x200, connection: 0x200, is_late: false });
        let request = Packet { bound, mark: 0x4100, ..packet("10.21.0.10", 80) };
        let marks = |behind, packet: &Packet| {
            let found = rules(behind).walk(Hook::Prerouting, packet.clone(), true, &Node);
            (found[0].packet.mark, found[0].packet.connection)
        };
        assert_eq!(marks("", &request), (0x4200, 0x200));
        let whole = "-A PREROUTING -j MARK --set-xmark 0x80/0xffffffff\n";
        assert_eq!(marks(whole, &request), (0x80, 0x200));
        let reply = Packet { is_reply: true, mark: 0, connection: 0x200, ..request.clone() };
        assert_eq!(marks("", &reply), (0x200, 0x200));
        let forgotten = Packet { connection: 0x80, ..reply };
        assert_eq!(marks("", &forgotten), (0, 0x80));
        assert_eq!(marks("", &Packet { bound: None, ..request }), (0x4100, 0));
    }

    #[test]
    fn iptables_binds_behind_routing() {
        let text = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
            -A PREROUTING -j symroute-prerouting\n-A PREROUTING -j CONNMARK --set-xmark 0x1/0xffffffff\n\
            -A FORWARD -j symroute-forward\nCOMMIT\n*filter\n:OUTPUT ACCEPT [0:0]\n\
            -A OUTPUT -j MARK --set-xmark 0x9/0xffffffff\nCOMMIT\n";
        let rules = Ruleset { tables: parse("iptables", Family::V4, text), ..Ruleset::default() };
        let bound = Bound { field: 0x1f00, mark: 0x200, connection: 0x1200, is_late: true };
        let request = Packet { bound: Some(bound), ..packet("10.21.0.10", 80) };
        let walked =
            |hook, packet: &Packet| rules.walk(hook, packet.clone(), true, &Node).remove(0).packet;
        let arrived = walked(Hook::Prerouting, &request);
        assert_eq!((arrived.mark, arrived.connection), (0x200, 1), "others write their mark first");
        let oif = Some(Interface(2, "eth0".into()));
        let forwarded = walked(Hook::Forward, &Packet { oif, ..arrived });
        assert_eq!((forwarded.mark, forwarded.connection), (0, 0x1201));
        let reply = Packet { is_reply: true, mark: 0, connection: 0x1201, ..request };
        assert_eq!(walked(Hook::Prerouting, &reply).mark, 0x1200);
        let sent = walked(Hook::Output, &Packet { iif: None, ..reply });
        assert_eq!((sent.mark, sent.routed), (9, 0), "a filter does not route again");
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
