//! The changes from the present ipsets to the desired ones.

use std::collections::{BTreeMap, BTreeSet};

use super::rules::Ipset;
use crate::model::{FoundIpset, Member};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SetChange {
    Create(Ipset),
    /// Add members, or replace the comments of present ones.
    Add(String, Vec<Member>),
    Remove(String, Vec<Member>),
    /// Destroy a set to which no rule refers any more.
    Destroy(String),
}

impl SetChange {
    pub(crate) fn inverse(&self) -> Option<Self> {
        match self {
            Self::Create(set) => Some(Self::Destroy(set.name.into())),
            Self::Add(set, members) => Some(Self::Remove(set.clone(), members.clone())),
            Self::Remove(set, members) => Some(Self::Add(set.clone(), members.clone())),
            // No undo: the set held only what the next reconcile writes.
            Self::Destroy(_) => None,
        }
    }

    /// Description of the change, for a person.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Create(set) => format!("make ipset {}", set.name),
            Self::Add(set, members) => format!("add {} member(s) to ipset {set}", members.len()),
            Self::Remove(set, members) => {
                format!("take {} member(s) out of ipset {set}", members.len())
            }
            Self::Destroy(set) => format!("remove ipset {set}"),
        }
    }
}

/// The changes that turn the present sets into the desired ones.
pub(crate) fn set_changes<'a>(
    found: &BTreeMap<String, FoundIpset>,
    wanted: impl IntoIterator<Item = &'a Ipset>,
) -> Vec<SetChange> {
    let mut changes = Vec::new();
    for set in wanted {
        let name = || set.name.to_string();
        let present = found.get(set.name).filter(|present| {
            let like = set.is_like(present);
            if !like {
                changes.push(SetChange::Destroy(name()));
            }
            like
        });
        let none = BTreeSet::new();
        let members = present.map_or(&none, |present| &present.members);
        if present.is_none() {
            changes.push(SetChange::Create(Ipset { members: BTreeSet::new(), ..set.clone() }));
        }
        let new: Vec<Member> = set.members.difference(members).cloned().collect();
        // A member whose comment changes is new but not stale, because adding it replaces the
        // comment.
        let kept: BTreeSet<_> = set.members.iter().map(|m| (m.address, m.prefix)).collect();
        let stale = members.iter().filter(|m| !kept.contains(&(m.address, m.prefix)));
        let stale: Vec<Member> = stale.cloned().collect();
        if !new.is_empty() {
            changes.push(SetChange::Add(name(), new));
        }
        if !stale.is_empty() {
            changes.push(SetChange::Remove(name(), stale));
        }
    }
    changes
}
