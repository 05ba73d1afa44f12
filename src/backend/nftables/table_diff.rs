//! The changes from the present table to the desired one.

use super::encode::{rule_body, set_numbers};
use super::fingerprint;
use super::offload;
use super::rules::{Chain, Flowtable, Rule, Ruleset, Set};
use crate::model::{Elements, FoundFlowtable, FoundSet, Table};
use crate::netlink::uapi::{NFT_FLOWTABLE_COUNTER, NFT_SET_MAP};

/// One change of the nftables table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TableChange {
    DeleteTable,
    NewTable,
    NewSet(Set),
    NewChain(Chain),
    FlushChain(String),
    AppendRule(String, Rule),
    DeleteElements(String, Elements),
    AddElements(String, Elements),
    /// Remove an empty chain.
    DeleteChain(String),
    /// Remove an unused set.
    DeleteSet(String),
    NewFlowtable(Flowtable),
    /// Remove a flowtable that no rule uses. Packets of its connections meet the rules again.
    DeleteFlowtable(String),
    /// Make a flowtable take the packets of these devices, too.
    AddDevices(Flowtable),
    /// Make a flowtable no longer take the packets of these devices.
    RemoveDevices(Flowtable),
}

/// The changes that send all connections in the flowtable back to the rules. They remove the
/// flowtable, because the kernel has no command that empties one. The next reconcile makes it
/// again, with the devices of that moment.
pub(crate) fn flush_flows(wanted: &Ruleset) -> Vec<TableChange> {
    let Some(flowtable) = &wanted.flowtable else { return Vec::new() };
    let chains = wanted.chains.iter().filter(|chain| offload::offloads(chain));
    let flush = chains.map(|chain| TableChange::FlushChain(chain.name.clone()));
    flush.chain([TableChange::DeleteFlowtable(flowtable.name.into())]).collect()
}

/// The changes that turn the present table into the desired one.
pub(crate) fn changes(present: Option<&Table>, wanted: Option<&Ruleset>) -> Vec<TableChange> {
    let Some(wanted) = wanted else {
        return present.map(|_| TableChange::DeleteTable).into_iter().collect();
    };
    match present {
        Some(present) if !needs_rewrite(present, wanted) => contents(present, wanted),
        // Avoid this: packets that wait in a queue of a deleted base chain are lost. Only a release
        // with another layout needs it.
        Some(_) => [vec![TableChange::DeleteTable], new(wanted)].concat(),
        None => new(wanted),
    }
}

fn new(wanted: &Ruleset) -> Vec<TableChange> {
    [vec![TableChange::NewTable], contents(&Table::default(), wanted)].concat()
}

/// Whether reconcile has to delete the table and write it again, in one of these cases:
///
/// - A set, base chain or flowtable has another type, size, hook, priority or flag than the desired
///   one of its name.
/// - Another program has added a kind of set that symroute can't read.
/// - The table is dormant.
fn needs_rewrite(present: &Table, wanted: &Ruleset) -> bool {
    let simple = |set: &FoundSet| set.flags & !NFT_SET_MAP == 0;
    if present.dormant || !present.sets.values().all(simple) {
        return true;
    }
    let set = |set: &Set| {
        let numbers = set_numbers(set);
        present.sets.get(&set.name).is_some_and(|found| {
            let data_type = numbers.data.map_or(0, |(kind, _)| kind);
            (found.flags, found.key_type, found.data_type, found.size)
                != (numbers.flags, numbers.key_type, data_type, set.size)
        })
    };
    let chain = |chain: &Chain| {
        let hook = chain.hook.map(|h| (h.kind.to_string(), h.number, h.priority));
        present.chains.get(&chain.name).is_some_and(|found| found.hook != hook)
    };
    let flowtable = |wanted: &Flowtable| {
        present.flowtables.get(wanted.name).is_some_and(|found| {
            (found.priority, found.flags) != (wanted.priority, NFT_FLOWTABLE_COUNTER)
        })
    };
    wanted.sets.iter().any(set)
        || wanted.chains.iter().any(chain)
        || wanted.flowtable.as_ref().is_some_and(flowtable)
}

fn contents(present: &Table, wanted: &Ruleset) -> Vec<TableChange> {
    let (mut removals, mut additions, mut stale) = (Vec::new(), Vec::new(), Vec::new());
    for set in &wanted.sets {
        let empty = FoundSet::default();
        let found = present.sets.get(&set.name).unwrap_or_else(|| {
            additions.push(TableChange::NewSet(set.clone()));
            &empty
        });
        let gone: Elements = found.elements.difference(&set.elements).cloned().collect();
        if !gone.is_empty() {
            removals.push(TableChange::DeleteElements(set.name.clone(), gone));
        }
    }
    let prints = |chain: &Chain| -> Vec<_> {
        let print = |rule| Some(fingerprint::of_rule(rule, rule_body(rule).as_bytes()));
        chain.rules.iter().map(print).collect()
    };
    let mut rewritten = Vec::new();
    for chain in &wanted.chains {
        match present.chains.get(&chain.name) {
            Some(found) if found.rules == prints(chain) => continue,
            Some(_) => removals.push(TableChange::FlushChain(chain.name.clone())),
            None => additions.push(TableChange::NewChain(chain.clone())),
        }
        rewritten.push(chain);
    }
    for chain in rewritten {
        let rules = chain.rules.iter().cloned();
        additions.extend(rules.map(|rule| TableChange::AppendRule(chain.name.clone(), rule)));
    }
    for set in &wanted.sets {
        let present = present.sets.get(&set.name).map(|found| &found.elements);
        let new: Elements = set
            .elements
            .iter()
            .filter(|e| present.is_none_or(|t| !t.contains(e)))
            .cloned()
            .collect();
        if !new.is_empty() {
            additions.push(TableChange::AddElements(set.name.clone(), new));
        }
    }
    let gone: Vec<&String> = present.chains.keys().filter(|n| wanted.chain(n).is_none()).collect();
    removals.extend(gone.iter().map(|&name| TableChange::FlushChain(name.clone())));
    stale.extend(gone.iter().map(|&name| TableChange::DeleteChain(name.clone())));
    let gone = present.sets.iter().filter(|(name, _)| wanted.set(name).is_none());
    for (name, found) in gone {
        // The kernel deletes no chain to which an element of a verdict map leads.
        if !found.elements.is_empty() {
            removals.push(TableChange::DeleteElements(name.clone(), found.elements.clone()));
        }
        stale.push(TableChange::DeleteSet(name.clone()));
    }
    let (flows, gone) = flowtables(present, wanted);
    stale.extend(gone);
    [removals, flows, additions, stale].concat()
}

/// The changes that make the flowtable, which come before the rules that use it, and those that
/// delete others, which come after their rules.
fn flowtables(present: &Table, wanted: &Ruleset) -> (Vec<TableChange>, Vec<TableChange>) {
    let mut made = Vec::new();
    if let Some(wanted) = &wanted.flowtable {
        match present.flowtables.get(wanted.name) {
            Some(found) => made.extend(devices(found, wanted)),
            None => made.push(TableChange::NewFlowtable(wanted.clone())),
        }
    }
    let is_wanted = |name: &str| wanted.flowtable.as_ref().is_some_and(|w| w.name == name);
    let gone = present.flowtables.keys().filter(|name| !is_wanted(name));
    (made, gone.cloned().map(TableChange::DeleteFlowtable).collect())
}

fn devices(found: &FoundFlowtable, wanted: &Flowtable) -> Vec<TableChange> {
    let of = |devices: Vec<&String>| Flowtable {
        devices: devices.into_iter().cloned().collect(),
        ..wanted.clone()
    };
    let new = of(wanted.devices.difference(&found.devices).collect());
    let gone = of(found.devices.difference(&wanted.devices).collect());
    let mut changes = vec![TableChange::RemoveDevices(gone), TableChange::AddDevices(new)];
    changes.retain(|change| match change {
        TableChange::AddDevices(some) | TableChange::RemoveDevices(some) => {
            !some.devices.is_empty()
        }
        _ => true,
    });
    changes
}
