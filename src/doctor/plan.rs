//! Findings from the plan, the agent's lock and the node's sysctls.

use std::collections::BTreeMap;

use super::{
    ADVICE, BEHIND, Finding, LOOSE, NO_AGENT, NOT_IN_FORCE, REFUSED, STATE, Severity, VALID_MARK,
};
use crate::config::Invalid;
use crate::model::RpFilter;
use crate::node::View;
use crate::node::apply::describe;
use crate::plan::{Note, Uplink};

/// A problem: the settings can't work on this node.
pub(super) fn of_refusal(invalid: &Invalid) -> Finding {
    Finding {
        id: REFUSED,
        severity: Severity::Problem,
        what: format!("the settings can't be kept: {invalid}"),
        evidence: Vec::new(),
        remedy: "correct them, then: symroutectl up".into(),
    }
}

/// Notes of the plan, and differences between plan and node. `filters`: `rp_filter` of each uplink with IPv4,
/// by index.
pub(super) fn of_view(
    view: &View,
    in_force: bool,
    filters: &BTreeMap<u32, RpFilter>,
) -> Vec<Finding> {
    let from = |id, severity, note: &Note| Finding {
        id,
        severity,
        what: note.what.clone(),
        evidence: Vec::new(),
        remedy: note.remedy.clone(),
    };
    let mut found: Vec<Finding> = Vec::new();
    found.extend(view.plan.unanswered.iter().map(|note| from(BEHIND, Severity::Warning, note)));
    if !in_force {
        return found;
    }
    found.extend(view.plan.notes.iter().map(|note| from(ADVICE, Severity::Warning, note)));
    if !view.steps.is_empty() {
        found.push(Finding {
            id: STATE,
            severity: Severity::Warning,
            what: "what is in force is not what this node needs: another program has changed it, \
                   or the node has changed since"
                .into(),
            evidence: view.steps.iter().map(|step| describe(step, &view.facts)).collect(),
            remedy: "symroutectl up, or run the agent, which does that within a second".into(),
        });
    }
    let of_uplink = |uplink: &Uplink| of_filter(&uplink.name, *filters.get(&uplink.link)?);
    found.extend(view.plan.uplinks.iter().filter_map(of_uplink));
    found
}

/// A note if the effective `rp_filter` is not strict, with the sysctls that would make it strict.
fn of_filter(name: &str, filter: RpFilter) -> Option<Finding> {
    let RpFilter { all, own } = filter;
    let value = filter.in_force();
    if value == 1 {
        return None;
    }
    let of_all = (all > 1).then_some("net.ipv4.conf.all.rp_filter=1".to_owned());
    let of_own = (own != 1).then(|| format!("net.ipv4.conf.{name}.rp_filter=1"));
    let settings: Vec<_> = of_all.into_iter().chain(of_own).collect();
    Some(Finding {
        id: LOOSE,
        severity: Severity::Note,
        what: format!("rp_filter of {name} is {value}, and not strict"),
        evidence: vec![format!(
            "net.ipv4.conf.all.rp_filter is {all}, net.ipv4.conf.{name}.rp_filter is {own}; the larger \
             one counts"
        )],
        remedy: format!("symroute does not need it loose: sysctl -w {}", settings.join(" ")),
    })
}

/// A note if `src_valid_mark` is on for all interfaces. symroute sets it only for its uplinks, so another
/// program did that.
pub(super) fn of_valid_mark(of_all: u32) -> Option<Finding> {
    (of_all != 0).then(|| Finding {
        id: VALID_MARK,
        severity: Severity::Note,
        what: "another program has switched src_valid_mark on for all interfaces".into(),
        evidence: vec![
            format!("net.ipv4.conf.all.src_valid_mark is {of_all}: the value of an interface has no effect"),
            "the source check of each interface looks up the way back by the packet's mark".into(),
        ],
        remedy: "none where that program needs it (wg-quick does); otherwise sysctl -w \
                 net.ipv4.conf.all.src_valid_mark=0, which leaves the uplinks' own values"
            .into(),
    })
}

/// A note if symroute is not in force, or if no agent runs.
pub(super) fn of_agent(in_force: bool, runs: bool) -> Option<Finding> {
    let (id, severity, what, remedy) = match (in_force, runs) {
        (true, true) => return None,
        (true, false) => (
            NO_AGENT,
            Severity::Note,
            "no agent runs here, so only the next ADD or \"up\" notices changed routes",
            "install.sh install, or the DaemonSet of conf/kubernetes; without systemd, run symroutectl agent",
        ),
        (false, _) => (
            NOT_IN_FORCE,
            Severity::Note,
            "symroute is not in force on this node",
            "symroutectl up, or let \"install.sh install\" do it at each boot",
        ),
    };
    let (what, remedy) = (what.into(), remedy.into());
    Some(Finding { id, severity, what, evidence: Vec::new(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_that_counts_is_set() {
        let remedy = |all, own| of_filter("eth1", RpFilter { all, own }).map(|found| found.remedy);
        let set = |what: &str| Some(format!("symroute does not need it loose: sysctl -w {what}"));
        assert_eq!(remedy(0, 1), None);
        assert_eq!(remedy(1, 0), None);
        assert_eq!(remedy(0, 0), set("net.ipv4.conf.eth1.rp_filter=1"));
        assert_eq!(remedy(0, 2), set("net.ipv4.conf.eth1.rp_filter=1"));
        assert_eq!(remedy(2, 1), set("net.ipv4.conf.all.rp_filter=1"));
        let both = "net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth1.rp_filter=1";
        assert_eq!(remedy(2, 2), set(both));
    }

    #[test]
    fn src_valid_mark_of_all() {
        assert_eq!(of_valid_mark(0), None);
        assert_eq!(of_valid_mark(1).unwrap().id, VALID_MARK);
    }

    #[test]
    fn an_agent_that_is_missing() {
        assert_eq!(of_agent(true, true), None);
        assert_eq!(of_agent(true, false).unwrap().id, NO_AGENT);
        assert_eq!(of_agent(false, true).unwrap().id, NOT_IN_FORCE);
    }
}
