//! The ruleset: how packets are marked. docs/design.md tells why each part is there.
//!
//! No rule changes while pods come and go: what differs per node lies in sets and maps, and each
//! uplink has a handful of chains of its own, since only constants can be merged into a mark on all
//! kernels in use. What comes and goes with uplinks is the beginning of prerouting.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::hooks::base_chains;
use super::model::{
    Chain,
    Expression::{self, *},
    Rule, Ruleset, Side,
};
use super::sets::{hairpin_set, number_key, sets};
use crate::facts::Family;
use crate::mark::Field;
use crate::names;
use crate::netlink::uapi::{IPS_DST_NAT, IPS_SRC_NAT};

/// `fe80::/10`
const LINK_LOCAL: ([u8; 16], [u8; 16]) = {
    let (mut mask, mut value) = ([0; 16], [0; 16]);
    (mask[0], mask[1]) = (0xff, 0xc0);
    (value[0], value[1]) = (0xfe, 0x80);
    (mask, value)
};

/// Masquerade steering of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steering {
    /// Value and mask of the packet mark that says "will be masqueraded".
    pub mark: (u32, u32),
    /// Id of the uplink that owns the address used then.
    pub via: u32,
    /// Indexes of the uplinks that such packets must not leave by.
    pub away_from: BTreeSet<u32>,
}

/// What the ruleset is built from.
#[derive(Debug, Clone)]
pub struct Spec<'a> {
    /// Our bits of the mark.
    pub field: Field,
    /// (id, interface index) of each uplink.
    pub uplinks: &'a [(u32, u32)],
    /// Indexes of interfaces with a default route that are no uplinks by the settings.
    pub others: &'a BTreeSet<u32>,
    /// Indexes of all interfaces that lead outside.
    pub outside: &'a BTreeSet<u32>,
    /// Serve the node's own sockets and remote backends.
    pub host: bool,
    /// Accept a local pod's address as a source on an uplink.
    pub hairpin: bool,
    /// The node has IPVS, which routes forwarded packets again by their mark.
    pub ipvs: bool,
    /// Masquerade steering of IPv4 and IPv6.
    pub steering: [Option<Steering>; 2],
    /// Families in which main has no default route, so that a source without a route may come
    /// from outside.
    pub routeless: &'a [Family],
    /// Addresses of the enrolled pods.
    pub pods: &'a BTreeSet<IpAddr>,
    /// Of those, the ones that accept a local pod's address as a source.
    pub hairpins: &'a BTreeSet<IpAddr>,
    /// See [`names::IN_FORCE`].
    pub fingerprint: u32,
    /// See [`names::LAYOUT`]: priority and tables.
    pub layout: (u32, u32),
    /// See [`names::RESTORE`].
    pub restore: &'a BTreeSet<u32>,
}

/// The desired table.
#[must_use]
pub fn build(spec: &Spec<'_>) -> Ruleset {
    let mut chains = Vec::new();
    for &(id, link) in spec.uplinks {
        chains.extend(uplink_chains(spec, id, link));
    }
    chains.extend(base_chains(spec));
    Ruleset { sets: sets(spec), chains }
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

pub(super) fn goto(chain: &str, id: u32) -> Expression {
    Goto(format!("{chain}_{id}"))
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

/// The destination is in a set of addresses.
fn destination_in(family: Family, set: &'static str, then: Expression) -> Rule {
    let load = LoadAddress(family, Side::Destination);
    plain([FamilyIs(family), load, InSet { set, not: false }, then])
}

pub(super) fn chain(name: String, rules: Vec<Rule>) -> Chain {
    Chain { name, hook: None, rules }
}

/// Puts `mark` into the field of the packet mark.
pub(super) fn set_packet(field: Field, mark: u32) -> [Expression; 3] {
    [PacketMark, merge(field, mark), SetPacketMark]
}

/// The chains of one uplink, those that others go to first.
fn uplink_chains(spec: &Spec<'_>, id: u32, link: u32) -> Vec<Chain> {
    let field = spec.field;
    let (mark, sent) = (field.of(id), field.of(id) | field.d());
    let set_packet = |mark| set_packet(field, mark);
    let remember = [ConntrackMark, merge(field, sent), SetConntrackMark];
    vec![
        // What came in by the uplink and does not leave by it is not counted as steered.
        chain(format!("from_{id}"), vec![plain(set_packet(mark))]),
        chain(format!("via_{id}"), vec![counted(&set_packet(mark))]),
        chain(format!("uturn_{id}"), vec![counted(&set_packet(sent))]),
        chain(format!("forwarded_{id}"), forwarded(id, link)),
        chain(format!("bind_{id}"), bind(field, id)),
        chain(format!("send_{id}"), vec![plain(remember), plain([goto("via", id)])]),
        chain(format!("offer_{id}"), offer(spec, id)),
        chain(format!("in_{id}"), arrive(spec, id)),
        chain(format!("bound_{id}"), bound(field, id, link)),
    ]
}

/// A packet of a connection that is bound to this uplink: what almost all packets are, so the
/// usual ones come first and go nowhere else.
fn bound(field: Field, id: u32, link: u32) -> Vec<Rule> {
    let mark = set_packet(field, field.of(id));
    let elsewhere = [DirectionIs { reply: true }, Iif, Differs(number_key(link)), Counter];
    let here = [DirectionIs { reply: false }, Iif, equals(link)];
    let as_sent = [ConntrackStatus, Bits { mask: IPS_DST_NAT, xor: 0 }, equals(0)];
    vec![
        rule("a reply", [&elsewhere[..], &mark, &[Accept]].concat()),
        rule("a request", [&here[..], &as_sent, &mark, &[Accept]].concat()),
        rule("a request that was DNATed", [&here[..], &[goto("forwarded", id)]].concat()),
        rule("a reply that came in by the uplink itself", [Iif, equals(link), goto("uturn", id)]),
        rule("a request by another uplink", [Iif, VerdictMap(names::ARRIVE)]),
        plain([goto("via", id)]),
    ]
}

/// A request that is bound now; what follows is as for one that is bound already.
fn bind(field: Field, id: u32) -> Vec<Rule> {
    vec![
        // What is of no connection is not counted: it ends at the first step.
        plain([ConntrackMark, merge(field, field.of(id)), Counter, SetConntrackMark]),
        plain(has_status(IPS_DST_NAT, goto("forwarded", id))),
        plain([goto("from", id)]),
    ]
}

/// A bound request whose destination was rewritten. Where the backend lies behind the very uplink
/// that the request came in by, the way back that `rp_filter` looks up has the same incoming
/// interface and mark as the way there, so the mark has to say which way it turns.
fn forwarded(id: u32, link: u32) -> Vec<Rule> {
    vec![
        destination_in(Family::V4, names::PODS4, goto("from", id)),
        destination_in(Family::V6, names::PODS6, goto("from", id)),
        rule(
            "to a backend behind this uplink",
            [FibInterface(Side::Destination), equals(link), goto("uturn", id)],
        ),
        plain([goto("from", id)]),
    ]
}

/// A packet came in by this uplink, and is not bound to it.
fn arrive(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    let reply = || [DirectionIs { reply: true }];
    let mut rules = vec![
        rule(
            "evidence for rp_filter: SNATed here, so conntrack knows it",
            [&reply()[..], &has_status(IPS_SRC_NAT, goto("from", id))].concat(),
        ),
        plain([&reply()[..], &[Accept]].concat()),
        rule(
            "an ICMP error binds nothing: anybody can send one",
            icmp_error(Family::V4, [goto("from", id)]),
        ),
        plain(icmp_error(Family::V6, [goto("from", id)])),
        destination_in(Family::V4, names::PODS4, goto("offer", id)),
        destination_in(Family::V6, names::PODS6, goto("offer", id)),
    ];
    if spec.host {
        rules.push(rule("NodePort, backend anywhere", has_status(IPS_DST_NAT, goto("offer", id))));
        rules.push(rule("the node itself", [FibLocal(Side::Destination), goto("offer", id)]));
    }
    rules
}

/// Binds, unless the source is one that strict `rp_filter` has to drop.
fn offer(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    let (mask, value) = LINK_LOCAL;
    let link_local = [
        FamilyIs(Family::V6),
        LoadAddress(Family::V6, Side::Source),
        Bits16(mask),
        Equals(value.to_vec()),
        Return,
    ];
    let mut rules = vec![plain(link_local)];
    if spec.hairpin {
        rules.push(plain([goto("bind", id)]));
    } else {
        rules.push(rule(
            "source lies outside",
            [
                FibInterface(Side::Source),
                InSet { set: names::OUTSIDE, not: false },
                goto("bind", id),
            ],
        ));
        rules.extend(
            Family::ALL.map(|family| destination_in(family, hairpin_set(family), goto("bind", id))),
        );
        rules.extend(spec.routeless.iter().map(|&family| {
            let missing = [FamilyIs(family), FibMissing(Side::Source), goto("bind", id)];
            rule("main has no default route", missing)
        }));
    }
    rules
}
