//! The base chains: where packets meet the ruleset, and where they leave it.

use super::build::{
    Spec, Steering, chain, equals, goto, has_status, icmp_error, ours, plain, rule, set_packet,
};
use super::model::{
    Chain,
    Expression::{self, *},
    Hook, Rule, Side,
};
use super::sets::{has_many, pods_set, steer_set};
use crate::facts::Family;
use crate::mark::Field;
use crate::names;
use crate::netlink::uapi::{
    IPS_SRC_NAT, NF_INET_FORWARD, NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING,
    NF_INET_PRE_ROUTING,
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

/// All of them, behind the chains that they go to.
pub(super) fn base_chains(spec: &Spec<'_>) -> Vec<Chain> {
    let field = spec.field;
    let hook = |name: &str, kind, number, priority, rules| Chain {
        name: name.into(),
        hook: Some(Hook { kind, number, priority }),
        rules,
    };
    let marked = [PacketMark, ours(field), Differs(vec![0; 4])];
    let forgetting = || {
        let from_uplink = [Iif, InSet { set: names::UPLINKS, not: false }, Goto("forget".into())];
        vec![plain([&marked[..], &from_uplink].concat())]
    };
    let leaving = vec![plain([&marked[..], &[Goto("leave".into())]].concat())];
    let mut chains = vec![
        chain("forget".into(), forget(field)),
        chain("leave".into(), leave(field)),
        hook("prerouting", "filter", NF_INET_PRE_ROUTING, PREROUTING, prerouting(spec)),
        hook("input", "filter", NF_INET_LOCAL_IN, FORGET, forgetting()),
    ];
    if spec.ipvs {
        chains.push(hook("forward", "filter", NF_INET_FORWARD, FORGET, forgetting()));
    }
    chains.extend([
        // A chain of type filter would not route again.
        hook("output", "route", NF_INET_LOCAL_OUT, MANGLE, output(spec)),
        hook("postrouting", "filter", NF_INET_POST_ROUTING, POSTROUTING, leaving),
    ]);
    chains
}

/// Bound connections first: most packets are of one, and go no further.
fn prerouting(spec: &Spec<'_>) -> Vec<Rule> {
    let field = spec.field;
    let connection = || [ConntrackMark, ours(field)];
    let bound = |then: &[Expression]| plain([&connection()[..], then].concat());
    let mut rules = if has_many(spec) {
        vec![bound(&[VerdictMap(names::BOUND)])]
    } else {
        let each = spec.uplinks.iter();
        each.map(|&(id, _)| bound(&[equals(field.of(id)), goto("bound", id)])).collect()
    };
    rules.push(plain([Iif, VerdictMap(names::ARRIVE)]));
    let sent = [ConntrackMark, Bits { mask: field.d(), xor: 0 }, Differs(vec![0; 4])];
    let sent = [&sent[..], &connection(), &[VerdictMap(names::SENT)]].concat();
    rules.push(rule("is sent out by an uplink", sent));
    rules.extend(steer(spec, &FibInterface(Side::Destination)));
    rules
}

fn output(spec: &Spec<'_>) -> Vec<Rule> {
    let directed = |reply, map| {
        plain([DirectionIs { reply }, ConntrackMark, ours(spec.field), VerdictMap(map)])
    };
    let mut rules = vec![directed(true, names::REPLIES), directed(false, names::SENT)];
    rules.extend(steer(spec, &Oif));
    rules
}

/// Takes the field off what came in by an uplink and needs it no more: before IPVS routes by it,
/// and before what is in a tunnel's outer packet inherits it.
fn forget(field: Field) -> Vec<Rule> {
    let clear = [&[Counter][..], &set_packet(field, 0)].concat();
    let unbound = [ConntrackMark, ours(field), InSet { set: names::PLAIN, not: true }];
    vec![
        rule("a request", [&[DirectionIs { reply: false }][..], &clear].concat()),
        rule("a reply that is not bound", [&unbound[..], &clear].concat()),
        // A tunnel's outer packets may be.
        rule("of no connection", [&[NoConnection][..], &clear].concat()),
    ]
}

/// Takes the field off what is about to leave. A mark on a packet that we did not mark is somebody
/// else's, one who writes whole marks.
fn leave(field: Field) -> Vec<Rule> {
    let clear = set_packet(field, 0);
    let connected = [ConntrackMark, ours(field), Differs(vec![0; 4])];
    let [status, snat, is_set, counter] = has_status(IPS_SRC_NAT, Counter);
    let answer = [DirectionIs { reply: true }, status, snat, is_set, counter];
    let error = |family| [&icmp_error(family, [Counter])[..], &clear].concat();
    // Kernels before 5.7 do not tell it here: the rule does not hold, and the next ones do.
    let elsewhere = [Iif, InSet { set: names::UPLINKS, not: true }, Accept];
    vec![
        plain([&connected[..], &clear, &[Accept]].concat()),
        rule("not marked here", elsewhere),
        rule("evidence, as it came in", [&answer[..], &clear].concat()),
        plain(error(Family::V4)),
        plain(error(Family::V6)),
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
