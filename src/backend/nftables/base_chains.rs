//! The base chains: packets enter the ruleset here, and lose their mark before they leave it.

use super::chains::{
    BOUND, FORGET, InSetOf, LEAVE, VIA, address_in, chain, equals, goto, has_status, icmp_error,
    ours, plain, rule, set_packet,
};
use super::rules::{
    Chain,
    Expression::{self, *},
    Hook, Rule, Side,
};
use super::sets::has_many;
use crate::backend::spec::Spec;
use crate::model::{Family, Field, MarkMatch};
use crate::names;
use crate::netlink::uapi::*;

/// Priority of prerouting: after every DNAT. `dstnat` is -100, and AWS VPC CNI 1.23 overwrites the
/// whole mark at -90.
pub(crate) const PREROUTING: i32 = -80;
/// Priority of output: that of `mangle`, at which the kernel routes the node's own packets again by
/// their mark.
pub(crate) const OUTPUT: i32 = -150;
/// Priority of input and forward. It is before IPVS (98 to 100), which routes again by the mark,
/// and just after the mangle of iptables, which binds there. A request may arrive before the node
/// moves from iptables to nftables. It must keep its mark until iptables has bound it.
const INPUT_AND_FORWARD: i32 = -149;
/// Name of the base chain of prerouting.
pub(super) const FIRST_CHAIN: &str = "prerouting";
/// Priority of postrouting: just before `srcnat` (100), where other programs compare whole marks.
pub(crate) const POSTROUTING: i32 = 95;

/// All base chains, each after the chains that it goes to.
pub(super) fn base_chains(spec: &Spec<'_>) -> Vec<Chain> {
    let field = spec.field;
    let hook = |name: &str, kind, number, priority, rules| Chain {
        name: name.into(),
        hook: Some(Hook { kind, number, priority }),
        rules,
    };
    let marked = [PacketMark, ours(field), Differs(vec![0; 4])];
    let forgetting = || {
        let from_uplink = [Iif, InSet { set: names::UPLINKS, not: false }, Goto(FORGET.into())];
        vec![plain([&marked[..], &from_uplink].concat())]
    };
    let leaving = vec![plain([&marked[..], &[Goto(LEAVE.into())]].concat())];
    let mut chains = vec![
        chain(FORGET.into(), forget(field)),
        chain(LEAVE.into(), leave(spec)),
        chain("turned".into(), find_turned(spec)),
        hook(FIRST_CHAIN, "filter", NF_INET_PRE_ROUTING, PREROUTING, prerouting(spec)),
        hook("input", "filter", NF_INET_LOCAL_IN, INPUT_AND_FORWARD, forgetting()),
    ];
    if spec.ipvs {
        chains.push(hook("forward", "filter", NF_INET_FORWARD, INPUT_AND_FORWARD, forgetting()));
    }
    chains.extend([
        // In a chain of type filter the kernel would not route again.
        hook("output", "route", NF_INET_LOCAL_OUT, OUTPUT, output(spec)),
        hook("postrouting", "filter", NF_INET_POST_ROUTING, POSTROUTING, leaving),
    ]);
    chains
}

/// Rules of prerouting. Bound connections come first, because most packets belong to one.
fn prerouting(spec: &Spec<'_>) -> Vec<Rule> {
    let field = spec.field;
    let connection = [ConntrackMark, ours(field)];
    let bound = |then: &[Expression]| plain([&connection[..], then].concat());
    let mut rules = if has_many(spec) {
        vec![bound(&[VerdictMap(names::BOUND)])]
    } else {
        let each = spec.uplinks.iter();
        each.map(|u| bound(&[equals(spec.bound_mark(u.id)), goto(BOUND, u.id)])).collect()
    };
    let has_d = [ConntrackMark, Bits { mask: field.d(), xor: 0 }, Differs(vec![0; 4])];
    rules.push(plain([&has_d[..], &[Goto("turned".into())]].concat()));
    rules.push(plain([Iif, VerdictMap(names::ARRIVE)]));
    // A pod's packet arrives on an interface that does not lead outside.
    let inside = [Iif, InSet { set: names::OUTSIDE, not: true }];
    rules.extend(steer(spec, &inside, &FibInterface(Side::Destination)));
    rules
}

/// Rules for connections that turn round on an uplink, and for those that masquerade steering sends
/// out.
fn find_turned(spec: &Spec<'_>) -> Vec<Rule> {
    let mut rules = vec![
        plain([ConntrackMark, ours(spec.field), VerdictMap(names::TURNED)]),
        plain([Iif, VerdictMap(names::ARRIVE)]),
    ];
    rules.extend(send_masqueraded(spec, &[]));
    rules
}

/// Rules that send a packet of a masquerade-steered connection out through the uplink of its
/// family.
fn send_masqueraded(spec: &Spec<'_>, first: &[Expression]) -> Vec<Rule> {
    let is_sent = [ConntrackMark, ours(spec.field), equals(spec.field.d())];
    let each = spec.steering.iter().map(|(&family, steering)| {
        let via = goto(VIA, steering.via);
        let test = [first, &is_sent, &[FamilyIs(family), via]].concat();
        rule("masqueraded: leaves by the uplink of that address", test)
    });
    each.collect()
}

fn output(spec: &Spec<'_>) -> Vec<Rule> {
    let connection = [ConntrackMark, ours(spec.field), VerdictMap(names::REPLIES)];
    let mut rules = vec![plain([&[DirectionIs { reply: true }][..], &connection].concat())];
    if let Some(mark) = spec.unbound {
        // Rules by address are for connections that the pod opens.
        let by_others = [&unbound_reply(spec.field, 0)[..], &set_packet(spec.field, mark)];
        rules.push(rule("a reply that is not bound goes by the others' rules", by_others.concat()));
    }
    rules.extend(send_masqueraded(spec, &[DirectionIs { reply: false }]));
    // IPVS sends pods' packets through output, and clients' requests, which are bound already.
    let is_uplink = Bits { mask: spec.field.mask() & !spec.field.d(), xor: 0 };
    let of_pod =
        [FibType { side: Side::Source, is_local: false }, ConntrackMark, is_uplink, equals(0)];
    rules.extend(steer(spec, &of_pod, &Oif));
    rules
}

/// Rules that clear the field of packets that arrived on an uplink and no longer need it. IPVS must
/// not route by it, and the inner packet of a tunnel must not inherit it.
fn forget(field: Field) -> Vec<Rule> {
    let clear = [&[Counter][..], &set_packet(field, 0)].concat();
    let unbound = [ConntrackMark, ours(field), InSet { set: names::MARKS, not: true }];
    vec![
        rule("a request", [&[DirectionIs { reply: false }][..], &clear].concat()),
        rule("a reply that is not bound", [&unbound[..], &clear].concat()),
        // Conntrack may not track a tunnel's outer packets.
        rule("of no connection", [&[NoConnection][..], &clear].concat()),
    ]
}

/// Matches a reply of a connection that is bound to no uplink, if the packet's field is `mark`. A
/// mark of another program stays.
fn unbound_reply(field: Field, mark: u32) -> [Expression; 7] {
    let (unbound, marked) = (equals(0), equals(mark));
    let direction = DirectionIs { reply: true };
    [direction, ConntrackMark, ours(field), unbound, PacketMark, ours(field), marked]
}

/// Rules that clear the field of packets that are about to leave. A mark that symroute did not set
/// is of a program that writes whole marks, and stays.
fn leave(spec: &Spec<'_>) -> Vec<Rule> {
    let field = spec.field;
    let clear = set_packet(field, 0);
    let connected = [ConntrackMark, ours(field), Differs(vec![0; 4])];
    let [status, snat, is_set, counter] = has_status(IPS_SRC_NAT, Counter);
    let answer = [DirectionIs { reply: true }, status, snat, is_set, counter];
    let error = |family| [&icmp_error(family, [Counter])[..], &clear].concat();
    // Kernels before 5.7 do not load the incoming interface in postrouting. The rule then ends, and
    // the next ones apply.
    let elsewhere = [Iif, InSet { set: names::UPLINKS, not: true }, Accept];
    let mut rules = vec![plain([&connected[..], &clear, &[Accept]].concat())];
    if let Some(mark) = spec.unbound {
        let unbound = [&unbound_reply(field, mark)[..], &clear, &[Accept]].concat();
        rules.push(rule("an unbound reply of a pod", unbound));
    }
    rules.extend([
        rule("not marked here", elsewhere),
        rule("evidence, as it came in", [&answer[..], &clear].concat()),
        plain(error(Family::V4)),
        plain(error(Family::V6)),
    ]);
    rules
}

/// Masquerade steering: a pod's packet that another program will masquerade leaves through the
/// uplink of the masquerade address. `of_pod` matches pods' packets. `out` loads the interface
/// through which the packet would leave otherwise.
fn steer(spec: &Spec<'_>, of_pod: &[Expression], out: &Expression) -> Vec<Rule> {
    let each = spec.steering.iter().map(|(&family, steering)| {
        let MarkMatch { value, mask } = steering.mark;
        let marked = [PacketMark, Bits { mask, xor: 0 }, equals(value)];
        let mut test = [&marked[..], of_pod, &[FamilyIs(family)]].concat();
        if Spec::has_family(spec.left_out, family) {
            let set = InSetOf(names::LEFT_OUT.of(family), true);
            test.extend(address_in(family, Side::Source, set, &[]).expressions);
        }
        test.extend([
            out.clone(),
            InSet { set: names::STEER.of(family), not: false },
            goto("send", steering.via),
        ]);
        rule("a pod's packet that will be masqueraded", test)
    });
    each.collect()
}
