//! The steps from the state of a node to its desired state, in order.
//!
//! Order: routes, rules, sysctls and marking are added; then old state is removed in reverse order. So each
//! rule finds a filled table, and the plugin marks no packet before the rules for the mark exist.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Plan;
use crate::backend::iptables::restore_script::{Script, script};
use crate::backend::iptables::rules::{Ipset, Xtables};
use crate::backend::iptables::set_diff::{SetChange, set_changes};
use crate::backend::nftables::rules::TableFamily;
use crate::backend::nftables::table_diff::{self, TableChange};
use crate::model::{Action, Facts, Family, FoundRule, Mangle, Route, Rule, Variant};
use crate::names;

/// One step. The kernel gets each as one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    AddRoute(Route),
    /// Replace a route with one of the same destination and metric.
    ReplaceRoute {
        old: Route,
        new: Route,
    },
    DeleteRoute(Route),
    AddRule(Rule),
    DeleteRule(FoundRule),
    /// Set `src_valid_mark` of the interface with this index to 1, or back to 0.
    SrcValidMark {
        link: u32,
        /// Whether to set 1.
        on: bool,
    },
    Table(TableFamily, Vec<TableChange>),
    Sets(Vec<SetChange>),
    /// Change tables mangle, each in one transaction.
    Mangle(Vec<Script>),
    /// Remove built-in chains of iptables-nft that exist only because of symroute, if they are unused.
    RemoveEmpty(Family, BTreeSet<String>),
}

impl Operation {
    /// Whether the step removes a route or a rule.
    pub(crate) fn is_removal(&self) -> bool {
        matches!(self, Self::DeleteRoute(_) | Self::DeleteRule(_))
    }

    /// Whether the step changes nftables, ipsets or iptables.
    pub(crate) fn is_netfilter(&self) -> bool {
        match self {
            Self::Table(..) | Self::Sets(_) | Self::Mangle(_) | Self::RemoveEmpty(..) => true,
            Self::AddRoute(_)
            | Self::ReplaceRoute { .. }
            | Self::DeleteRoute(_)
            | Self::AddRule(_)
            | Self::DeleteRule(_)
            | Self::SrcValidMark { .. } => false,
        }
    }
}

/// Computes the steps from the state in the facts to the plan.
pub(crate) fn diff(facts: &Facts, plan: &Plan) -> Vec<Operation> {
    let (mut steps, stale_routes) = routes(facts, plan);
    let (new_rules, stale_rules) = rules(facts, plan);
    steps.extend(new_rules);
    let value = |link: &u32| facts.src_valid_mark.get(link).copied();
    let wanted = plan.src_valid_mark.iter().filter(|&link| value(link) == Some(0));
    steps.extend(wanted.map(|&link| Operation::SrcValidMark { link, on: true }));
    let (new_marking, stale_marking) = marking(facts, plan);
    steps.extend(new_marking);
    steps.extend(stale_marking);
    // Only a 1 is set back to 0. Any other value is that of another program.
    let unwanted =
        facts.restore.difference(&plan.src_valid_mark).filter(|&link| value(link) == Some(1));
    steps.extend(unwanted.map(|&link| Operation::SrcValidMark { link, on: false }));
    steps.extend(stale_rules);
    steps.extend(stale_routes);
    steps
}

/// Removes all connections from the flowtable, so that the rules judge them again. Needed after steps that may
/// change the way of a connection; none where the steps concern pods only.
pub(crate) fn flush_flows(facts: &Facts, plan: &Plan, steps: &[Operation]) -> Option<Operation> {
    let gone = |name: &String| facts.links.iter().all(|link| link.name != *name);
    let of_pods = |change: &TableChange| match change {
        TableChange::AddDevices(_) => true,
        // Connections of a device that still exists have to leave the flowtable. A device that is gone has
        // none.
        TableChange::RemoveDevices(some) => some.devices.iter().all(gone),
        TableChange::AddElements(set, _) | TableChange::DeleteElements(set, _) => {
            let sets = [names::HAIRPIN, names::LEFT_OUT];
            sets.iter().any(|names| Family::ALL.into_iter().any(|f| names.of(f) == set))
        }
        _ => false,
    };
    let of_pods = |step: &Operation| match step {
        Operation::Table(_, changes) => changes.iter().all(of_pods),
        _ => false,
    };
    if steps.iter().all(of_pods) || !facts.ours.offloads() {
        return None;
    }
    let changes = table_diff::flush_flows(plan.ruleset.as_ref()?);
    (!changes.is_empty()).then_some(Operation::Table(TableFamily::Inet, changes))
}

/// Steps that add the wanted marking, and steps that remove the old one. If the backend changes, both backends
/// mark for a moment, with the same ids.
fn marking(facts: &Facts, plan: &Plan) -> (Vec<Operation>, Vec<Operation>) {
    let (mut new, mut stale) = (Vec::new(), Vec::new());
    let ours = &facts.ours;
    let table = table_diff::changes(ours.table.as_ref(), plan.ruleset.as_ref());
    let of_node = |set: &&Ipset| set.name == names::NODE_SET;
    let wanted = plan.xtables.as_ref();
    let sets = || wanted.into_iter().flat_map(|x| &x.sets);
    new.push(Operation::Sets(set_changes(&ours.ipsets, sets().filter(|set| !of_node(set)))));
    let (kept, gone) = scripts(&ours.mangle, wanted);
    new.push(Operation::Mangle(kept));
    // For an ADD, the node set proves that everything is in place. So it is filled last and destroyed first.
    new.push(Operation::Sets(set_changes(&ours.ipsets, sets().filter(of_node))));
    let change = |changes| Operation::Table(TableFamily::Inet, changes);
    if plan.ruleset.is_some() { &mut new } else { &mut stale }.push(change(table));
    let arp = table_diff::changes(ours.arp.as_ref(), plan.arp.as_ref());
    let change = Operation::Table(TableFamily::Arp, arp);
    if plan.arp.is_some() { &mut new } else { &mut stale }.push(change);
    let unwanted = ours.ipsets.keys().filter(|name| !sets().any(|set| set.name == *name));
    let (node, others): (Vec<&String>, _) = unwanted.partition(|name| *name == names::NODE_SET);
    let destroy = |names: Vec<&String>| {
        Operation::Sets(names.into_iter().cloned().map(SetChange::Destroy).collect())
    };
    stale.extend([destroy(node), Operation::Mangle(gone), destroy(others)]);
    stale.extend(Family::ALL.into_iter().filter_map(|family| remove_empty(facts, plan, family)));
    let does_something = |operation: &Operation| match operation {
        Operation::Table(_, changes) => !changes.is_empty(),
        Operation::Sets(changes) => !changes.is_empty(),
        Operation::Mangle(scripts) => !scripts.is_empty(),
        _ => true,
    };
    new.retain(does_something);
    stale.retain(does_something);
    (new, stale)
}

/// Removes the built-in chains that exist only because of symroute, and the table if it has no others.
fn remove_empty(facts: &Facts, plan: &Plan, family: Family) -> Option<Operation> {
    let existing = facts.ours.mangle.get(&(Variant::Nft, family))?.existing.as_ref()?;
    let gone = facts.made_chains.difference(&plan.made_chains).filter(|(of, _)| *of == family);
    let gone: Vec<&String> = gone.map(|(_, chain)| chain).collect();
    let present: BTreeSet<String> =
        gone.iter().filter(|chain| existing.contains(**chain)).copied().cloned().collect();
    let does_something = !present.is_empty() || !gone.is_empty() && existing.is_empty();
    does_something.then_some(Operation::RemoveEmpty(family, present))
}

/// Scripts for the mangle tables that the plan uses, and for those that it no longer uses.
fn scripts(
    found: &BTreeMap<(Variant, Family), Mangle>,
    wanted: Option<&Xtables>,
) -> (Vec<Script>, Vec<Script>) {
    let nothing = Mangle::default();
    let kept = wanted.into_iter().flat_map(|xtables| {
        let found = |family| found.get(&(xtables.variant, family)).unwrap_or(&nothing);
        let each = xtables.chains.iter();
        each.filter_map(move |(&family, chains)| {
            script(xtables.variant, family, found(family), chains)
        })
    });
    let is_wanted = |variant, family| {
        wanted.is_some_and(|x| x.variant == variant && x.chains.contains_key(&family))
    };
    let gone = found.iter().filter(|((variant, family), _)| !is_wanted(*variant, *family));
    let gone = gone.filter_map(|(&(variant, family), found)| script(variant, family, found, &[]));
    (kept.collect(), gone.collect())
}

/// Steps that add or replace routes, and steps that delete routes.
fn routes(facts: &Facts, plan: &Plan) -> (Vec<Operation>, Vec<Operation>) {
    let place = |r: &Route| (r.table, r.dst, r.metric);
    // Several routes have the same place only if another program appended one.
    let mut present: BTreeMap<_, Vec<&Route>> = BTreeMap::new();
    for route in &facts.ours.routes {
        present.entry(place(route)).or_default().push(route);
    }
    let mut steps = Vec::new();
    for wanted in &plan.routes {
        let found = present.entry(place(wanted)).or_default();
        if let Some(at) = found.iter().position(|r| *r == wanted) {
            found.remove(at);
        } else if found.is_empty() {
            steps.push(Operation::AddRoute(wanted.clone()));
        } else {
            let old = found.remove(0).clone();
            steps.push(Operation::ReplaceRoute { old, new: wanted.clone() });
        }
    }
    let mut stale: Vec<&Route> = present.into_values().flatten().collect();
    // Default routes are deleted first, then routes through a gateway. The gateway's own route comes last.
    let leans = |r: &Route| r.nexthops.iter().any(|hop| hop.gateway.is_some());
    stale.sort_by_key(|r| std::cmp::Reverse((r.is_default(), leans(r))));
    (steps, stale.into_iter().cloned().map(Operation::DeleteRoute).collect())
}

/// Steps that add rules, and steps that delete rules.
fn rules(facts: &Facts, plan: &Plan) -> (Vec<Operation>, Vec<Operation>) {
    let all = &facts.ours.rules;
    // A pod may have thousands of rules that look like symroute's.
    let mut places: BTreeMap<&Rule, VecDeque<usize>> = BTreeMap::new();
    for (at, found) in all.iter().enumerate() {
        places.entry(&found.rule).or_default().push_back(at);
    }
    let (mut steps, mut kept) = (Vec::new(), BTreeSet::new());
    for wanted in &plan.rules {
        match places.get_mut(wanted).and_then(VecDeque::pop_front) {
            Some(at) => drop(kept.insert(at)),
            None => steps.push(Operation::AddRule(wanted.clone())),
        }
    }
    let stale = all.iter().enumerate().filter(|(at, _)| !kept.contains(at));
    let mut present: Vec<&FoundRule> = stale.map(|(_, found)| found).collect();
    // A `goto` rule is deleted before its target.
    present.sort_by_key(|found| match found.rule.action {
        Action::Lookup(_) => 0,
        Action::Goto(_) => 1,
        Action::Nop | Action::Other(_) => 2,
    });
    (steps, present.into_iter().cloned().map(Operation::DeleteRule).collect())
}
