//! The rules: how packets are marked. docs/design.md says why each part is there.
//!
//! No rule changes while pods come and go. What differs from node to node lies in sets and maps,
//! and each uplink has chains of its own: only constants can be merged into a mark on all kernels.

use super::base_chains::base_chains;
use super::offload;
use super::rules::{
    Chain,
    Expression::{self, *},
    Rule, Ruleset, Side,
};
use super::sets::{address_key, number_key, sets};
use crate::backend::spec::{Spec, Uplink};
use crate::model::{Family, Field};
use crate::names;
use crate::netlink::uapi::{IPS_DST_NAT, IPS_SEEN_REPLY, IPS_SRC_NAT};

/// `fe80::/10`
const LINK_LOCAL: ([u8; 16], [u8; 16]) = {
    let (mut mask, mut value) = ([0; 16], [0; 16]);
    (mask[0], mask[1]) = (0xff, 0xc0);
    (value[0], value[1]) = (0xfe, 0x80);
    (mask, value)
};

/// Chain of each uplink that binds connections. Chains whose rules count have names here.
pub(super) const BIND: &str = "bind";
/// Chain of each uplink for packets of connections that are bound to it.
pub(super) const BOUND: &str = "bound";
/// Chain of each uplink that makes a packet leave by it.
pub(super) const VIA: &str = "via";
/// The same for a packet that came in by it.
pub(super) const UTURN: &str = "uturn";
/// Chain that takes off a mark that was evidence only, before the packet is routed again.
pub(super) const FORGET: &str = "forget";
/// Chain that takes off the mark of what is about to leave.
pub(super) const LEAVE: &str = "leave";

/// Chain of each NIC that nothing speaks for, by its index: counts new connections from outside.
pub(super) const SILENT: &str = "silent";

/// The desired table.
pub(crate) fn build(spec: &Spec<'_>) -> Ruleset {
    let mut chains = Vec::new();
    for uplink in spec.uplinks {
        chains.extend(uplink_chains(spec, uplink));
    }
    chains.extend(spec.silent.iter().map(|&(link, _)| chain(named(SILENT, link), silent())));
    chains.extend(base_chains(spec));
    let mut ruleset = Ruleset { sets: sets(spec), chains, flowtable: None };
    offload::add(spec, &mut ruleset);
    ruleset
}

pub(super) fn rule(comment: &'static str, expressions: impl Into<Vec<Expression>>) -> Rule {
    Rule { comment: Some(comment), expressions: expressions.into() }
}

pub(super) fn plain(expressions: impl Into<Vec<Expression>>) -> Rule {
    Rule { comment: None, expressions: expressions.into() }
}

/// A rule without a comment that counts its packets.
fn counted(expressions: &[Expression]) -> Rule {
    plain([&[Counter][..], expressions].concat())
}

pub(super) fn named(chain: &str, id: u32) -> String {
    format!("{chain}_{id}")
}

pub(super) fn goto(chain: &str, id: u32) -> Expression {
    Goto(named(chain, id))
}

/// Keeps all bits but the field's, and puts `mark` there.
pub(super) fn merge(field: Field, mark: u32) -> Expression {
    Bits { mask: !field.mask(), xor: mark }
}

/// Only the field's bits.
pub(super) fn ours(field: Field) -> Expression {
    Bits { mask: field.mask(), xor: 0 }
}

pub(super) fn equals(number: u32) -> Expression {
    Equals(number_key(number))
}

/// The connection has this bit of `enum ip_conntrack_status`.
pub(super) fn has_status(bit: u32, then: Expression) -> [Expression; 4] {
    [ConntrackStatus, Bits { mask: bit, xor: 0 }, Differs(vec![0; 4]), then]
}

/// The packet is an ICMP or ICMPv6 error about a connection.
pub(super) fn icmp_error(
    family: Family,
    then: impl IntoIterator<Item = Expression>,
) -> Vec<Expression> {
    [IcmpOf(family), Related].into_iter().chain(then).collect()
}

/// An address of the packet is in a set of addresses, or is not.
pub(super) fn address_in(family: Family, side: Side, set: InSetOf, then: &[Expression]) -> Rule {
    let InSetOf(set, not) = set;
    let test = [FamilyIs(family), LoadAddress(family, side), InSet { set, not }];
    plain([&test[..], then].concat())
}

/// Name of a set, and whether the address must not be in it.
#[derive(Clone, Copy)]
pub(super) struct InSetOf(pub(super) &'static str, pub(super) bool);

pub(super) fn chain(name: String, rules: Vec<Rule>) -> Chain {
    Chain { name, hook: None, rules }
}

/// Puts `mark` into the field of the packet mark.
pub(super) fn set_packet(field: Field, mark: u32) -> [Expression; 3] {
    [PacketMark, merge(field, mark), SetPacketMark]
}

/// Puts `mark` into the field of the conntrack mark.
fn set_connection(field: Field, mark: u32) -> [Expression; 3] {
    [ConntrackMark, merge(field, mark), SetConntrackMark]
}

/// The chains of one uplink, those that others go to first.
fn uplink_chains(spec: &Spec<'_>, uplink: &Uplink) -> Vec<Chain> {
    let (field, id) = (spec.field, uplink.id);
    let (mark, turned) = (spec.bound(id), spec.turned(id));
    let set_packet = |mark| set_packet(field, mark);
    let mut chains = vec![
        // A packet that came in by the uplink and does not leave by it does not count as steered.
        chain(named("from", id), vec![plain(set_packet(mark))]),
        chain(named(VIA, id), vec![counted(&set_packet(mark))]),
        chain(named(UTURN, id), vec![counted(&set_packet(turned))]),
        chain(named(BIND, id), bind(spec, uplink)),
        chain(named("ask", id), ask(spec, id)),
        chain(named("error", id), error(spec, id)),
        chain(named("offer", id), offer(spec, id)),
        chain(named("in", id), [by_router(uplink), arrive(spec, id)].concat()),
        chain(named("answered", id), answered(id)),
        chain(named(BOUND, id), bound(spec, uplink)),
        chain(named("turned", id), turn(spec, uplink)),
    ];
    if !uplink.routers.is_empty() {
        let reroute = [&set_connection(field, mark)[..], &set_packet(mark), &[Accept]].concat();
        chains.insert(0, chain(named("reroute", id), vec![plain(reroute)]));
    }
    chains.extend(asks_with_marks(spec, id));
    if spec.steering.values().any(|steering| steering.via == id) {
        let remember = set_connection(field, field.d());
        let rules = vec![plain(remember), plain([goto(VIA, id)])];
        chains.push(chain(named("send", id), rules));
    }
    chains
}

/// Counts packets of connections from outside that have had no reply.
fn silent() -> Vec<Rule> {
    let outside = InSet { set: names::OUTSIDE, not: false };
    vec![
        plain(has_status(IPS_SEEN_REPLY, Accept)),
        rule(
            "a new connection by a NIC that is no uplink",
            [DirectionIs { reply: false }, FibInterface(Side::Source), outside, Counter],
        ),
    ]
}

/// A first packet of an uplink with several routers is for the one that it came from, if that has
/// an id of its own.
fn by_router(uplink: &Uplink) -> Vec<Rule> {
    let has_some = !uplink.router && !uplink.routers.is_empty();
    let rule = rule("came from a router of its own", [Iif, SourceMac, VerdictMap(names::ROUTERS)]);
    has_some.then_some(rule).into_iter().collect()
}

/// A packet of a connection that is bound to this uplink: what almost all packets are, so the
/// usual ones come first and go nowhere else.
fn bound(spec: &Spec<'_>, uplink: &Uplink) -> Vec<Rule> {
    let mark = set_packet(spec.field, spec.bound(uplink.id));
    let here = [Iif, equals(uplink.link)];
    let elsewhere = [DirectionIs { reply: true }, Iif, Differs(number_key(uplink.link)), Counter];
    let request = |more: &[Expression]| {
        [&[DirectionIs { reply: false }][..], &here, more, &mark, &[Accept]].concat()
    };
    let error = |family| icmp_error(family, [Iif, VerdictMap(names::ERRORS)]);
    let answered = has_status(IPS_SEEN_REPLY, Iif);
    let mut rules = vec![rule("a reply", [&elsewhere[..], &mark, &[Accept]].concat())];
    if !uplink.routers.is_empty() {
        let here = [&[DirectionIs { reply: false }][..], &here, &[NotRelated]].concat();
        let by_mac = [Iif, SourceMac, VerdictMap(names::REROUTED)];
        rules.push(rule("a request by a router of its own", [&here[..], &by_mac].concat()));
    }
    rules.extend([
        rule("a request", request(&[NotRelated])),
        rule("an ICMP error", error(Family::V4)),
        plain(error(Family::V6)),
        rule("the first packet of a connection that this one announced", request(&[])),
        // Strict rp_filter drops it if it is forged. A reply that turns round has another mark.
        rule("a reply by the uplink of its own request", [&here[..], &[Accept]].concat()),
        rule("answered", [&answered[..], &[VerdictMap(names::ANSWERED)]].concat()),
        rule("a request by another uplink", [Iif, VerdictMap(names::ARRIVE)]),
        plain([goto(VIA, uplink.id)]),
    ]);
    rules
}

/// A packet of a connection whose requests leave by the uplink that they come in by.
fn turn(spec: &Spec<'_>, uplink: &Uplink) -> Vec<Rule> {
    let id = uplink.id;
    let mut rules = Vec::new();
    for family in judged(spec) {
        rules.push(plain(icmp_error(family, from_inside())));
    }
    let original = || [DirectionIs { reply: false }];
    let answered = has_status(IPS_SEEN_REPLY, Iif);
    let to_inside = [FibInterface(Side::Destination), InSet { set: names::OUTSIDE, not: true }];
    let steered = spec.steering.values().any(|steering| steering.via == id);
    if steered {
        let reply = [DirectionIs { reply: true }, Iif, equals(uplink.link)];
        rules.push(rule(
            "a reply to a pod: an older release has steered the request",
            [&reply[..], &to_inside, &[goto("from", id)]].concat(),
        ));
    }
    rules.extend([
        plain([Iif, equals(uplink.link), goto(UTURN, id)]),
        plain([&original()[..], &answered, &[VerdictMap(names::ANSWERED)]].concat()),
        plain([&original()[..], &[Iif, VerdictMap(names::ARRIVE)]].concat()),
        plain([goto(VIA, id)]),
    ]);
    rules
}

/// The families in which a source can be judged by a missing route.
fn judged(spec: &Spec<'_>) -> impl Iterator<Item = Family> {
    Family::ALL.into_iter().filter(|family| !spec.hairpin && !spec.routeless.contains(family))
}

/// The node does not route the source to an interface that leads outside: leave the packet alone.
fn from_inside() -> [Expression; 3] {
    [FibInterface(Side::Source), InSet { set: names::OUTSIDE, not: true }, Accept]
}

/// A packet of a connection that is bound to another uplink and has been answered came in by this
/// one. It is let in and moves nothing, unless the address that the client called has moved here.
fn answered(id: u32) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .into_iter()
        .map(|family| {
            let test = own_address(family, ConntrackAddress { family, reply: false }, true);
            plain([&[FamilyIs(family)][..], &test, &[goto("from", id)]].concat())
        })
        .collect();
    rules.push(rule("the address has moved", [goto("in", id)]));
    rules
}

/// The incoming interface has this address of the connection, or has not.
fn own_address(family: Family, address: Expression, not: bool) -> [Expression; 3] {
    [Iif, address, InSet { set: names::OWN.of(family), not }]
}

/// A request that is bound now. Where the backend of a DNATed one lies behind the very uplink that
/// the request came in by, the way back that `rp_filter` looks up has the same incoming interface
/// and mark as the way there: the mark has to say that it turns round.
fn bind(spec: &Spec<'_>, uplink: &Uplink) -> Vec<Rule> {
    let id = uplink.id;
    let [status, bit, is_set, way] = has_status(IPS_DST_NAT, FibInterface(Side::Destination));
    let turns = [status, bit, is_set, way, equals(uplink.link)];
    let remember = |mark| {
        let [load, merge, store] = set_connection(spec.field, mark);
        // A packet of no connection is not counted: the rule ends where it loads the mark.
        [load, merge, Counter, store]
    };
    vec![
        rule(
            "to a backend behind this uplink",
            [&turns[..], &remember(spec.turned(id)), &[goto(UTURN, id)]].concat(),
        ),
        plain(remember(spec.bound(id))),
        plain([goto("from", id)]),
    ]
}

/// A first packet came in by this uplink. After DNAT, the node's routes say whether it is for
/// something inside.
fn arrive(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .into_iter()
        .flat_map(|family| {
            let [status, bit, is_set, of] = has_status(IPS_SRC_NAT, FamilyIs(family));
            let own = own_address(family, ConntrackAddress { family, reply: true }, false);
            let snat = [DirectionIs { reply: true }, status, bit, is_set, of];
            // An ICMP error may have any source.
            [(NotRelated, "from"), (Related, "error")].map(|(state, then)| {
                rule(
                    "an answer to the address that the request was sent with",
                    [&snat[..], &own, &[state, goto(then, id)]].concat(),
                )
            })
        })
        .collect();
    rules.push(plain([DirectionIs { reply: true }, Accept]));
    for family in Family::ALL {
        rules.push(rule("an ICMP error", icmp_error(family, [goto("error", id)])));
    }
    rules.extend(spec.exclude.iter().map(|net| {
        let family = Family::of(net.ip());
        let called = [FamilyIs(family), CalledAddress(family)];
        let inside = [AddressBits(address_key(net.mask())), Equals(address_key(net.network()))];
        rule("a destination that is never bound", [&called[..], &inside, &[Accept]].concat())
    }));
    for family in Family::ALL.into_iter().filter(|&f| Spec::any(spec.left_out, f)) {
        let set = InSetOf(names::LEFT_OUT.of(family), false);
        rules.push(address_in(family, Side::Destination, set, &[Accept]));
    }
    if spec.host {
        rules.push(rule("NodePort, backend anywhere", has_status(IPS_DST_NAT, goto("offer", id))));
        rules.push(rule(
            "the node itself",
            [FibType { side: Side::Destination, is_local: true }, goto("offer", id)],
        ));
    }
    let outside = InSet { set: names::OUTSIDE, not: false };
    rules.extend([
        rule("only passes through", [FibInterface(Side::Destination), outside, Accept]),
        rule("no route", [FibMissing { side: Side::Destination, by_mark: false }, Accept]),
        plain([goto("offer", id)]),
    ]);
    rules
}

/// Binds, unless the source is one that strict `rp_filter` has to drop.
fn offer(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    let (mask, value) = LINK_LOCAL;
    let link_local = [
        FamilyIs(Family::V6),
        LoadAddress(Family::V6, Side::Source),
        AddressBits(mask.to_vec()),
        Equals(value.to_vec()),
        Return,
    ];
    let mut rules = vec![plain(link_local)];
    if spec.hairpin {
        rules.push(plain([goto(BIND, id)]));
        return rules;
    }
    for family in Family::ALL.into_iter().filter(|&f| Spec::any(spec.hairpins, f)) {
        let set = InSetOf(names::HAIRPIN.of(family), false);
        rules.push(address_in(family, Side::Destination, set, &[goto(BIND, id)]));
    }
    let outside = InSet { set: names::OUTSIDE, not: false };
    let ask = rule("source lies outside", [FibInterface(Side::Source), outside, goto("ask", id)]);
    rules.push(ask);
    for &family in spec.routeless {
        let missing = FibMissing { side: Side::Source, by_mark: false };
        let test = [FamilyIs(family), missing, goto("ask", id)];
        rules.push(rule("main has no default route", test));
    }
    rules
}

/// Asks table main alone where the source lies: a table of the destination's own knows nothing of
/// what is inside. An ip rule sends a look-up whose whole mark is D to main. (Releases that do not
/// know this rule would take one that looks at a part of the mark for a clash.) So the mark of
/// another program is put aside meanwhile: those of known neighbours are. A packet with any other
/// is bound without this question.
fn ask(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    let mut rules: Vec<Rule> = foreign_marks(spec)
        .map(|mark| {
            let others = merge(spec.field, 0);
            plain([PacketMark, others, equals(mark), Goto(of_mark("ask", mark, id))])
        })
        .collect();
    rules.push(marked_by_others(spec, goto(BIND, id)));
    rules.extend(question(spec, &goto(BIND, id), 0));
    rules
}

/// The chains that put such a mark aside and back.
fn asks_with_marks(spec: &Spec<'_>, id: u32) -> impl Iterator<Item = Chain> {
    foreign_marks(spec).flat_map(move |mark| {
        let bind = of_mark("back", mark, id);
        let questions = question(spec, &Goto(bind.clone()), mark);
        let back = plain([Number(mark), SetPacketMark, goto(BIND, id)]);
        [chain(bind, vec![back]), chain(of_mark("ask", mark, id), questions)]
    })
}

/// The name of an uplink's chain for packets with a mark of another program.
fn of_mark(chain: &str, mark: u32, id: u32) -> String {
    format!("{chain}{mark:x}_{id}")
}

/// The marks, and their sum, that neighbours put on requests before this hook.
fn foreign_marks(spec: &Spec<'_>) -> impl Iterator<Item = u32> {
    let [kube, aws] = names::MARKS_ON_REQUESTS;
    [kube, aws, kube | aws].into_iter().filter(|&mark| !spec.field.has(mark))
}

/// The packet has a mark of another program.
fn marked_by_others(spec: &Spec<'_>, then: Expression) -> Rule {
    let others = merge(spec.field, 0);
    rule("a mark of another program", [PacketMark, others, Differs(vec![0; 4]), then])
}

/// The look-ups, between a mark that stands for the question and the packet's own.
fn question(spec: &Spec<'_>, then: &Expression, own: u32) -> Vec<Rule> {
    let outside = InSet { set: names::OUTSIDE, not: false };
    let mut rules = vec![
        plain([Number(spec.field.d()), SetPacketMark]),
        plain([FibInterfaceByMark(Side::Source), outside, then.clone()]),
    ];
    for &family in spec.routeless {
        let missing = FibMissing { side: Side::Source, by_mark: true };
        rules.push(plain([FamilyIs(family), missing, then.clone()]));
    }
    rules.push(plain([Number(own), SetPacketMark]));
    rules
}

/// An ICMP error binds nothing, since anybody can send one by any uplink. It is let in if its
/// source lies outside.
fn error(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    if spec.hairpin {
        return vec![plain([goto("from", id)])];
    }
    let mut rules: Vec<Rule> = judged(spec)
        .map(|family| plain([&[FamilyIs(family)][..], &from_inside()].concat()))
        .collect();
    rules.push(marked_by_others(spec, Accept));
    rules.extend(question(spec, &goto("from", id), 0));
    rules
}
