//! One turn of the agent: what is wanted, a look at the node, and what differs is put right.

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

/// Name of the hold that the agent has on the node state. It stays when the agent stops.
pub(crate) const HOLD: &str = "agent";

/// What a turn works on. It blocks, so it has a thread of its own.
#[derive(Debug)]
pub(crate) struct Healer {
    node: Option<Node>,
    source: SettingsSource,
    keepers: Vec<Keeper>,
    cache: PathBuf,
    wanted: Option<NetworkConfig>,
    /// Whether iptables-legacy marked when the node was last looked at.
    minds_legacy: bool,
    /// Steps that were left after a reconcile: the kernel refuses them.
    stuck: Vec<Operation>,
    /// Whether the settings served pods alone when they were looked at last.
    rested: bool,
    /// What the log was last told.
    noted: Vec<String>,
    pub(crate) repairs: Repairs,
    tally: Tally,
}

impl Healer {
    /// Keeps the settings of `source` in force; while it has none, those that are.
    pub(crate) fn new(source: SettingsSource, keepers: Vec<Keeper>, cache: PathBuf) -> Self {
        Self {
            node: None,
            source,
            keepers,
            cache,
            wanted: None,
            minds_legacy: false,
            stuck: Vec::new(),
            rested: false,
            noted: Vec::new(),
            repairs: Repairs::default(),
            tally: Tally::default(),
        }
    }

    /// Looks at what the causes are about and puts it right. Goes on after a failure; what is
    /// wrong is in the status.
    pub(crate) fn turn(&mut self, causes: &Causes) -> Status {
        let begin = Instant::now();
        let mut status = Status::default();
        // The entry in the conflist comes before the settings are read from it.
        for keeper in &mut self.keepers {
            // Cheap where all is well, and each status has to tell its problem.
            let outcome = keeper.keep(Instant::now());
            status.say(Problem::of_file(keeper.cause()), outcome);
            self.tally.puts.insert(keeper.name(), keeper.puts);
        }
        let before = self.wanted.clone();
        match self.source.read(Reader::Agent) {
            Ok(Some(found)) => self.wanted = Some(found),
            // Gone for a moment, or for good: what is in force stays.
            Ok(None) => {}
            Err(error) => status.say(Problem::Source, Err(error)),
        }
        let news = self.wanted != before;
        if news || causes.iter().any(|cause| cause.is_of_kernel()) {
            let looked = self.look(causes, &mut status);
            status.say(Problem::Node, looked.map_err(|error| text(&error)));
        } else {
            status.keeps_last_look = true;
        }
        let contested = self.repairs.contested(Instant::now());
        if !contested.is_empty() {
            let names: Vec<_> = contested.iter().map(|cause| cause.name()).collect();
            let text = format!(
                "somebody undoes us again and again ({}), so repairs wait some seconds; find who \
                 flushes or rewrites them",
                names.join(", ")
            );
            status.say(Problem::Contested, Err(text));
        }
        self.tally.contested = contested;
        if let Some(node) = &self.node {
            if causes.iter().any(|cause| cause.is_general()) {
                let swept = ended::sweep(&node.state, &self.cache);
                status.say(Problem::Node, swept.map_err(|error| error.to_string()));
            }
            self.tally.pods = node.state.count().unwrap_or(self.tally.pods);
        }
        self.tally.turns += 1;
        self.tally.last_turn = begin.elapsed();
        status.tally = self.tally.clone();
        self.note(&status);
        status
    }

    /// What is to be in force. None where that is the entry's business, which is refused, and where the
    /// settings serve pods alone: then the node stays as it is.
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

    /// Gives up a node whose settings serve pods alone from now on.
    fn let_go(&mut self, causes: &Causes, status: &mut Status) -> Result<(), Error> {
        let Some(wanted) = self.wanted.as_ref().filter(|wanted| !wanted.config.scope.host) else {
            return Ok(());
        };
        let (node, network) = (open(&mut self.node)?, wanted.network.clone());
        node.give_up(HOLD, &network)?;
        // Pods that are attached need the node until they end.
        if let Some(record) = node.state.record()?.filter(|_| !node.state.is_idle().unwrap_or(true))
        {
            return self.compare(&record.into(), causes, status);
        }
        (status.for_pods_alone, self.rested) = (true, true);
        Ok(())
    }

    fn look(&mut self, causes: &Causes, status: &mut Status) -> Result<(), Error> {
        let Some(target) = self.target()? else { return self.let_go(causes, status) };
        let rested = std::mem::take(&mut self.rested);
        crate::logging::start(&target.config.log);
        let node = open(&mut self.node)?;
        let record = node.state.record()?;
        let settings = &target.config.settings;
        // Former settings stand in the record until a change to others is complete: a call may have
        // been killed before that.
        let is_settled =
            |r: &Record| r.settle(&target.network, settings) == r.settings && r.previous.is_empty();
        let in_force = record.as_ref().is_some_and(is_settled)
            && node
                .state
                .holders()?
                .iter()
                .any(|(name, network)| name == HOLD && *network == target.network);
        if !in_force {
            // Another program has removed a record that vanished, unless this agent did.
            let repair = record.is_none() && !causes.contains(&Cause::Start) && !rested;
            let enforced = enforce(node, &target, causes);
            self.tally.reconciled(enforced.is_ok());
            if repair && enforced.is_ok() {
                self.repairs.made(causes, Instant::now());
                self.tally.repaired(causes);
            }
            if let Err(error) = enforced {
                status.say(Problem::Settings, Err(text(&error)));
            }
        }
        // An agent that was killed may have left it out.
        if let Some(path) = &target.conflist {
            open(&mut self.node)?.note_conflist(&target.network, path)?;
        }
        self.compare(&target, causes, status)
    }

    /// Looks whether the node is as the settings in force want it, and puts right what is not.
    fn compare(
        &mut self,
        target: &NetworkConfig,
        causes: &Causes,
        status: &mut Status,
    ) -> Result<(), Error> {
        let node = open(&mut self.node)?;
        // Read first: a change between the two makes the next poll differ. Where another backend
        // marks, the question alone would make the tables.
        let sizes = self.minds_legacy.then(table_size::sizes);
        let mut view = node.view(&target.config.settings)?;
        let refused = view.steps == self.stuck && !causes.iter().any(|cause| cause.is_of_routing());
        if !view.steps.is_empty() && !refused {
            let what: Vec<_> = view.steps.iter().map(|s| describe(s, &view.facts)).collect();
            log::info!("off ({}): {}", names_of(causes), what.join("; "));
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
            // Of what is left after that, the rest was done to us since; an event tells of it.
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
        // So that no ADD does what is done here.
        node.state.note_look()?;
        if !self.stuck.is_empty() {
            let what: Vec<_> = self.stuck.iter().map(|s| describe(s, &view.facts)).collect();
            let text = format!("the kernel refuses: {}; see its log", what.join("; "));
            status.say(Problem::Kernel, Err(text));
        }
        let settings = node
            .state
            .record()?
            .map_or_else(|| target.config.settings.clone(), |record| record.settings);
        status.found = Some(Found { settings, view });
        Ok(())
    }

    /// Tells the log what is new about the status.
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

/// Brings the node to the settings and holds it. The hold changes hands first: else a network
/// that takes over from another, or from no network, would disagree with our own hold.
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

/// Whether nothing differs but routes: those are what the kernel may refuse alone.
fn of_routes_alone(steps: &[Operation]) -> bool {
    let route =
        |step: &Operation| matches!(step, Operation::AddRoute(_) | Operation::ReplaceRoute { .. });
    steps.iter().all(route)
}

fn names_of(causes: &Causes) -> String {
    causes.iter().map(|cause| cause.name()).collect::<Vec<_>>().join(", ")
}

fn text(error: &Error) -> String {
    error.way_out().map_or_else(|| error.to_string(), |way_out| format!("{error}; {way_out}"))
}
