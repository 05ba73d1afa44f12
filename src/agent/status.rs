//! State that `/readyz` and `/metrics` report: results of the turns and of the last look.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cause::{Cause, Causes};
use crate::backend::Marker;
use crate::backend::iptables::table_size::Sizes;
use crate::config::Settings;
use crate::model::Field;
use crate::node::View;
use crate::plan::Uplink;

/// Area in which something is wrong. One is enough to make the agent not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Problem {
    /// The agent can't read the settings.
    Source,
    /// The agent can't bring the settings into force.
    Settings,
    /// The agent could not look at the node or repair it.
    Node,
    /// The kernel refuses part of the plan.
    Kernel,
    /// Another program undoes symroute's changes again and again.
    Contested,
    /// The conflist entry is not in place.
    Conflist,
    /// The plugin's binary is not in place.
    Binary,
}

impl Problem {
    /// The problem to report for the managed file with this cause.
    pub(crate) fn of_file(cause: Cause) -> Self {
        if cause == Cause::Binary { Self::Binary } else { Self::Conflist }
    }
}

/// Result of a look at the node. It is large, so [`Board`] keeps only parts of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) settings: Settings,
    pub(crate) view: View,
}

/// Counts since the agent started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) turns: u64,
    /// Duration of the last turn.
    pub(crate) last_turn: Duration,
    /// Reconciles that succeeded.
    pub(crate) reconciles: u64,
    /// Reconciles that failed.
    pub(crate) failures: u64,
    pub(crate) repairs: BTreeMap<Cause, u64>,
    pub(crate) contested: Causes,
    /// How often the agent put a managed file in place, by the file's name.
    pub(crate) puts: BTreeMap<&'static str, u64>,
    /// Attachments now.
    pub(crate) pods: usize,
}

impl Tally {
    pub(crate) fn reconciled(&mut self, done: bool) {
        *(if done { &mut self.reconciles } else { &mut self.failures }) += 1;
    }

    pub(crate) fn repaired(&mut self, causes: &Causes) {
        // For a new pod the flowtable gets a device, which repairs no damage.
        for &cause in causes.iter().filter(|&&cause| cause != Cause::Pods) {
            *self.repairs.entry(cause).or_default() += 1;
        }
    }
}

/// Result of one turn.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// Messages with their remedies.
    pub(crate) problems: BTreeMap<Problem, String>,
    /// What the look found; `None` if the turn did not look at the node, or the look failed.
    pub(crate) found: Option<Found>,
    /// Table sizes of iptables-legacy right before a look that repaired nothing.
    pub(crate) sizes: Option<Sizes>,
    /// Whether the turn did not look at the node, so that the problems of the last look stay.
    pub(crate) keeps_last_look: bool,
    /// Whether the agent gave the node up because the settings serve pods alone.
    pub(crate) for_pods_alone: bool,
    pub(crate) tally: Tally,
}

impl Status {
    pub(crate) fn add_problem(&mut self, what: Problem, outcome: Result<(), String>) {
        if let Err(text) = outcome {
            self.problems.insert(what, text);
        }
    }

    /// Whether the turn has a problem that a retry soon may solve.
    pub(crate) fn failed(&self) -> bool {
        self.problems.keys().any(|problem| {
            !matches!(problem, Problem::Contested | Problem::Conflist | Problem::Kernel)
        })
    }
}

/// Backend that marks packets, and the bits that it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MarkedBy {
    pub(crate) marker: Marker,
    pub(crate) field: Field,
    /// Whether rules put connections into a flowtable.
    pub(crate) offloads: bool,
}

/// State between turns that the HTTP server reads.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub(crate) problems: BTreeMap<Problem, String>,
    pub(crate) uplinks: Vec<Uplink>,
    /// Number of problems that remain although the configuration is in place.
    pub(crate) notes: usize,
    pub(crate) marked_by: Option<MarkedBy>,
    pub(crate) tally: Tally,
    /// Whether a look has succeeded since the start.
    pub(crate) has_looked: bool,
    /// How often the kernel dropped events.
    pub(crate) lost: u64,
    /// Events that led to a look.
    pub(crate) events: u64,
}

impl Board {
    pub(crate) fn update(&mut self, status: Status) {
        let kept = |problem: &Problem| match problem {
            Problem::Settings | Problem::Node | Problem::Kernel => status.keeps_last_look,
            _ => false,
        };
        self.problems.retain(|problem, _| kept(problem));
        self.problems.extend(status.problems);
        self.tally = status.tally;
        if status.for_pods_alone {
            (self.has_looked, self.notes, self.marked_by) = (true, 0, None);
            self.uplinks.clear();
        }
        if let Some(Found { settings, view }) = status.found {
            self.has_looked = true;
            self.notes = view.plan.notes.len();
            self.marked_by = Some(MarkedBy {
                marker: view.plan.marker(),
                field: settings.field,
                offloads: view.plan.offloads(),
            });
            self.uplinks = view.plan.uplinks;
        }
    }

    /// Reasons why the agent is not ready. Empty if it is ready.
    pub(crate) fn unready(&self) -> Vec<&str> {
        let mut reasons: Vec<_> = self.problems.values().map(String::as_str).collect();
        if !self.has_looked {
            reasons.push("the agent has not looked at the node yet");
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_lasts_until_a_look_finds_it_gone() {
        let mut board = Board { has_looked: true, ..Board::default() };
        let mut status = Status::default();
        status.add_problem(Problem::Node, Err("no".into()));
        board.update(status);
        board.update(Status { keeps_last_look: true, ..Status::default() });
        assert_eq!(board.unready(), ["no"]);
        board.update(Status::default());
        assert!(board.unready().is_empty());
    }

    #[test]
    fn an_agent_with_nothing_to_do_is_ready() {
        let mut board = Board::default();
        board.update(Status::default());
        assert_eq!(board.unready().len(), 1);
        board.update(Status { for_pods_alone: true, ..Status::default() });
        assert!(board.unready().is_empty());
    }
}
