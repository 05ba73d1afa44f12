//! The record of what is in force, in the comments of an ipset, so that the kernel keeps it. With
//! nftables the table has this record (`in_force`, `layout`, `ids`, `restore`).
//!
//! ```text
//! 0.0.0.1  "in force: 3735928559"
//! 0.0.0.2  "mask 7936, priority 400, tables 47000"
//! 1.0.0.3  "interface 3 has id 1"
//! 2.0.0.3  "restore src_valid_mark of interface 3"
//! 3.0.0.4  "made for IPv4: INPUT PREROUTING"  (built-in chains of iptables-nft)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::backend::spec::Spec;
use crate::model::{Family, Member};

const IN_FORCE: u32 = 1;
const LAYOUT: u32 = 2;
/// Key of the note about an uplink's id, plus the interface's index in the lower 24 bits. The index
/// in the key is for a person; symroute reads it from the comment.
const HAS_ID: u32 = 1 << 24;
const RESTORE: u32 = 2 << 24;
const MADE: u32 = 3 << 24;
const INDEX: u32 = HAS_ID - 1;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Notes {
    /// Fingerprint of the settings in force.
    pub(crate) in_force: Option<u32>,
    /// `markMask`, `rulePriority` and `tableBase`.
    pub(crate) layout: Option<(u32, u32, u32)>,
    /// Id by interface index.
    pub(crate) ids: BTreeMap<u32, u32>,
    /// Indexes of the interfaces whose `src_valid_mark` was 0 before symroute set it.
    pub(crate) restore: BTreeSet<u32>,
    /// Built-in chains that exist because symroute used iptables-nft.
    pub(crate) made_chains: BTreeSet<(Family, String)>,
}

fn note(key: u32, comment: String) -> Member {
    let address = IpAddr::V4(Ipv4Addr::from(key));
    Member { address, prefix: 32, nomatch: false, comment: Some(comment) }
}

/// Builds the notes of the node's ipset.
pub(crate) fn write(spec: &Spec<'_>, made: &BTreeSet<(Family, String)>) -> BTreeSet<Member> {
    let (mask, priority, tables) = (spec.field.mask(), spec.priority, spec.table_base);
    let mut out = BTreeSet::from([
        note(IN_FORCE, format!("in force: {}", spec.fingerprint)),
        note(LAYOUT, format!("mask {mask}, priority {priority}, tables {tables}")),
    ]);
    out.extend(spec.interfaces().map(|uplink| {
        let (id, link) = (uplink.id, uplink.link);
        note(HAS_ID | link & INDEX, format!("interface {link} has id {id}"))
    }));
    out.extend(spec.restore.iter().map(|link| {
        note(RESTORE | link & INDEX, format!("restore src_valid_mark of interface {link}"))
    }));
    for (version, family) in [(4, Family::V4), (6, Family::V6)] {
        let chains = made.iter().filter(|(of, _)| *of == family).map(|(_, chain)| chain.as_str());
        let chains: Vec<_> = chains.collect();
        if !chains.is_empty() {
            out.insert(note(MADE | version, format!("made for {family}: {}", chains.join(" "))));
        }
    }
    out
}

pub(crate) fn says_in_force(member: &Member) -> bool {
    key(member) == Some(IN_FORCE)
}

fn key(member: &Member) -> Option<u32> {
    match member.address {
        IpAddr::V4(ip) => Some(ip.into()),
        IpAddr::V6(_) => None,
    }
}

/// Reads the notes, and skips members that are not notes of symroute.
pub(crate) fn read(members: &BTreeSet<Member>) -> Notes {
    let mut notes = Notes::default();
    for member in members {
        let (Some(key), Some(comment)) = (key(member), &member.comment) else { continue };
        if let (4 | 6, Some((_, chains))) = (key ^ MADE, comment.split_once(": ")) {
            let family = if key ^ MADE == 4 { Family::V4 } else { Family::V6 };
            notes.made_chains.extend(chains.split(' ').map(|chain| (family, chain.to_string())));
            continue;
        }
        let words = comment.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
        let numbers: Vec<u32> = words.filter_map(|word| word.parse().ok()).collect();
        match (key, key & !INDEX, &numbers[..]) {
            (IN_FORCE, _, &[number]) => notes.in_force = Some(number),
            (LAYOUT, _, &[mask, priority, tables]) => {
                notes.layout = Some((mask, priority, tables));
            }
            (_, HAS_ID, &[link, id]) => drop(notes.ids.insert(link, id)),
            (_, RESTORE, &[link]) => drop(notes.restore.insert(link)),
            _ => {}
        }
    }
    notes
}
