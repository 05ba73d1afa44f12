//! The rules that mark packets. docs/design.md says why each part exists.
//!
//! No rule changes while pods without annotations come and go. Sets and maps hold what differs from
//! node to node. Each uplink has chains of its own, because older kernels can merge only constants
//! into a mark.

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

/// Mask and value of `fe80::/10`.
const LINK_LOCAL: ([u8; 16], [u8; 16]) = {
    let (mut mask, mut value) = ([0; 16], [0; 16]);
    (mask[0], mask[1]) = (0xff, 0xc0);
    (value[0], value[1]) = (0xfe, 0x80);
    (mask, value)
};

/// Prefix of the chains that bind connections to an uplink. Chains with counters have constants
/// here.
pub(super) const BIND: &str = "bind";
/// Prefix of the chains for packets of connections that are bound to an uplink.
pub(super) const BOUND: &str = "bound";
/// Prefix of the chains that send a packet out through an uplink.
pub(super) const VIA: &str = "via";
/// Prefix of the chains that send a packet out through the uplink on which it arrived.
pub(super) const UTURN: &str = "uturn";
/// Chain that clears a mark that was evidence only, before the kernel routes the packet again.
pub(super) const FORGET: &str = "forget";
/// Chain that clears the mark of packets that are about to leave.
pub(super) const LEAVE: &str = "leave";

/// Prefix of the chains that count new connections from outside on a NIC without address and
/// default route. The NIC's index follows.
pub(super) const SILENT: &str = "silent";

/// Builds the desired table of family inet.
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

/// Name of a chain of the uplink with this id.
pub(super) fn named(chain: &str, id: u32) -> String {
    format!("{chain}_{id}")
}

pub(super) fn goto(chain: &str, id: u32) -> Expression {
    Goto(named(chain, id))
}

/// Keeps all bits except the field's, and writes `mark` into the field.
pub(super) fn merge(field: Field, mark: u32) -> Expression {
    Bits { mask: !field.mask(), xor: mark }
}

/// Keeps only the field's bits.
pub(super) fn ours(field: Field) -> Expression {
    Bits { mask: field.mask(), xor: 0 }
}

pub(super) fn equals(number: u32) -> Expression {
    Equals(number_key(number))
}

/// Matches connections with this bit of `enum ip_conntrack_status`.
pub(super) fn has_status(bit: u32, then: Expression) -> [Expression; 4] {
    [ConntrackStatus, Bits { mask: bit, xor: 0 }, Differs(vec![0; 4]), then]
}

/// Matches ICMP or ICMPv6 errors about a connection.
pub(super) fn icmp_error(
    family: Family,
    then: impl IntoIterator<Item = Expression>,
) -> Vec<Expression> {
    [IcmpOf(family), Related].into_iter().chain(then).collect()
}

/// Matches packets whose address is in a set, or is not.
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

/// Writes `mark` into the field of the packet mark.
pub(super) fn set_packet(field: Field, mark: u32) -> [Expression; 3] {
    [PacketMark, merge(field, mark), SetPacketMark]
}

/// Writes `mark` into the field of the conntrack mark.
fn set_connection(field: Field, mark: u32) -> [Expression; 3] {
    [ConntrackMark, merge(field, mark), SetConntrackMark]
}

/// The chains of one uplink, each after the chains that it goes to.
fn uplink_chains(spec: &Spec<'_>, uplink: &Uplink) -> Vec<Chain> {
    let (field, id) = (spec.field, uplink.id);
    let (mark, turned) = (spec.bound_mark(id), spec.turned_mark(id));
    let set_packet = |mark| set_packet(field, mark);
    let mut chains = vec![
        // No counter: a packet that arrived on the uplink and leaves elsewhere does not count as
        // sent out.
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
        chain(named("turned", id), turned_of_uplink(spec, uplink)),
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

/// Rules that count packets of connections from outside that have had no reply.
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

/// Sends a first packet to the chain of the router that it came from, if that router has an id of
/// its own.
fn by_router(uplink: &Uplink) -> Vec<Rule> {
    let has_some = !uplink.is_router && !uplink.routers.is_empty();
    let rule = rule("came from a router of its own", [Iif, SourceMac, VerdictMap(names::ROUTERS)]);
    has_some.then_some(rule).into_iter().collect()
}

/// Rules for packets of a connection that is bound to this uplink. Almost all packets are, so the
/// usual ones come first and end here.
fn bound(spec: &Spec<'_>, uplink: &Uplink) -> Vec<Rule> {
    let mark = set_packet(spec.field, spec.bound_mark(uplink.id));
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
        // Strict rp_filter drops the packet if it is forged. A reply that turns round has another
        // mark.
        rule("a reply by the uplink of its own request", [&here[..], &[Accept]].concat()),
        rule("answered", [&answered[..], &[VerdictMap(names::ANSWERED)]].concat()),
        rule("a request by another uplink", [Iif, VerdictMap(names::ARRIVE)]),
        plain([goto(VIA, uplink.id)]),
    ]);
    rules
}

/// Rules for packets of a connection that turns round on this uplink.
fn turned_of_uplink(spec: &Spec<'_>, uplink: &Uplink) -> Vec<Rule> {
    let id = uplink.id;
    let mut rules = Vec::new();
    for family in families_with_default_route(spec).filter(|_| !spec.hairpin) {
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

/// Families with a default route in main. In these a source without a route is not let in, unless
/// `hairpin` lets any source in.
fn families_with_default_route(spec: &Spec<'_>) -> impl Iterator<Item = Family> {
    Family::ALL.into_iter().filter(|family| !spec.routeless.contains(family))
}

/// Accepts a packet unmarked if the node does not route its source to an interface that leads
/// outside.
fn from_inside() -> [Expression; 3] {
    [FibInterface(Side::Source), InSet { set: names::OUTSIDE, not: true }, Accept]
}

/// Rules for packets that arrive on this uplink, of an answered connection that is bound to another
/// one. They get this uplink's mark and do not move the connection, unless the address that the
/// client called has moved here.
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

/// Matches if the incoming interface has this address of the connection, or has not.
fn own_address(family: Family, address: Expression, not: bool) -> [Expression; 3] {
    [Iif, address, InSet { set: names::OWN.of(family), not }]
}

/// Rules that bind a request. The backend of a DNATed request may lie behind the uplink on which
/// the request arrived. Then the way back that `rp_filter` looks up has the same incoming interface
/// and mark as the way there. So the conntrack mark records that the connection turns round.
fn bind(spec: &Spec<'_>, uplink: &Uplink) -> Vec<Rule> {
    let id = uplink.id;
    let [status, bit, is_set, way] = has_status(IPS_DST_NAT, FibInterface(Side::Destination));
    let turns = [status, bit, is_set, way, equals(uplink.link)];
    let remember = |mark| {
        let [load, merge, store] = set_connection(spec.field, mark);
        // Before the counter: loading the mark ends the rule for a packet of no connection.
        [load, merge, Counter, store]
    };
    vec![
        rule(
            "to a backend behind this uplink",
            [&turns[..], &remember(spec.turned_mark(id)), &[goto(UTURN, id)]].concat(),
        ),
        plain(remember(spec.bound_mark(id))),
        plain([goto("from", id)]),
    ]
}

/// Rules for first packets that arrive on this uplink. After DNAT, the node's routes show whether
/// the destination lies inside.
fn arrive(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Family::ALL
        .into_iter()
        .flat_map(|family| {
            let [status, bit, is_set, of] = has_status(IPS_SRC_NAT, FamilyIs(family));
            let own = own_address(family, ConntrackAddress { family, reply: true }, false);
            let snat = [DirectionIs { reply: true }, status, bit, is_set, of];
            // Any host can be the source of an ICMP error, so the source is judged.
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
    for family in Family::ALL.into_iter().filter(|&f| Spec::has_family(spec.left_out, f)) {
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

/// Rules that bind a request, unless strict `rp_filter` has to drop its source.
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
    for family in Family::ALL.into_iter().filter(|&f| Spec::has_family(spec.hairpins, f)) {
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

/// Rules that ask table main alone where the source lies. A routing table of the destination's own
/// does not know what lies inside.
///
/// An ip rule sends a look-up whose whole mark is D to main. (Release 0.1.0 would report a rule
/// that compares part of the mark as a clash.) So the rules put a known mark of another program
/// aside meanwhile. A packet with any other mark is bound without this question.
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

/// The chains that put a known mark of another program aside, ask main, and restore the mark.
fn asks_with_marks(spec: &Spec<'_>, id: u32) -> impl Iterator<Item = Chain> {
    foreign_marks(spec).flat_map(move |mark| {
        let bind = of_mark("back", mark, id);
        let questions = question(spec, &Goto(bind.clone()), mark);
        let back = plain([Number(mark), SetPacketMark, goto(BIND, id)]);
        [chain(bind, vec![back]), chain(of_mark("ask", mark, id), questions)]
    })
}

/// Name of an uplink's chain for packets with a mark of another program.
fn of_mark(chain: &str, mark: u32, id: u32) -> String {
    format!("{chain}{mark:x}_{id}")
}

/// Marks that other programs put on requests before prerouting, alone and together.
fn foreign_marks(spec: &Spec<'_>) -> impl Iterator<Item = u32> {
    let [kube, aws] = names::MARKS_ON_REQUESTS;
    [kube, aws, kube | aws].into_iter().filter(|&mark| !spec.field.has(mark))
}

/// Matches packets with a mark of another program.
fn marked_by_others(spec: &Spec<'_>, then: Expression) -> Rule {
    let others = merge(spec.field, 0);
    rule("a mark of another program", [PacketMark, others, Differs(vec![0; 4]), then])
}

/// Sets the mark D, makes the look-ups, and restores the packet's mark `own`. `then` follows if the
/// source lies outside.
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

/// Rules for ICMP errors. An error binds nothing, because any host can send one through any uplink.
/// It gets the uplink's mark if its source lies outside.
fn error(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    if spec.hairpin {
        return vec![plain([goto("from", id)])];
    }
    let mut rules: Vec<Rule> = families_with_default_route(spec)
        .map(|family| plain([&[FamilyIs(family)][..], &from_inside()].concat()))
        .collect();
    rules.push(marked_by_others(spec, Accept));
    rules.extend(question(spec, &goto("from", id), 0));
    rules
}
