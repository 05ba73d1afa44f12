//! One turn of the agent: reads the settings, looks at the node, and repairs the differences.

use std::path::PathBuf;
use std::time::Instant;

use super::cause::{Cause, Causes};
use super::managed_file::Keeper;
use super::pace::Repairs;
use super::status::{Found, Problem, Status, Tally};
use crate::backend::iptables::table_size;
use crate::config::source::{NetworkConfig, Reader, SettingsSource};
use crate::error::Error;
use crate::model::Variant;
use crate::node::apply::describe;
use crate::node::{Node, ended};
use crate::plan::diff::Operation;
use crate::state::Record;

/// Name of the agent's hold on the node state. The hold stays when the agent stops.
pub(crate) const HOLD: &str = "agent";

/// Makes the turns. A turn blocks, so it runs on a thread of its own.
#[derive(Debug)]
pub(crate) struct Healer {
    /// Opened by the first turn that needs the kernel.
    node: Option<Node>,
    source: SettingsSource,
    keepers: Vec<Keeper>,
    /// The runtime's directory of cached CNI results.
    cache: PathBuf,
    /// Settings that `source` had last.
    wanted: Option<NetworkConfig>,
    /// Whether iptables-legacy marked at the last look.
    minds_legacy: bool,
    /// Steps that remained after a reconcile because the kernel refuses them.
    stuck: Vec<Operation>,
    /// Whether the agent gave the node up because the settings serve pods alone.
    gave_up_node: bool,
    /// Problems that are in the log already.
    noted: Vec<String>,
    pub(crate) repairs: Repairs,
    tally: Tally,
}

impl Healer {
    /// A healer that keeps the settings of `source` in force. While `source` has none, it keeps the
    /// settings that are in force.
    pub(crate) fn new(source: SettingsSource, keepers: Vec<Keeper>, cache: PathBuf) -> Self {
        Self {
            node: None,
            source,
            keepers,
            cache,
            wanted: None,
            minds_legacy: false,
            stuck: Vec::new(),
            gave_up_node: false,
            noted: Vec::new(),
            repairs: Repairs::default(),
            tally: Tally::default(),
        }
    }

    /// Makes one turn for these causes. Goes on after a failure; the status has the problems.
    pub(crate) fn turn(&mut self, causes: &Causes) -> Status {
        let begin = Instant::now();
        let mut status = Status::default();
        // Before the settings are read: a keeper may write the conflist that they come from.
        for keeper in &mut self.keepers {
            // In every turn, because each status has all problems. Cheap if the file is in place.
            let outcome = keeper.keep(Instant::now());
            status.add_problem(Problem::of_file(keeper.cause()), outcome);
            self.tally.puts.insert(keeper.name(), keeper.puts);
        }
        let before = self.wanted.clone();
        match self.source.read(Reader::Agent) {
            Ok(Some(found)) => self.wanted = Some(found),
            // The file is gone, for a moment or for good: the settings in force stay.
            Ok(None) => {}
            Err(error) => status.add_problem(Problem::Source, Err(error)),
        }
        let news = self.wanted != before;
        if news || causes.iter().any(|cause| cause.is_of_kernel()) {
            let looked = self.look(causes, &mut status);
            status.add_problem(Problem::Node, looked.map_err(|error| text(&error)));
        } else {
            status.keeps_last_look = true;
        }
        let contested = self.repairs.contested(Instant::now());
        if !contested.is_empty() {
            let names: Vec<_> = contested.iter().map(|cause| cause.name()).collect();
            let text = format!(
                "another program undoes symroute's changes again and again ({}), so repairs wait \
                 some seconds; find the program that flushes or rewrites them",
                names.join(", ")
            );
            status.add_problem(Problem::Contested, Err(text));
        }
        self.tally.contested = contested;
        if let Some(node) = &self.node {
            if causes.iter().any(|cause| cause.is_periodic()) {
                let swept = ended::sweep(&node.state, &self.cache);
                status.add_problem(Problem::Node, swept.map_err(|error| error.to_string()));
            }
            self.tally.pods = node.state.count().unwrap_or(self.tally.pods);
        }
        self.tally.turns += 1;
        self.tally.last_turn = begin.elapsed();
        status.tally = self.tally.clone();
        self.note(&status);
        status
    }

    /// Settings to bring into force. `None` if they serve pods alone, or if there are no settings
    /// and the conflist entry is refused.
    fn target(&mut self) -> Result<Option<NetworkConfig>, Error> {
        let node = open(&mut self.node)?;
        if let Some(wanted) = &self.wanted {
            return Ok(Some(wanted.clone()).filter(|wanted| wanted.config.scope.host));
        }
        if let Some(record) = node.state.record()? {
            return Ok(Some(record.into()));
        }
        let default = Reader::Agent.default_config();
        let of_entry = self.keepers.iter().find(|keeper| keeper.cause() == Cause::Conflist);
        Ok(match of_entry {
            Some(entry) => entry.settings().map(|config| NetworkConfig { config, ..default }),
            None => Some(default),
        })
    }

    /// Gives the node up if the settings serve pods alone. Otherwise changes nothing.
    fn give_up_node_if_for_pods(
        &mut self,
        causes: &Causes,
        status: &mut Status,
    ) -> Result<(), Error> {
        let Some(wanted) = self.wanted.as_ref().filter(|wanted| !wanted.config.scope.host) else {
            return Ok(());
        };
        let (node, network) = (open(&mut self.node)?, wanted.network.clone());
        node.give_up(HOLD, &network)?;
        // Attached pods need the node state until they end.
        if let Some(record) = node.state.record()?.filter(|_| !node.state.is_idle().unwrap_or(true))
        {
            return self.compare(&record.into(), causes, status);
        }
        (status.for_pods_alone, self.gave_up_node) = (true, true);
        Ok(())
    }

    /// Brings the settings into force if they are not yet, then looks at the whole node.
    fn look(&mut self, causes: &Causes, status: &mut Status) -> Result<(), Error> {
        let Some(target) = self.target()? else {
            return self.give_up_node_if_for_pods(causes, status);
        };
        let gave_up_node = std::mem::take(&mut self.gave_up_node);
        crate::logging::start(&target.config.log);
        let node = open(&mut self.node)?;
        let record = node.state.record()?;
        let settings = &target.config.settings;
        // `previous` is not empty if a call was killed before it completed a change of settings.
        let is_settled =
            |r: &Record| r.settle(&target.network, settings) == r.settings && r.previous.is_empty();
        let in_force = record.as_ref().is_some_and(is_settled)
            && node
                .state
                .holders()?
                .iter()
                .any(|(name, network)| name == HOLD && *network == target.network);
        if !in_force {
            // A missing record was removed by another program, unless this agent has just started
            // or gave the node up itself.
            let repair = record.is_none() && !causes.contains(&Cause::Start) && !gave_up_node;
            let enforced = enforce(node, &target, causes);
            self.tally.reconciled(enforced.is_ok());
            if repair && enforced.is_ok() {
                self.repairs.made(causes, Instant::now());
                self.tally.repaired(causes);
            }
            if let Err(error) = enforced {
                status.add_problem(Problem::Settings, Err(text(&error)));
            }
        }
        // In every look: a killed agent may not have written it.
        if let Some(path) = &target.conflist {
            open(&mut self.node)?.note_conflist(&target.network, path)?;
        }
        self.compare(&target, causes, status)
    }

    /// Compares the node with the settings in force, and repairs the differences.
    fn compare(
        &mut self,
        target: &NetworkConfig,
        causes: &Causes,
        status: &mut Status,
    ) -> Result<(), Error> {
        let node = open(&mut self.node)?;
        // Before the view, so that the next poll notices a change between the two. Only where
        // iptables-legacy marks: the kernel creates a table when a program asks for its size.
        let sizes = self.minds_legacy.then(table_size::sizes);
        let mut view = node.view(&target.config.settings)?;
        let refused = view.steps == self.stuck && !causes.iter().any(|cause| cause.is_of_routing());
        if !view.steps.is_empty() && !refused {
            let what: Vec<_> = view.steps.iter().map(|s| describe(s, &view.facts)).collect();
            log::info!("the node differs ({}): {}", names_of(causes), what.join("; "));
            let record = node.record()?;
            let (network, settings) = match &record {
                Some(record) => (record.network.clone(), record.settings.clone()),
                None => (target.network.clone(), target.config.settings.clone()),
            };
            let lock = node.lock()?;
            let outcome = node.reconcile(&lock, &network, &settings);
            drop(lock);
            self.tally.reconciled(outcome.is_ok());
            outcome?;
            let left = node.view(&target.config.settings)?;
            if !causes.contains(&Cause::Start) {
                self.repairs.made(causes, Instant::now());
                self.tally.repaired(causes);
            }
            // The kernel may refuse routes alone. Other steps that remain are a newer change by
            // another program, and the kernel reports an event for that.
            let refused = left.steps == view.steps && of_routes_alone(&left.steps);
            self.stuck = if refused { left.steps.clone() } else { Vec::new() };
            view = left;
        } else {
            if view.steps.is_empty() {
                self.stuck.clear();
            }
            status.sizes = sizes;
        }
        self.minds_legacy =
            view.plan.xtables.as_ref().is_some_and(|x| x.variant == Variant::Legacy);
        // Otherwise the next ADD would look at the whole node itself.
        node.state.note_look()?;
        if !self.stuck.is_empty() {
            let what: Vec<_> = self.stuck.iter().map(|s| describe(s, &view.facts)).collect();
            let text = format!("the kernel refuses: {}; see its log", what.join("; "));
            status.add_problem(Problem::Kernel, Err(text));
        }
        let settings = node
            .state
            .record()?
            .map_or_else(|| target.config.settings.clone(), |record| record.settings);
        status.found = Some(Found { settings, view });
        Ok(())
    }

    /// Logs the problems of the status that the last status did not have.
    fn note(&mut self, status: &Status) {
        let now: Vec<String> = status.problems.values().cloned().collect();
        for text in now.iter().filter(|text| !self.noted.contains(text)) {
            log::error!("agent: {text}");
        }
        self.noted = now;
    }
}

fn open(node: &mut Option<Node>) -> Result<&mut Node, Error> {
    match node {
        Some(node) => Ok(node),
        None => Ok(node.insert(Node::open()?)),
    }
}

/// Brings the settings into force and holds the node state. The hold moves to the new network
/// first: otherwise the reconcile would refuse that network because of the agent's own hold.
fn enforce(node: &mut Node, target: &NetworkConfig, causes: &Causes) -> Result<(), Error> {
    log::info!("network \"{}\" comes into force ({})", target.network, names_of(causes));
    let lock = node.lock()?;
    let held = node.state.holders()?.into_iter().find(|(name, _)| name == HOLD);
    node.state.hold(HOLD, &target.network)?;
    let outcome = node.reconcile(&lock, &target.network, &target.config.settings);
    match (&outcome, held) {
        (Ok(plan), _) => plan.notes.iter().for_each(|note| log::warn!("{note}")),
        (Err(_), Some((_, before))) if before != target.network => {
            node.state.hold(HOLD, &before)?;
        }
        (Err(_), None) => node.state.release(HOLD)?,
        (Err(_), Some(_)) => {}
    }
    outcome.map(drop)
}

/// Whether all steps add or replace routes. Only such steps can the kernel refuse one by one.
fn of_routes_alone(steps: &[Operation]) -> bool {
    let route =
        |step: &Operation| matches!(step, Operation::AddRoute(_) | Operation::ReplaceRoute { .. });
    steps.iter().all(route)
}

fn names_of(causes: &Causes) -> String {
    causes.iter().map(|cause| cause.name()).collect::<Vec<_>>().join(", ")
}

fn text(error: &Error) -> String {
    error.remedy().map_or_else(|| error.to_string(), |remedy| format!("{error}; {remedy}"))
}
