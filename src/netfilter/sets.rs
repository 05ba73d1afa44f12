//! Loads fields of a packet as nftables does, and looks them up in sets and maps.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::walk::Local;
use super::{
    Chain, Condition, ESTABLISHED, Field, Hook, Interface, Loaded, Match, NEW, Packet, Part,
    Ruleset, Set, Table, Target, UNTRACKED,
};
use crate::model::Family;
use crate::netlink::uapi::{NFPROTO_IPV4, NFPROTO_IPV6, RTN_LOCAL, RTN_UNICAST};

/// Bytes of an interface's name in a register (`IFNAMSIZ`).
const NAME: usize = 16;

/// The concatenated fields of a packet. Several fields are each padded to four bytes. `None` if the packet
/// lacks one.
pub(super) fn bytes(fields: &[Loaded], packet: &Packet, local: &dyn Local) -> Option<Vec<u8>> {
    if let [only] = fields {
        return masked_bytes(only, packet, local);
    }
    let mut all = Vec::new();
    for field in fields {
        all.extend(masked_bytes(field, packet, local)?);
        all.resize(all.len().next_multiple_of(4), 0);
    }
    Some(all)
}

fn masked_bytes(loaded: &Loaded, packet: &Packet, local: &dyn Local) -> Option<Vec<u8>> {
    let mut bytes = raw(loaded.field, packet, local)?;
    if !loaded.mask.is_empty() {
        let length = loaded.mask.len().min(bytes.len());
        // For a prefix that ends at a byte boundary, nftables loads only the bytes of the prefix.
        bytes.truncate(length);
        for (at, byte) in bytes.iter_mut().enumerate() {
            let xor = loaded.xor.get(at).copied().unwrap_or(0);
            *byte = *byte & loaded.mask[at] ^ xor;
        }
    }
    Some(bytes)
}

fn raw(field: Field, packet: &Packet, local: &dyn Local) -> Option<Vec<u8>> {
    let index = |link: &Option<Interface>| {
        Some(link.as_ref().map_or(0, |Interface(index, _)| *index).to_ne_bytes().to_vec())
    };
    let name = |link: &Option<Interface>| {
        let Interface(_, name) = link.as_ref()?;
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(NAME, 0);
        Some(bytes)
    };
    let kind = |ip: IpAddr| {
        let kind = if local.has(ip, None) { RTN_LOCAL } else { RTN_UNICAST };
        Some(u32::from(kind).to_ne_bytes().to_vec())
    };
    let address = |ip: IpAddr, family: Family| match ip {
        _ if Family::of(ip) != family => None,
        IpAddr::V4(ip) => Some(ip.octets().to_vec()),
        IpAddr::V6(ip) => Some(ip.octets().to_vec()),
    };
    match field {
        Field::Mark => Some(packet.mark.to_ne_bytes().to_vec()),
        // For an untracked packet the load ends the rule.
        Field::Connection | Field::Direction if packet.untracked_by.is_some() => None,
        Field::Connection => Some(packet.connection.to_ne_bytes().to_vec()),
        Field::State => {
            let state = match packet {
                Packet { untracked_by: Some(_), .. } => UNTRACKED,
                Packet { is_reply: true, .. } => ESTABLISHED,
                _ => NEW,
            };
            Some(state.to_ne_bytes().to_vec())
        }
        Field::Direction => Some(vec![u8::from(packet.is_reply)]),
        Field::In => index(&packet.iif),
        Field::Out => index(&packet.oif),
        Field::InName => name(&packet.iif),
        Field::OutName => name(&packet.oif),
        Field::Family => Some(vec![if packet.to.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]),
        Field::Protocol => Some(vec![packet.protocol?]),
        Field::From(family) => address(packet.from, family),
        Field::To(family) => address(packet.to, family),
        Field::Port => Some(packet.port?.to_be_bytes().to_vec()),
        Field::FromKind => kind(packet.from),
        Field::ToKind => kind(packet.to),
    }
}

/// Offset of the port in a key of these fields.
fn place_of_port(fields: &[Loaded]) -> Option<usize> {
    let at = fields.iter().position(|loaded| loaded.field == Field::Port)?;
    let length = |loaded: &Loaded| match loaded.field {
        Field::InName | Field::OutName => NAME,
        Field::From(Family::V6) | Field::To(Family::V6) => 16,
        // Shorter fields are padded to four bytes.
        _ => 4,
    };
    Some(fields[..at].iter().map(length).sum())
}

impl Ruleset {
    /// Ports that rules or sets name, with the first port of each range, in tables with a prerouting chain.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        let is_met = |chain: &Chain| chain.base.is_some_and(|base| base.hook == Hook::Prerouting);
        ports_of(self.tables.iter().filter(|table| table.chains.values().any(is_met)))
    }

    /// Ports that rules or sets name, with the first port of each range, in tables with a `notrack` rule.
    pub(crate) fn untracked_ports(&self) -> BTreeSet<u16> {
        let untracks = |chain: &Chain| {
            chain.rules.iter().any(|rule| rule.0.contains(&Part::Do(Target::Untrack)))
        };
        ports_of(self.tables.iter().filter(|table| table.chains.values().any(untracks)))
    }
}

fn ports_of<'a>(tables: impl Iterator<Item = &'a Table>) -> BTreeSet<u16> {
    let chains = tables.flat_map(|table| table.chains.values());
    let parts = chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.0);
    let mut found = BTreeSet::new();
    for part in parts {
        let (fields, keys) = match part {
            Part::If(Condition { is: Match::Port(first, _), .. }) => {
                found.insert(*first);
                continue;
            }
            Part::If(Condition { is: Match::Ports(ranges), .. }) => {
                found.extend(ranges.iter().map(|(first, _)| *first));
                continue;
            }
            Part::If(Condition { is: Match::Bytes(fields, wanted), .. }) => {
                (fields, vec![wanted.as_slice()])
            }
            Part::If(Condition { is: Match::Among(fields, set), .. })
            | Part::Do(Target::Map(fields, set)) => {
                (fields, set.elements.iter().map(|(key, _)| key.bytes.as_slice()).collect())
            }
            _ => continue,
        };
        let Some(at) = place_of_port(fields) else { continue };
        let port = |key: &[u8]| Some(u16::from_be_bytes([*key.get(at)?, *key.get(at + 1)?]));
        found.extend(keys.into_iter().filter_map(port));
    }
    found
}

impl Set {
    /// The target of the element that contains this key.
    pub(super) fn find(&self, key: &[u8]) -> Option<&Target> {
        if !self.has_ranges {
            let mut elements = self.elements.iter();
            return elements.find(|(own, _)| own.bytes == key).map(|(_, target)| target);
        }
        let begins = self.elements.iter().filter(|(own, _)| own.bytes.as_slice() <= key);
        let last = begins.max_by(|(a, _), (b, _)| match a.bytes.cmp(&b.bytes) {
            // A range may end where the next one begins; the begin has to win.
            Ordering::Equal => b.is_end.cmp(&a.is_end),
            other => other,
        })?;
        (!last.0.is_end).then_some(&last.1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Key;
    use super::*;

    #[test]
    fn ranges_end_before_the_next_key() {
        let key = |byte, is_end| (Key { bytes: vec![byte], is_end }, Target::Nothing);
        let elements =
            vec![key(0, true), key(5, false), key(9, true), key(9, false), key(12, true)];
        let set = Set { elements, has_ranges: true, is_unread: false };
        for (byte, wanted) in [(0, false), (4, false), (5, true), (8, true), (9, true), (12, false)]
        {
            assert_eq!(set.find(&[byte]).is_some(), wanted, "{byte}");
        }
        let plain = Set { elements: vec![key(5, false)], ..Set::default() };
        assert!(plain.find(&[5]).is_some() && plain.find(&[6]).is_none());
    }
}
