//! The flowtable, and the rules that put bound connections into it. docs/design.md says why.
//!
//! A connection comes there by a request that came in by the connection's own uplink. The way of that request is
//! the one that it has. The way of the replies is looked up by the kernel with the request's mark and incoming
//! interface (`nft_flow_route`, `net/netfilter/nft_flow_offload.c`), so it is the uplink.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::chains::{chain, equals, has_status, named, ours, plain, rule, set_packet};
use super::rules::{Chain, Expression::*, Flowtable, Hook, Rule, Ruleset, Set, Type};
use super::sets::{address_key, member, number_key, own_addresses, set, value};
use crate::backend::spec::{Spec, Uplink};
use crate::model::{ElementData, Family, PerFamily};
use crate::names;
use crate::netlink::uapi::*;

/// So few short connections come into the flowtable: each pays for that, and conntrack knows less of its end.
const SOME: u32 = 16;
/// Behind all filters: what another program drops in forward is not offloaded.
const LAST: i32 = i32::MAX;

/// The table of a node that iptables marks: the flowtable alone. None where nothing is offloaded.
pub(crate) fn alone(spec: &Spec<'_>) -> Option<Ruleset> {
    let sets = Family::ALL.map(|family| own_addresses(spec.own, family)).into();
    let mut ruleset = Ruleset { sets, ..Ruleset::default() };
    add(spec, &mut ruleset);
    ruleset.flowtable.is_some().then_some(ruleset)
}

/// Adds the flowtable and its rules, where the settings want one.
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
    ruleset.sets.extend(Family::ALL.map(|family| owned(spec.own, family)));
    ruleset.chains.push(base());
}

/// The flowtable with the devices of these names.
pub(crate) fn flowtable(devices: impl IntoIterator<Item = String>) -> Flowtable {
    let devices = devices.into_iter().collect();
    Flowtable { name: names::OFFLOAD, priority: LAST, devices }
}

/// What belongs to a rule that puts connections into the flowtable.
pub(super) fn offloads(chain: &Chain) -> bool {
    let does = |rule: &Rule| rule.expressions.iter().any(|e| matches!(e, Offload(_)));
    chain.rules.iter().any(does)
}

/// Requests of connections that both sides have kept up, one in some: a connection of a few packets would pay
/// for its way into the flowtable and gain nothing.
fn base() -> Chain {
    let request = [DirectionIs { reply: false }];
    let chance = has_status(IPS_ASSURED, OneIn(SOME));
    let kept_up = [&request[..], &chance, &[Iif, VerdictMap(names::OFFLOAD_BY)]];
    let hook = Hook { kind: "filter", number: NF_INET_FORWARD, priority: LAST };
    Chain { name: names::OFFLOAD.into(), hook: Some(hook), rules: vec![plain(kept_up.concat())] }
}

/// A request that came in by this uplink. Requests by another uplink than the connection's are let in, but the
/// kernel would have the replies follow them.
fn of_uplink(spec: &Spec<'_>, uplink: &Uplink, udp: bool) -> Vec<Rule> {
    let bound = spec.bound(uplink.id);
    let without_way = Family::ALL.into_iter().filter(|family| !uplink.ways.contains(family));
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
    // IPVS and iptables need the mark off by now. The kernel looks the way of the replies up by it.
    let into = |protocol| {
        let mark = set_packet(spec.field, bound);
        plain([&[ProtocolIs(protocol)][..], &mark, &[Offload(names::OFFLOAD)]].concat())
    };
    let other = [ConntrackMark, ours(spec.field), Differs(number_key(bound)), Accept];
    let mut rules = vec![
        plain(other),
        rule("leaves by the uplink it came in by", [Oif, equals(uplink.link), Accept]),
    ];
    // Without a route in the table, the kernel would take the client for a neighbour on the link.
    rules.extend(
        without_way
            .map(|family| rule("the table has no default route", [FamilyIs(family), Accept])),
    );
    rules.extend(Family::ALL.map(moved));
    rules.push(into(IPPROTO_TCP));
    rules.extend(udp.then(|| into(IPPROTO_UDP)));
    rules
}

/// The set of the uplinks' own addresses, without the interface.
fn owned(own: &BTreeSet<(u32, IpAddr)>, family: Family) -> Set {
    let key = PerFamily(Type::Ipv4, Type::Ipv6).of(family);
    let of_family = own.iter().filter(|(_, ip)| Family::of(*ip) == family);
    let elements = of_family.map(|&(_, ip)| member(address_key(ip)));
    set(names::OWNED.of(family), key, None, elements)
}
