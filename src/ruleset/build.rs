//! The ruleset: how packets are marked. docs/design.md tells why each part is there.
//!
//! Rules never change while uplinks and pods come and go: what differs per node lies in sets and
//! maps, and each uplink has a handful of chains of its own, since only constants can be merged
//! into a mark on all kernels in use.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::model::{
    Chain,
    Expression::{self, *},
    Hook, Rule, Ruleset, Side,
};
use super::sets::{hairpin_set, number_key, pods_set, sets, steer_set};
use crate::facts::Family;
use crate::mark::Field;
use crate::names;
use crate::netlink::uapi::{
    IPS_DST_NAT, IPS_SRC_NAT, NF_INET_FORWARD, NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT,
    NF_INET_POST_ROUTING, NF_INET_PRE_ROUTING,
};

/// After every DNAT: `dstnat` is -100, and AWS VPC CNI 1.23 overwrites the whole mark at -90.
const PREROUTING: i32 = -80;
/// `mangle`, where packets of the node itself are routed again by their mark.
const MANGLE: i32 = -150;
/// Before IPVS (98 to 100), which routes again by the mark; and behind the mangle of iptables,
/// which binds there: when a node moves from that backend to this one, a request that came in
/// before the move must not lose its mark on the way.
const FORGET: i32 = -149;
/// Just before `srcnat` (100), where exact comparers of marks sit.
const POSTROUTING: i32 = 95;
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
    chains.push(forget(spec));
    chains.extend(base_chains(spec));
    Ruleset { sets: sets(spec), chains }
}

fn rule(comment: &'static str, expressions: impl Into<Vec<Expression>>) -> Rule {
    Rule { comment: Some(comment), expressions: expressions.into() }
}

fn plain(expressions: impl Into<Vec<Expression>>) -> Rule {
    Rule { comment: None, expressions: expressions.into() }
}

/// A rule without a comment that counts its packets.
fn counted(expressions: &[Expression]) -> Rule {
    plain([&[Counter][..], expressions].concat())
}

fn goto(chain: &str, id: u32) -> Expression {
    Goto(format!("{chain}_{id}"))
}

/// Keeps all bits but the field's, and puts `mark` there.
fn merge(field: Field, mark: u32) -> Expression {
    Bits { mask: !field.mask(), xor: mark }
}

/// Only the field's bits.
fn ours(field: Field) -> Expression {
    Bits { mask: field.mask(), xor: 0 }
}

fn equals(number: u32) -> Expression {
    Equals(number_key(number))
}

/// The connection has this bit of `enum ip_conntrack_status`.
fn has_status(bit: u32, then: Expression) -> [Expression; 4] {
    [ConntrackStatus, Bits { mask: bit, xor: 0 }, Differs(vec![0; 4]), then]
}

/// The destination is in a set of addresses.
fn destination_in(family: Family, set: &'static str, then: Expression) -> Rule {
    let load = LoadAddress(family, Side::Destination);
    plain([FamilyIs(family), load, InSet { set, not: false }, then])
}

fn chain(name: String, rules: Vec<Rule>) -> Chain {
    Chain { name, hook: None, rules }
}

/// The chains of one uplink, those that others go to first.
fn uplink_chains(spec: &Spec<'_>, id: u32, link: u32) -> Vec<Chain> {
    let field = spec.field;
    let (mark, sent) = (field.of(id), field.of(id) | field.d());
    let set_packet = |mark| [PacketMark, merge(field, mark), SetPacketMark];
    let set_conntrack = |mark| [ConntrackMark, merge(field, mark), SetConntrackMark];
    vec![
        // What came in by the uplink and does not leave by it is not counted as steered.
        chain(format!("from_{id}"), vec![plain(set_packet(mark))]),
        chain(format!("via_{id}"), vec![counted(&set_packet(mark))]),
        chain(format!("uturn_{id}"), vec![counted(&set_packet(sent))]),
        chain(format!("forwarded_{id}"), forwarded(id, link)),
        chain(format!("request_{id}"), request(id)),
        chain(
            format!("bind_{id}"),
            vec![counted(&set_conntrack(mark)), plain([goto("request", id)])],
        ),
        chain(format!("send_{id}"), vec![plain(set_conntrack(sent)), plain([goto("via", id)])]),
        chain(format!("reply_{id}"), reply(field, id)),
        chain(format!("offer_{id}"), offer(spec, id)),
        chain(format!("in_{id}"), arrive(spec, id)),
    ]
}

/// A packet in the reply direction came in by this uplink.
fn reply(field: Field, id: u32) -> Vec<Rule> {
    vec![
        rule(
            "leaves by the uplink it came in on",
            [ConntrackMark, ours(field), equals(field.of(id)), goto("uturn", id)],
        ),
        rule(
            "leaves by the request's uplink",
            [ConntrackMark, ours(field), VerdictMap(names::REPLIES)],
        ),
        rule(
            "evidence for rp_filter: SNATed here, so conntrack knows it",
            has_status(IPS_SRC_NAT, goto("from", id)),
        ),
    ]
}

/// A bound request. One that is not DNATed ends here.
fn request(id: u32) -> Vec<Rule> {
    vec![plain(has_status(IPS_DST_NAT, goto("forwarded", id))), plain([goto("from", id)])]
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

/// A packet in the original direction came in by this uplink.
fn arrive(spec: &Spec<'_>, id: u32) -> Vec<Rule> {
    let field = spec.field;
    let mut rules = vec![
        rule(
            "bound to this uplink",
            [
                DirectionIs { reply: false },
                ConntrackMark,
                ours(field),
                equals(field.of(id)),
                goto("request", id),
            ],
        ),
        plain([DirectionIs { reply: true }, goto("reply", id)]),
        rule(
            "an ICMP error binds nothing: anybody can send one",
            [IcmpError(Family::V4), goto("from", id)],
        ),
        plain([IcmpError(Family::V6), goto("from", id)]),
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

/// Takes the field off what was marked as evidence only, before IPVS routes by it.
fn forget(spec: &Spec<'_>) -> Chain {
    let field = spec.field;
    let clear = || [Counter, PacketMark, merge(field, 0), SetPacketMark];
    let original = [&[DirectionIs { reply: false }][..], &clear()[..]].concat();
    let unbound =
        [&[ConntrackMark, ours(field), InSet { set: names::PLAIN, not: true }][..], &clear()[..]]
            .concat();
    // A tunnel's outer packets may be of no connection, and what is in them inherits their mark.
    let alone = [&[NoConnection][..], &clear()[..]].concat();
    chain(
        "forget".into(),
        vec![
            rule("a request", original),
            rule("a reply that is not bound", unbound),
            rule("of no connection", alone),
        ],
    )
}

fn base_chains(spec: &Spec<'_>) -> Vec<Chain> {
    let field = spec.field;
    let hook = |name: &str, kind, number, priority, rules| Chain {
        name: name.into(),
        hook: Some(Hook { kind, number, priority }),
        rules,
    };
    let forgetting = || {
        let marked = [PacketMark, ours(field), Differs(vec![0; 4])];
        let from_uplink = [Iif, InSet { set: names::UPLINKS, not: false }, Goto("forget".into())];
        vec![plain([&marked[..], &from_uplink[..]].concat())]
    };
    let mut prerouting = vec![
        plain([Iif, VerdictMap(names::ARRIVE)]),
        plain([ConntrackMark, ours(field), VerdictMap(names::BOUND)]),
    ];
    prerouting.extend(steer(spec, &FibInterface(Side::Destination)));
    let directed =
        |reply, map| plain([DirectionIs { reply }, ConntrackMark, ours(field), VerdictMap(map)]);
    let mut output = vec![directed(true, names::REPLIES), directed(false, names::SENT)];
    output.extend(steer(spec, &Oif));
    let marked = [PacketMark, ours(field), Differs(vec![0; 4])];
    // A mark on a packet of no connection of ours is somebody else's, whole-mark writers' say.
    let connected = [ConntrackMark, ours(field), Differs(vec![0; 4])];
    let clear = [marked, connected, [PacketMark, merge(field, 0), SetPacketMark]].concat();
    vec![
        hook("prerouting", "filter", NF_INET_PRE_ROUTING, PREROUTING, prerouting),
        hook("input", "filter", NF_INET_LOCAL_IN, FORGET, forgetting()),
        hook("forward", "filter", NF_INET_FORWARD, FORGET, forgetting()),
        // A chain of type filter would not route again.
        hook("output", "route", NF_INET_LOCAL_OUT, MANGLE, output),
        hook("postrouting", "filter", NF_INET_POST_ROUTING, POSTROUTING, vec![plain(clear)]),
    ]
}

/// Masquerade steering: `way_out` loads the interface by which the packet would leave.
fn steer(spec: &Spec<'_>, way_out: &Expression) -> Vec<Rule> {
    let each = Family::ALL.into_iter().zip(&spec.steering);
    each.filter_map(|(family, steering)| {
        let Steering { mark: (value, mask), via, .. } = steering.as_ref()?;
        Some(rule(
            "a pod's packet that will be masqueraded: leave by the uplink of that address",
            [
                PacketMark,
                Bits { mask: *mask, xor: 0 },
                equals(*value),
                FamilyIs(family),
                LoadAddress(family, Side::Source),
                InSet { set: pods_set(family), not: false },
                way_out.clone(),
                InSet { set: steer_set(family), not: false },
                goto("send", *via),
            ],
        ))
    })
    .collect()
}
