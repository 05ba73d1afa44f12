//! Finds state of other programs that would clash with symroute's, before anything is changed.

use std::collections::BTreeSet;

use serde_json::json;

use super::ours::is_table;
use super::{mark_users, uplinks};
use crate::config::{AUTO, Invalid, Masquerade, Settings};
use crate::model::{Action, Facts, Family, Field};
use crate::netlink::uapi::RT_TABLE_LOCAL;

/// Candidates for an automatic `markMask`. Each avoids the bits of some widespread programs. The last has only
/// one id, but is free beside Cilium.
const MASKS: [u32; 5] = [0x1f00, 0x1f_0000, 0x0f_0000, 0xf800_0000, 0x3000];

/// The settings with new values for `rulePriority` and `markMask` if these are automatic and clash.
pub(crate) fn avoid(facts: &Facts, settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    if settings.automatic.priority && check_priorities(facts, &settings).is_err() {
        settings.priority = free_priorities(facts, &settings);
    }
    if settings.automatic.mark && check_marks(facts, &settings).is_err() {
        let free = free_field(facts, &settings, ids_needed(facts, &settings));
        settings.field = free.unwrap_or(settings.field);
    }
    settings
}

/// Checks the settings against the state of other programs.
/// Error: the first setting that clashes.
pub(crate) fn check(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    check_priorities(facts, settings)?;
    check_local_first(facts, settings)?;
    check_tables(facts, settings)?;
    check_marks(facts, settings)
}

fn check_priorities(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    let (p, last) = (settings.rules().skip, settings.priority + span_of_ours(facts));
    match facts.foreign_rules().find(|r| (p..=last).contains(&r.priority)) {
        None => Ok(()),
        Some(rule) => {
            let free = free_priorities(facts, settings);
            let count = if facts.pod.is_some() { "six" } else { "four" };
            let hint = format!(
                "{p} to {last} must be symroute's alone, but another program has a rule at {} ({rule}); \
                 set rulePriority to {count} free numbers, for instance {free}",
                rule.priority,
            );
            Err(Invalid::new("rulePriority", &json!(p), hint))
        }
    }
}

/// Distance between the first and the last priority that symroute must have for itself. A pod has two more, for
/// rules by address: a rule of another program must not come between.
pub(super) fn span_of_ours(facts: &Facts) -> u32 {
    if facts.pod.is_some() { 5 } else { 3 }
}

/// First priority of a free block, searched from 499 down to 300, then from 3 up to 299.
fn free_priorities(facts: &Facts, settings: &Settings) -> u32 {
    let taken: BTreeSet<u32> = facts.foreign_rules().map(|r| r.priority).collect();
    let is_free = |p: &u32| taken.range(*p..=*p + span_of_ours(facts)).next().is_none();
    (300..500).rev().chain(3..300).find(is_free).unwrap_or(settings.priority)
}

/// Checks that the look-up of table `local` comes before symroute's rules. Otherwise the node would lose its
/// own addresses.
fn check_local_first(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    for family in Family::ALL {
        let of_family = || facts.foreign_rules().filter(move |r| r.family == family);
        if of_family().next().is_none() {
            continue;
        }
        let first = of_family()
            .filter(|r| r.action == Action::Lookup(RT_TABLE_LOCAL) && r.mark.is_none())
            .filter(|r| r.iif.is_none() && r.suppress.is_none() && !r.other_selectors)
            .map(|r| r.priority)
            .min();
        if first.is_none_or(|first| first >= settings.priority) {
            let place = first.map_or("nowhere".into(), |first| format!("at {first}"));
            let hint = format!(
                "has to come after the {family} rule that looks up table local ({place}) and before \
                 rules by a pod's address; set it so, or move local back to 0"
            );
            return Err(Invalid::new("rulePriority", &json!(settings.priority), hint));
        }
    }
    Ok(())
}

fn check_tables(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    let rule = facts.foreign_rules().find_map(|r| match r.action {
        Action::Lookup(table) if is_table(settings, table) => {
            Some((table, format!("the rule at {} looks it up", r.priority)))
        }
        _ => None,
    });
    let vrf = facts.links.iter().find_map(|l| {
        let table = l.vrf_table.filter(|&table| is_table(settings, table))?;
        Some((table, format!("the VRF {} has it", l.name)))
    });
    let route = facts
        .routes
        .iter()
        .find(|r| is_table(settings, r.table))
        .map(|r| (r.table, format!("it has a route to {} of protocol {}", r.dst, r.protocol)));
    let Some((table, why)) = rule.or(vrf).or(route) else { return Ok(()) };
    let hint = format!(
        "tables {} to {} must be symroute's alone, but another program uses table {table} ({why}); \
         set tableBase to a number with {} free tables behind it",
        settings.table(1),
        settings.table(settings.field.max_id()),
        settings.field.max_id(),
    );
    Err(Invalid::new("tableBase", &json!(settings.table_base), hint))
}

/// Checks that no rule of another program compares part of the mark with bits of the field, and that the mark
/// of `masquerade` lies outside the field. A rule that compares the whole mark is no conflict: symroute's bits
/// only keep packets from matching it.
fn check_marks(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    let field = settings.field;
    if field.has(masquerade_mask(settings)) {
        let hint = format!("its \"mark\" must lie outside of markMask {field}");
        return Err(Invalid::new("masquerade", &settings.to_json()["masquerade"], hint));
    }
    let clash = facts.foreign_rules().find_map(|r| {
        let mask = r.mark?.mask;
        (mask != u32::MAX && mask & field.mask() != 0).then_some((r, mask))
    });
    let Some((rule, mask)) = clash else { return Ok(()) };
    let whose =
        mark_users::owner(rule).map_or("another program's".into(), |name| format!("{name}'s"));
    let remedy = match (
        free_field(facts, settings, ids_needed(facts, settings)),
        free_field(facts, settings, 1),
    ) {
        (Some(free), _) => format!("set markMask to free bits, for instance {free}"),
        (None, Some(free)) => format!(
            "no other bits are free for all uplinks; \"markMask\": \"{free}\" serves one: name the one \
             whose replies leave by another, with that markMask"
        ),
        (None, None) => "no other bits are free on this node".into(),
    };
    let bits = mask & field.mask();
    let hint =
        format!("bits {bits:#x} are {whose}: the rule at {} is {rule}; {remedy}", rule.priority);
    let value = if settings.automatic.mark { AUTO.to_string() } else { field.to_string() };
    Err(Invalid::new("markMask", &json!(value), hint))
}

/// Mask of the mark in the setting `masquerade`; 0 if it has none.
fn masquerade_mask(settings: &Settings) -> u32 {
    match &settings.masquerade {
        Masquerade::Mark { mark, .. } => mark.mask,
        Masquerade::Auto | Masquerade::Off => 0,
    }
}

/// Number of ids that the uplinks need.
fn ids_needed(facts: &Facts, settings: &Settings) -> u32 {
    let chosen = uplinks::choose(facts, settings).unwrap_or_default().len();
    // A pod needs one more, for replies that are not bound.
    u32::try_from(chosen).unwrap_or(u32::MAX).saturating_add(facts.pod.is_some().into())
}

/// A field with enough ids for the node's uplinks, outside the field of the settings, the bits in `used`, and
/// the bits of known programs.
pub(crate) fn free_beside(facts: &Facts, settings: &Settings, used: u32) -> Option<Field> {
    let used = used | settings.field.mask();
    free_field_without(facts, settings, ids_needed(facts, settings), used)
}

/// A field with at least `count` ids that no program on the node is known to use.
fn free_field(facts: &Facts, settings: &Settings, count: u32) -> Option<Field> {
    free_field_without(facts, settings, count, 0)
}

fn free_field_without(facts: &Facts, settings: &Settings, count: u32, used: u32) -> Option<Field> {
    let used = facts
        .foreign_rules()
        .filter_map(|r| r.mark.map(|mark| mark.mask))
        .filter(|&mask| mask != u32::MAX)
        .fold(used | mark_users::bits(facts) | masquerade_mask(settings), |used, mask| used | mask);
    let free = MASKS.into_iter().filter(|mask| mask & used == 0).filter_map(Field::new);
    free.into_iter().find(|field| field.max_id() >= count)
}
