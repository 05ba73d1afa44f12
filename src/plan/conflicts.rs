//! What others have on the node that would clash with ours: found before anything is changed.

use serde_json::json;

use super::ours::is_table;
use crate::config::{Invalid, Settings};
use crate::model::Field;
use crate::model::{Action, Facts, Family, Rule};
use crate::netlink::uapi::RT_TABLE_LOCAL;

/// Masks to offer where ours is taken, each in bits that some widespread neighbours leave free.
const OTHER_MASKS: [u32; 4] = [0x1f00, 0x0f_0000, 0x1f_0000, 0xf800_0000];

fn rules(facts: &Facts) -> impl Iterator<Item = &Rule> {
    facts.rules.iter().map(|found| &found.rule)
}

/// The settings with other numbers in place of those that the plugin may choose and that clash.
pub(crate) fn avoid(facts: &Facts, settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    if settings.automatic.priority && priorities(facts, &settings).is_err() {
        settings.priority = free_priorities(facts, &settings);
    }
    settings
}

/// Finds what clashes with these settings.
/// Error: the first setting that another program's state rules out.
pub(crate) fn check(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    priorities(facts, settings)?;
    local_first(facts, settings)?;
    tables(facts, settings)?;
    marks(facts, settings)
}

fn priorities(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    let (p, end) = (settings.rules().skip, settings.rules().end);
    match rules(facts).find(|r| (p..=end).contains(&r.priority)) {
        None => Ok(()),
        Some(rule) => {
            let free = free_priorities(facts, settings);
            let hint = format!(
                "{p} to {end} must be ours alone, but another program has a rule at {} ({rule}); set \
                 rulePriority to four free numbers, for instance {free}",
                rule.priority,
            );
            Err(Invalid::new("rulePriority", &json!(p), hint))
        }
    }
}

/// Four free priorities in a row, from our default on.
fn free_priorities(facts: &Facts, settings: &Settings) -> u32 {
    let taken = |p: u32| rules(facts).any(|r| (p..=p + 3).contains(&r.priority));
    (300..500).rev().chain(3..300).find(|&p| !taken(p)).unwrap_or(settings.priority)
}

/// The table `local` has to come before ours, or the node would lose its own addresses.
fn local_first(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    for family in Family::ALL {
        let of_family = || rules(facts).filter(move |r| r.family == family);
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
                "has to come after the {family} rule that looks up table local, which stands \
                 {place}; set rulePriority above it (and below every rule by a pod's address), \
                 or move that rule back to 0"
            );
            return Err(Invalid::new("rulePriority", &json!(settings.priority), hint));
        }
    }
    Ok(())
}

fn tables(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    let rule = rules(facts).find_map(|r| match r.action {
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
        "tables {} to {} must be ours alone, but somebody else uses table {table} ({why}); set \
         tableBase to a number with {} free tables behind it",
        settings.table(1),
        settings.table(settings.field.max_id()),
        settings.field.max_id(),
    );
    Err(Invalid::new("tableBase", &json!(settings.table_base), hint))
}

/// Somebody who steers by part of the mark must not see our bits there, nor we theirs. Rules that
/// compare the whole mark are no such thing: ours only keep a packet from matching them.
fn marks(facts: &Facts, settings: &Settings) -> Result<(), Invalid> {
    let field = settings.field;
    let clash = rules(facts).find_map(|r| {
        let mask = r.mark?.mask;
        (mask != u32::MAX && mask & field.mask() != 0).then_some((r, mask))
    });
    let Some((rule, mask)) = clash else { return Ok(()) };
    let hint = format!(
        "bits {:#x} are somebody else's: the rule at {} is {}; set markMask to free bits{}",
        mask & field.mask(),
        rule.priority,
        rule,
        free_mask(facts).map_or(String::new(), |free| format!(", for instance {free}")),
    );
    Err(Invalid::new("markMask", &json!(field.to_string()), hint))
}

fn free_mask(facts: &Facts) -> Option<Field> {
    let used = rules(facts)
        .filter_map(|r| r.mark.map(|mark| mark.mask))
        .filter(|&mask| mask != u32::MAX)
        .fold(0, |used, mask| used | mask);
    OTHER_MASKS.into_iter().find(|mask| mask & used == 0).and_then(Field::new)
}
