//! What the agent knows of itself and of the node: the source of readiness and metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cause::{Cause, Causes};
use crate::backend::Marker;
use crate::backend::iptables::table_size::Sizes;
use crate::config::Settings;
use crate::model::Field;
use crate::node::View;
use crate::plan::Uplink;

/// Where something is wrong. Each makes the agent not ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Problem {
    /// The settings can't be read.
    Source,
    /// The settings can't be put in force.
    Settings,
    /// The node could not be looked at or put right.
    Node,
    /// The kernel refuses part of the plan.
    Kernel,
    /// Somebody undoes us again and again.
    Contested,
    /// The entry in the conflist.
    Conflist,
    /// The plugin's binary.
    Binary,
}

impl Problem {
    /// The problem that a managed file has.
    pub(crate) fn of_file(cause: Cause) -> Self {
        if cause == Cause::Binary { Self::Binary } else { Self::Conflist }
    }
}

/// What a look found; large, and not kept.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) settings: Settings,
    pub(crate) view: View,
}

/// What was done since the beginning.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Turns of the loop.
    pub(crate) turns: u64,
    /// How long the last one took.
    pub(crate) last_turn: Duration,
    /// Reconciles that changed the node.
    pub(crate) reconciles: u64,
    /// Reconciles that failed.
    pub(crate) failures: u64,
    pub(crate) repairs: BTreeMap<Cause, u64>,
    pub(crate) contested: Causes,
    /// How often things on the disk were put in place.
    pub(crate) puts: BTreeMap<&'static str, u64>,
    /// Attachments.
    pub(crate) pods: usize,
}

impl Tally {
    pub(crate) fn reconciled(&mut self, done: bool) {
        *(if done { &mut self.reconciles } else { &mut self.failures }) += 1;
    }

    pub(crate) fn repaired(&mut self, causes: &Causes) {
        // A new pod is no damage.
        for &cause in causes.iter().filter(|&&cause| cause != Cause::Pods) {
            *self.repairs.entry(cause).or_default() += 1;
        }
    }
}

/// What one turn leads to.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// What is wrong, by where.
    pub(crate) problems: BTreeMap<Problem, String>,
    /// What was found, if the node was looked at.
    pub(crate) found: Option<Found>,
    /// The sizes of the tables of iptables-legacy right before a look that repaired nothing.
    pub(crate) sizes: Option<Sizes>,
    /// Whether the node was not looked at, so that what was wrong still is.
    pub(crate) keeps_last_look: bool,
    /// Whether the settings serve pods alone: there is nothing to find on the node.
    pub(crate) for_pods_alone: bool,
    pub(crate) tally: Tally,
}

impl Status {
    pub(crate) fn say(&mut self, what: Problem, outcome: Result<(), String>) {
        if let Err(text) = outcome {
            self.problems.insert(what, text);
        }
    }

    /// Whether the next look should come soon.
    pub(crate) fn failed(&self) -> bool {
        self.problems.keys().any(|problem| {
            !matches!(problem, Problem::Contested | Problem::Conflist | Problem::Kernel)
        })
    }
}

/// What marks, and by which bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MarkedBy {
    pub(crate) marker: Marker,
    pub(crate) field: Field,
    /// Whether connections are put into a flowtable.
    pub(crate) offloads: bool,
}

/// What is kept between turns, for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub(crate) problems: BTreeMap<Problem, String>,
    pub(crate) uplinks: Vec<Uplink>,
    /// How many things are off although all is in place.
    pub(crate) notes: usize,
    pub(crate) marked_by: Option<MarkedBy>,
    pub(crate) tally: Tally,
    pub(crate) looked: bool,
    /// Events that the kernel dropped.
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
            (self.looked, self.notes, self.marked_by) = (true, 0, None);
            self.uplinks.clear();
        }
        if let Some(Found { settings, view }) = status.found {
            self.looked = true;
            self.notes = view.plan.notes.len();
            self.marked_by = Some(MarkedBy {
                marker: view.plan.marker(),
                field: settings.field,
                offloads: view.plan.offloads(),
            });
            self.uplinks = view.plan.uplinks;
        }
    }

    /// What keeps the agent from being ready; nothing when it is.
    pub(crate) fn unready(&self) -> Vec<&str> {
        let mut reasons: Vec<_> = self.problems.values().map(String::as_str).collect();
        if !self.looked {
            reasons.push("the node was not looked at yet");
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_lasts_until_a_look_finds_it_gone() {
        let mut board = Board { looked: true, ..Board::default() };
        let mut status = Status::default();
        status.say(Problem::Node, Err("no".into()));
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
