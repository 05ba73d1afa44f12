//! The sets and maps of the table: everything in it that differs from node to node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::build::Spec;
use super::model::{Set, Type};
use crate::facts::{ElementData, Family};
use crate::names;

/// The name of the pods' set of a family.
#[must_use]
pub fn pods_set(family: Family) -> &'static str {
    match family {
        Family::V4 => names::PODS4,
        Family::V6 => names::PODS6,
    }
}

/// The name of the set of a family's pods that accept hairpin.
#[must_use]
pub fn hairpin_set(family: Family) -> &'static str {
    match family {
        Family::V4 => names::HAIRPIN4,
        Family::V6 => names::HAIRPIN6,
    }
}

pub(super) fn steer_set(family: Family) -> &'static str {
    match family {
        Family::V4 => names::STEER4,
        Family::V6 => names::STEER6,
    }
}

/// The bytes of an address as a set holds them.
#[must_use]
pub fn address_key(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A number as a set of marks or interfaces holds it.
#[must_use]
pub fn number_key(number: u32) -> Vec<u8> {
    number.to_ne_bytes().to_vec()
}

fn set(
    name: &str,
    key: Type,
    data: Option<Type>,
    elements: impl IntoIterator<Item = (Vec<u8>, ElementData)>,
) -> Set {
    Set { name: name.into(), key, data, size: None, elements: elements.into_iter().collect() }
}

/// Up to this many uplinks a packet's connection mark is compared with each; behind that it is
/// looked up. A comparison takes about a fifth of the time of a look-up.
const FEW: usize = 4;

/// Whether there are so many uplinks that looking one up takes less time.
pub(super) fn has_many(spec: &Spec<'_>) -> bool {
    spec.uplinks.len() > FEW
}

/// All sets and maps with their elements.
pub(super) fn sets(spec: &Spec<'_>) -> Vec<Set> {
    let field = spec.field;
    let member = |key| (key, ElementData::None);
    let goto =
        |mark, chain: &str, id| (number_key(mark), ElementData::Goto(format!("{chain}_{id}")));
    let each = |f: &dyn Fn(u32, u32) -> (Vec<u8>, ElementData)| {
        spec.uplinks.iter().map(|&(id, link)| f(id, link)).collect::<Vec<_>>()
    };
    let plain = each(&|id, _| goto(field.of(id), "via", id));
    let sent = each(&|id, _| goto(field.of(id) | field.d(), "via", id));
    let addresses = |all: &BTreeSet<IpAddr>, family| {
        let of_family = all.iter().filter(|&&ip| Family::of(ip) == family);
        of_family.map(|&ip| member(address_key(ip))).collect::<Vec<_>>()
    };
    let steer = |slot: usize| {
        let links = spec.steering[slot].iter().flat_map(|s| &s.away_from);
        links.map(|&link| member(number_key(link)))
    };
    let (verdict, interface) = (Some(Type::Verdict), Type::Interface);
    let layout = [
        (names::LAYOUT_MASK, field.mask()),
        (names::LAYOUT_PRIORITY, spec.layout.0),
        (names::LAYOUT_TABLES, spec.layout.1),
    ]
    .map(|(key, value)| (number_key(key), ElementData::Value(number_key(value))));
    let restore = spec.restore.iter().map(|&link| member(number_key(link)));
    // What packets are looked up in. In one batch elements may come before others go.
    let sized = |set| Set { size: Some(2 * (field.max_id() + 1)), ..set };
    let mut sets = vec![
        set(names::IN_FORCE, Type::Mark, None, [member(number_key(spec.fingerprint))]),
        set(names::LAYOUT, Type::Mark, Some(Type::Mark), layout),
        set(names::RESTORE, interface, None, restore),
        set(
            names::IDS,
            interface,
            Some(Type::Mark),
            spec.uplinks
                .iter()
                .copied()
                .chain(spec.others.iter().map(|&link| (0, link)))
                .map(|(id, link)| (number_key(link), ElementData::Value(number_key(field.of(id))))),
        ),
        sized(set(names::UPLINKS, interface, None, each(&|_, link| member(number_key(link))))),
        set(
            names::OUTSIDE,
            interface,
            None,
            spec.outside.iter().map(|&link| member(number_key(link))),
        ),
        sized(set(names::ARRIVE, interface, verdict, each(&|id, link| goto(link, "in", id)))),
        sized(set(names::REPLIES, Type::Mark, verdict, plain)),
        sized(set(names::SENT, Type::Mark, verdict, sent)),
        sized(set(names::PLAIN, Type::Mark, None, each(&|id, _| member(number_key(field.of(id)))))),
        set(names::STEER4, interface, None, steer(0)),
        set(names::STEER6, interface, None, steer(1)),
        set(names::PODS4, Type::Ipv4, None, addresses(spec.pods, Family::V4)),
        set(names::PODS6, Type::Ipv6, None, addresses(spec.pods, Family::V6)),
        set(names::HAIRPIN4, Type::Ipv4, None, addresses(spec.hairpins, Family::V4)),
        set(names::HAIRPIN6, Type::Ipv6, None, addresses(spec.hairpins, Family::V6)),
    ];
    if has_many(spec) {
        let bound = each(&|id, _| goto(field.of(id), "bound", id));
        sets.push(sized(set(names::BOUND, Type::Mark, verdict, bound)));
    }
    sets
}
