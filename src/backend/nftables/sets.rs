//! The sets and maps of the table, which hold everything in it that differs from node to node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::chains::{BOUND, SILENT, VIA, named};
use super::rules::{Set, Type};
use crate::backend::spec::{Spec, Uplink};
use crate::model::{ElementData, Family, Mac, PerFamily};
use crate::names;

/// Encodes an address as a set key.
pub(crate) fn address_key(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Encodes a mark or an interface index as a set key.
pub(crate) fn number_key(number: u32) -> Vec<u8> {
    number.to_ne_bytes().to_vec()
}

/// Encodes an interface and a hardware address as a key of a map of routers. Each part fills whole
/// registers.
pub(crate) fn router_key(link: u32, mac: Mac) -> Vec<u8> {
    [&link.to_ne_bytes()[..], &mac, &[0; 2]].concat()
}

type Element = (Vec<u8>, ElementData);

pub(super) fn set(
    name: &str,
    key: Type,
    data: Option<Type>,
    elements: impl IntoIterator<Item = Element>,
) -> Set {
    Set { name: name.into(), key, data, size: None, elements: elements.into_iter().collect() }
}

fn member(key: Vec<u8>) -> Element {
    (key, ElementData::None)
}

pub(super) fn value(key: u32, value: u32) -> Element {
    (number_key(key), ElementData::Value(number_key(value)))
}

fn goto(key: u32, chain: &str, id: u32) -> Element {
    (number_key(key), ElementData::Goto(named(chain, id)))
}

/// Maximum number of uplinks with whose marks prerouting compares a connection's mark one by one.
/// With more, it looks the mark up. A comparison takes about a fifth of the time of a look-up.
const COMPARED_MOST: usize = 4;

/// Whether the node has so many uplinks that a look-up is faster than comparisons.
pub(super) fn has_many(spec: &Spec<'_>) -> bool {
    spec.uplinks.len() > COMPARED_MOST
}

/// Builds all sets and maps with their elements, except those of [`super::offload`].
pub(super) fn sets(spec: &Spec<'_>) -> Vec<Set> {
    let mut sets = records(spec).to_vec();
    sets.extend(looked_up(spec));
    let interface = Type::Interface;
    sets.push(set(
        names::OUTSIDE,
        interface,
        None,
        spec.outside.iter().map(|(link, _)| member(number_key(*link))),
    ));
    for family in Family::ALL {
        let links = spec.steering.get(&family).into_iter().flat_map(|s| &s.away_from);
        let links = links.map(|&link| member(number_key(link)));
        sets.push(set(names::STEER.of(family), interface, None, links));
        sets.push(own_addresses(spec.own, family));
    }
    for family in Family::ALL {
        let pods = [(names::HAIRPIN, spec.hairpins), (names::LEFT_OUT, spec.left_out)];
        for (name, pods) in pods.into_iter().filter(|(_, pods)| Spec::has_family(pods, family)) {
            sets.push(address_set(name.of(family), family, pods.iter().copied()));
        }
    }
    sets
}

/// Sets and maps in which symroute keeps its own record.
fn records(spec: &Spec<'_>) -> [Set; 4] {
    let (mark, interface) = (Type::Mark, Type::Interface);
    let layout = [
        (names::LAYOUT_MASK, spec.field.mask()),
        (names::LAYOUT_PRIORITY, spec.priority),
        (names::LAYOUT_TABLES, spec.table_base),
    ];
    let ids = spec.interfaces().map(|uplink| value(uplink.link, spec.bound_mark(uplink.id)));
    let restore = spec.restore.iter().map(|&link| member(number_key(link)));
    [
        set(names::IN_FORCE, mark, None, [member(number_key(spec.fingerprint))]),
        set(names::LAYOUT, mark, Some(mark), layout.map(|(key, number)| value(key, number))),
        set(names::RESTORE, interface, None, restore),
        set(names::IDS, interface, Some(mark), ids),
    ]
}

/// Sets used per packet. They get a fixed size: the kernel then picks a hash that does not resize.
/// Twice the maximum number of elements, so that old and new elements have room at the same time.
fn looked_up(spec: &Spec<'_>) -> Vec<Set> {
    let each = |element: &dyn Fn(&Uplink) -> Element| -> Vec<Element> {
        spec.uplinks.iter().map(element).collect()
    };
    let by_link = |chain: &'static str| -> Vec<Element> {
        spec.interfaces().map(|u| goto(u.link, chain, u.id)).collect()
    };
    let bound = |chain: &'static str| each(&|u| goto(spec.bound_mark(u.id), chain, u.id));
    let turned = each(&|u| goto(spec.turned_mark(u.id), "turned", u.id));
    let marks = spec.uplinks.iter().flat_map(|u| [spec.bound_mark(u.id), spec.turned_mark(u.id)]);
    let marks: Vec<_> = marks.map(|mark| member(number_key(mark))).collect();
    let silent = spec.silent.iter().map(|&(link, _)| goto(link, SILENT, link));
    let arriving = by_link("in").into_iter().chain(silent);
    let (verdict, mark, interface) = (Some(Type::Verdict), Type::Mark, Type::Interface);
    let mut sets = vec![
        set(names::UPLINKS, interface, None, spec.interfaces().map(|u| member(number_key(u.link)))),
        set(names::ARRIVE, interface, verdict, arriving),
        set(names::ANSWERED, interface, verdict, by_link("answered")),
        set(names::ERRORS, interface, verdict, by_link("error")),
        set(names::REPLIES, mark, verdict, bound(VIA)),
        set(names::TURNED, mark, verdict, turned),
        set(names::MARKS, mark, None, marks),
    ];
    if has_many(spec) {
        sets.push(set(names::BOUND, mark, verdict, bound(BOUND)));
    }
    for (name, chain) in [(names::ROUTERS, "in"), (names::REROUTED, "reroute")] {
        let mut elements = Vec::new();
        for uplink in spec.interfaces() {
            // The chain `in_N` of the uplink itself serves its usual router.
            let others = uplink.routers.iter().filter(|(_, id)| chain != "in" || *id != uplink.id);
            elements.extend(others.map(|&(mac, id)| {
                (router_key(uplink.link, mac), ElementData::Goto(named(chain, id)))
            }));
        }
        if !elements.is_empty() {
            sets.push(set(name, Type::InterfaceMac, verdict, elements));
        }
    }
    let room = |name: &str| if name == names::MARKS { 4 } else { 2 };
    // A changed size makes reconcile write the whole table again, so it must not depend on the
    // number of NICs.
    let others = |name: &str| if name == names::ARRIVE { names::SILENT_MOST } else { 0 };
    let size = |name: &str| room(name) * (spec.field.max_id() + 1 + others(name));
    let sized = |set: Set| Set { size: Some(size(&set.name)), ..set };
    sets.into_iter().map(sized).collect()
}

/// Builds the set of the uplinks' own addresses: interface and address.
pub(super) fn own_addresses(own: &BTreeSet<(u32, IpAddr)>, family: Family) -> Set {
    let key = PerFamily(Type::InterfaceIpv4, Type::InterfaceIpv6).of(family);
    let of_family = own.iter().filter(|(_, ip)| Family::of(*ip) == family);
    let elements =
        of_family.map(|&(link, ip)| member([number_key(link), address_key(ip)].concat()));
    set(names::OWN.of(family), key, None, elements)
}

/// Builds a set of those addresses that are of this family.
pub(super) fn address_set(
    name: &str,
    family: Family,
    addresses: impl Iterator<Item = IpAddr>,
) -> Set {
    let key = PerFamily(Type::Ipv4, Type::Ipv6).of(family);
    let of_family = addresses.filter(|&ip| Family::of(ip) == family);
    set(name, key, None, of_family.map(|ip| member(address_key(ip))))
}
