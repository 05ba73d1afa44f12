//! Which rules and routes of a node are ours. Rules and tables have no owner's name on them, so
//! they are told by number and shape, for the settings in force and for those of before.

use crate::config::Settings;
use crate::facts::{Action, FoundRule, Link, Ours, Route, Rule};
use crate::netlink::uapi::RTPROT_KERNEL;

/// Whether a table is one of those that uplinks get by these settings.
#[must_use]
pub fn is_table(settings: &Settings, table: u32) -> bool {
    (settings.table(1)..=settings.table(settings.field.max_id())).contains(&table)
}

/// Whether a rule has the shape of one of ours by these settings. The mask is not compared: after
/// a change of `markMask` the old rules are still ours.
#[must_use]
pub fn is_rule(settings: &Settings, rule: &Rule) -> bool {
    let end = settings.priority + 3;
    if rule.protocol != RTPROT_KERNEL || rule.other_selectors {
        return false;
    }
    let marked = rule.mark.is_some_and(|(mark, _)| mark != 0);
    let unmarked = rule.mark.is_some_and(|(mark, _)| mark == 0);
    let to_end = rule.action == Action::Goto(end);
    match rule.priority.checked_sub(settings.priority) {
        Some(0) => unmarked && rule.iif.is_none() && to_end,
        Some(1) => marked && rule.iif.is_some() && to_end,
        Some(2) => {
            let ours = matches!(rule.action, Action::Lookup(table) if is_table(settings, table));
            marked && rule.iif.is_none() && ours
        }
        Some(3) => rule.mark.is_none() && rule.iif.is_none() && rule.action == Action::Nop,
        _ => false,
    }
}

/// Takes what is ours by any of these settings out of the lists, which keep what is of others. A
/// route of another protocol in a table of ours, or one in the table of a VRF, is of others.
#[must_use]
pub fn take(
    owned: &[&Settings],
    links: &[Link],
    routes: &mut Vec<Route>,
    rules: &mut Vec<FoundRule>,
) -> Ours {
    let vrf = |table| links.iter().any(|l| l.vrf_table == Some(table));
    let route = |r: &Route| {
        r.protocol == RTPROT_KERNEL
            && !vrf(r.table)
            && owned.iter().any(|settings| is_table(settings, r.table))
    };
    let rule = |found: &FoundRule| owned.iter().any(|s| is_rule(s, &found.rule));
    Ours { routes: extract(routes, route), rules: extract(rules, rule), ..Ours::default() }
}

fn extract<T>(all: &mut Vec<T>, ours: impl Fn(&T) -> bool) -> Vec<T> {
    let (taken, kept) = std::mem::take(all).into_iter().partition(ours);
    *all = kept;
    taken
}
