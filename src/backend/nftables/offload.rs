//! The flowtable, and the rules that put bound connections into it. docs/design.md says why.
//!
//! A request that arrives on the connection's own uplink puts the connection into the flowtable.
//! Its requests keep the route of that packet. The kernel looks up the route of its replies with
//! the request's mark, and with the request's incoming interface as the outgoing one
//! (`nft_flow_route`, `net/netfilter/nft_flow_offload.c`). So replies leave through the uplink.

use super::chains::{chain, equals, has_status, named, ours, plain, rule, set_packet};
use super::rules::{Chain, Expression::*, Flowtable, Hook, Rule, Ruleset, Type};
use super::sets::{address_set, number_key, own_addresses, set, value};
use crate::backend::spec::{Spec, Uplink};
use crate::model::{ElementData, Family};
use crate::names;
use crate::netlink::uapi::*;

/// One request in this number puts its connection into the flowtable. Short connections would pay
/// for that and gain nothing, and conntrack knows less of their end.
const ONE_REQUEST_IN: u32 = 16;
/// After all filters: symroute does not offload what another program drops in forward.
const LAST_PRIORITY: i32 = i32::MAX;

/// Builds the table of a node with the iptables backend: the flowtable and its rules only. `None`
/// if nothing is offloaded.
pub(crate) fn alone(spec: &Spec<'_>) -> Option<Ruleset> {
    let sets = Family::ALL.map(|family| own_addresses(spec.own, family)).into();
    let mut ruleset = Ruleset { sets, ..Ruleset::default() };
    add(spec, &mut ruleset);
    ruleset.flowtable.is_some().then_some(ruleset)
}

/// Adds the flowtable and its rules, if the settings want one.
pub(super) fn add(spec: &Spec<'_>, ruleset: &mut Ruleset) {
    let Some(offload) = &spec.offload else { return };
    ruleset.flowtable = Some(flowtable(offload.devices.iter().cloned()));
    let uplinks: Vec<&Uplink> = spec.interfaces().filter(|u| u.routers.is_empty()).collect();
    for uplink in &uplinks {
        let rules = of_uplink(spec, uplink, offload.udp);
        ruleset.chains.push(chain(named(names::OFFLOAD, uplink.id), rules));
    }
    let by = |u: &&Uplink| (number_key(u.link), ElementData::Goto(named(names::OFFLOAD, u.id)));
    let by = set(names::OFFLOAD_BY, Type::Interface, Some(Type::Verdict), uplinks.iter().map(by));
    ruleset.sets.push(by);
    let mtus = spec.interfaces().map(|uplink| value(uplink.link, uplink.mtu));
    ruleset.sets.push(set(names::MTUS, Type::Interface, Some(Type::Mark), mtus));
    let owned = || spec.own.iter().map(|&(_, ip)| ip);
    let owned = |family| address_set(names::OWNED.of(family), family, owned());
    ruleset.sets.extend(Family::ALL.map(owned));
    ruleset.chains.push(base());
}

/// The flowtable with the devices of these names.
pub(crate) fn flowtable(devices: impl IntoIterator<Item = String>) -> Flowtable {
    let devices = devices.into_iter().collect();
    Flowtable { name: names::OFFLOAD, priority: LAST_PRIORITY, devices }
}

/// Whether a chain has a rule that puts connections into the flowtable.
pub(super) fn offloads(chain: &Chain) -> bool {
    let does = |rule: &Rule| rule.expressions.iter().any(|e| matches!(e, Offload(_)));
    chain.rules.iter().any(does)
}

/// The base chain: one in [`ONE_REQUEST_IN`] requests of assured connections.
fn base() -> Chain {
    let request = [DirectionIs { reply: false }];
    let chance = has_status(IPS_ASSURED, OneIn(ONE_REQUEST_IN));
    let kept_up = [&request[..], &chance, &[Iif, VerdictMap(names::OFFLOAD_BY)]];
    let hook = Hook { kind: "filter", number: NF_INET_FORWARD, priority: LAST_PRIORITY };
    Chain { name: names::OFFLOAD.into(), hook: Some(hook), rules: vec![plain(kept_up.concat())] }
}

/// Rules for a request that arrived on this uplink. Requests on another uplink than the
/// connection's are let in, but with them the kernel would send the replies there.
fn of_uplink(spec: &Spec<'_>, uplink: &Uplink, udp: bool) -> Vec<Rule> {
    let bound = spec.bound_mark(uplink.id);
    let without_way =
        Family::ALL.into_iter().filter(|family| !uplink.default_route_in.contains(family));
    let moved = |family| {
        let called = [FamilyIs(family), CalledAddress(family)];
        let by_another = [
            InSet { set: names::OWNED.of(family), not: false },
            Iif,
            ConntrackAddress { family, reply: false },
            InSet { set: names::OWN.of(family), not: true },
        ];
        rule("the address is another uplink's", [&called[..], &by_another, &[Accept]].concat())
    };
    // With IPVS or the iptables backend, an earlier rule has cleared the mark. The kernel looks up
    // the route of replies with it.
    let into = |protocol| {
        let mark = set_packet(spec.field, bound);
        plain([&[ProtocolIs(protocol)][..], &mark, &[Offload(names::OFFLOAD)]].concat())
    };
    let other = [ConntrackMark, ours(spec.field), Differs(number_key(bound)), Accept];
    let mut rules = vec![
        plain(other),
        rule("leaves by the uplink it came in by", [Oif, equals(uplink.link), Accept]),
    ];
    // Without a route in the uplink's table, the kernel would take the client for a neighbour on
    // the link.
    rules.extend(
        without_way
            .map(|family| rule("the table has no default route", [FamilyIs(family), Accept])),
    );
    rules.extend(Family::ALL.map(moved));
    rules.push(into(IPPROTO_TCP));
    rules.extend(udp.then(|| into(IPPROTO_UDP)));
    rules
}
