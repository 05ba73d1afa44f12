//! Finds the rules and routes that belong to symroute. They carry no name of an owner, so number
//! and shape identify them, by the present and the previous settings.

use std::collections::BTreeSet;

use crate::config::Settings;
use crate::model::{Action, FoundRule, Link, Ours, Route, Rule};
use crate::names::LOOPBACK;
use crate::netlink::uapi::{FR_ACT_PROHIBIT, RT_TABLE_MAIN, RTPROT_KERNEL};

/// Whether the table is one of those that these settings reserve for uplinks.
pub(crate) fn is_table(settings: &Settings, table: u32) -> bool {
    (settings.table(1)..=settings.table(settings.field.max_id())).contains(&table)
}

/// Whether a rule has the shape of symroute's by these settings. The mask is ignored: after a
/// change of `markMask` the old rules are still symroute's.
pub(crate) fn is_rule(settings: &Settings, rule: &Rule) -> bool {
    if rule.protocol != RTPROT_KERNEL || rule.other_selectors {
        return false;
    }
    let at = settings.rules();
    let marked = rule.mark.is_some_and(|mark| mark.value != 0);
    let unmarked = rule.mark.is_some_and(|mark| mark.value == 0);
    let by_any = rule.iif.is_none();
    let asks = marked && (by_any || rule.iif.as_deref() == Some(LOOPBACK));
    let to_end = rule.action == Action::Goto(at.end);
    let matches = [
        (at.ask_alone, asks && rule.action == Action::Lookup(RT_TABLE_MAIN)),
        (at.ask, asks && rule.action == Action::Lookup(RT_TABLE_MAIN)),
        (at.ask, asks && rule.action == Action::Other(FR_ACT_PROHIBIT)),
        (at.skip, unmarked && by_any && to_end),
        (at.request, marked && !by_any && to_end),
        (at.bound, marked && by_any && in_our_table(settings, rule)),
        (at.end, rule.mark.is_none() && by_any && rule.action == Action::Nop),
    ];
    matches.contains(&(rule.priority, true))
}

fn in_our_table(settings: &Settings, rule: &Rule) -> bool {
    matches!(rule.action, Action::Lookup(table) if is_table(settings, table))
}

/// Whether a rule of a pod's namespace has the shape of symroute's by these settings.
fn is_rule_of_pod(settings: &Settings, rule: &Rule) -> bool {
    let at = settings.rules();
    let unmarked = rule.mark.is_some_and(|mark| mark.value == 0);
    let plain = rule.protocol == RTPROT_KERNEL && unmarked && rule.iif.is_none();
    let (by_source, by_destination) = (rule.from.is_some(), rule.to.is_some());
    let matches = [
        (at.end, by_destination && rule.action == Action::Goto(at.source)),
        (at.inside, by_source && rule.action == Action::Lookup(RT_TABLE_MAIN)),
        (at.source, by_source && in_our_table(settings, rule)),
    ];
    plain && matches.contains(&(rule.priority, true))
}

/// Moves symroute's rules and routes, by any of these settings, out of the lists. A route of
/// another protocol in one of symroute's tables stays, and so does a route in the table of a VRF.
pub(crate) fn take(
    owned: &[&Settings],
    links: &[Link],
    of_pod: bool,
    routes: &mut Vec<Route>,
    rules: &mut Vec<FoundRule>,
) -> Ours {
    let vrf: BTreeSet<u32> = links.iter().filter_map(|l| l.vrf_table).collect();
    let route = |r: &Route| {
        r.protocol == RTPROT_KERNEL
            && !vrf.contains(&r.table)
            && owned.iter().any(|settings| is_table(settings, r.table))
    };
    let is_ours = |settings: &Settings, rule: &Rule| {
        is_rule(settings, rule) || of_pod && is_rule_of_pod(settings, rule)
    };
    let rule = |found: &FoundRule| owned.iter().any(|s| is_ours(s, &found.rule));
    Ours { routes: extract(routes, route), rules: extract(rules, rule), ..Ours::default() }
}

fn extract<T>(all: &mut Vec<T>, ours: impl Fn(&T) -> bool) -> Vec<T> {
    let (taken, kept) = std::mem::take(all).into_iter().partition(ours);
    *all = kept;
    taken
}
