//! Findings from the ledger of marks.

use super::{Finding, MARK_CLASH, MARK_UNSEEN, Severity};
use crate::backend::Marker;
use crate::ledger::judge::{self, Clash, Ours};
use crate::ledger::{Ledger, Unseen};
use crate::model::{Action, Field, MarkMatch, Rule};
use crate::node::View;
use crate::plan::conflicts;

impl From<Clash> for Finding {
    fn from(clash: Clash) -> Self {
        let Clash { severity, what, evidence, remedy, .. } = clash;
        Self { id: MARK_CLASH, severity, what, evidence, remedy }
    }
}

impl From<&Unseen> for Finding {
    fn from(unseen: &Unseen) -> Self {
        Self {
            id: MARK_UNSEEN,
            severity: Severity::Note,
            what: unseen.to_text(),
            evidence: Vec::new(),
            remedy: unseen.remedy.clone(),
        }
    }
}

/// Clashes between other programs and symroute's bits. `field`: the bits in force, if any are.
pub(crate) fn clashes(ledger: &Ledger, view: &View, field: Option<Field>) -> Vec<Finding> {
    let used = judge::used(&ledger.entries);
    let ours = Ours {
        field: field.unwrap_or(view.settings.field),
        marker: view.plan.marker(),
        free: conflicts::free_beside(&view.facts, &view.settings, used),
        steered: view.plan.rules.iter().filter_map(steered).collect(),
    };
    judged(ledger, &ours)
}

/// The mark that a rule of symroute sends to a table.
fn steered(rule: &Rule) -> Option<MarkMatch> {
    rule.mark.filter(|mark| mark.value != 0 && matches!(rule.action, Action::Lookup(_)))
}

/// Clashes when only the field and the backend are known.
pub(crate) fn judged(ledger: &Ledger, ours: &Ours) -> Vec<Finding> {
    judge::clashes(&ledger.entries, ours).into_iter().map(Finding::from).collect()
}

/// Clashes when the settings in force no longer fit the node, so that there is no plan.
pub(crate) fn without_plan(ledger: &Ledger, field: Option<Field>) -> Vec<Finding> {
    // Assume nftables: its chain comes later than that of iptables, so fewer programs write the mark after it.
    let Some(field) = field else { return Vec::new() };
    // Without a plan, any mark may be one of symroute's.
    let steered = vec![MarkMatch { value: 0, mask: 0 }];
    judged(ledger, &Ours { field, marker: Marker::Nftables, free: None, steered })
}
