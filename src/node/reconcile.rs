//! The reconcile: observes and changes the node until nothing is left to do.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Node;
use super::apply::Applied;
use super::{observe, proof};
use crate::config::{Settings, file};
use crate::error::Error;
use crate::model::Facts;
use crate::netlink::route;
use crate::plan::diff::{diff, flush_flows};
use crate::plan::{Plan, decide, routers, uplinks};
use crate::state::{Lock, Ready, Record, State};

/// Maximum number of rounds, if the node keeps changing.
const ROUNDS: u32 = 8;
/// Maximum time for routers to answer. A router on the same network answers far sooner.
const RESOLVED_WITHIN: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(5);

impl Node {
    /// Brings the node to the settings `asked`, in the name of `network`. Atomic for traffic. After an error
    /// the node is as it was.
    pub(crate) fn reconcile(
        &mut self,
        _lock: &Lock,
        network: &str,
        asked: &Settings,
    ) -> Result<Plan, Error> {
        self.state.migrate()?;
        let record = self.record()?;
        if let Some(record) = &record {
            self.check_agreement(record, network, asked)?;
        }
        let same = |r: &&Record| r.settings.fulfil(asked) && !r.network.is_empty();
        // The name of the network that brought the settings in force, if they fulfil what is asked.
        let leader = record.as_ref().filter(same).map_or(network, |r| &r.network).to_string();
        let mut settings =
            record.as_ref().map_or_else(|| asked.clone(), |r| r.settle(network, asked));
        let mut rounds = 1..ROUNDS;
        let mut may_resolve = true;
        loop {
            let last = rounds.next().is_none();
            match self.round(&leader, &mut settings, std::mem::take(&mut may_resolve)) {
                Ok(Round::Settled(plan)) => return Ok(plan),
                Ok(Round::Changed(plan)) if last => return Ok(plan),
                Ok(Round::Changed(_)) => {}
                Err(Interrupted::Passing(error)) if last => return Err(error),
                Err(Interrupted::Passing(error)) => log::info!("another round: {error}"),
                Err(Interrupted::Final(error)) => return Err(error),
            }
        }
    }

    /// Checks whether a reconcile could bring the node to the settings `asked`. Changes nothing.
    pub(crate) fn try_out(&mut self, network: &str, asked: &Settings) -> Result<(), Error> {
        let record = self.record()?;
        if let Some(record) = &record {
            self.check_agreement(record, network, asked)?;
        }
        let settings = record.as_ref().map_or_else(|| asked.clone(), |r| r.settle(network, asked));
        let previous = others_of(record.as_ref(), &settings);
        let owned: Vec<&Settings> = std::iter::once(&settings).chain(&previous).collect();
        let (facts, _) = self.observe(&owned, record.as_ref())?;
        decide(&facts, &settings)?;
        Ok(())
    }

    /// Observes the node once and executes the steps. Writes the plugin's choices into `settings`.
    fn round(
        &mut self,
        network: &str,
        settings: &mut Settings,
        may_resolve: bool,
    ) -> Result<Round, Interrupted> {
        let record = self.record()?;
        let previous = others_of(record.as_ref(), settings);
        let owned: Vec<&Settings> = std::iter::once(&*settings).chain(&previous).collect();
        let unsettled = self.state.unsettled();
        let (mut facts, unreadable) = self.observe(&owned, record.as_ref())?;
        if may_resolve {
            self.resolve_routers(&mut facts, settings)?;
        }
        let (chosen, plan) = decide(&facts, settings).map_err(Error::from)?;
        *settings = chosen;
        let steps = diff(&facts, &plan);
        let from = record.as_ref().filter(|r| r.network == network);
        let mut next = Record {
            network: network.into(),
            settings: settings.clone(),
            conflist: from.and_then(|r| r.conflist.clone()),
            previous: others_of(record.as_ref(), settings),
            src_valid_mark: facts.restore.union(&plan.restore).copied().collect(),
            made_chains: facts.made_chains.union(&plan.made_chains).cloned().collect(),
        };
        // Written before the kernel changes, so that a later call can clean up after a kill at any point.
        if !steps.is_empty() {
            self.state.set_record(&next)?;
            self.state.unset_ready()?;
            match self.kernel.apply(&steps, &facts) {
                Ok(Applied::Something) => {
                    let flush = flush_flows(&facts, &plan, &steps);
                    // A failed flush is no reason to undo the change.
                    for error in self.kernel.apply_all(flush.as_slice(), &facts) {
                        log::error!("flush the flowtable: {error}");
                    }
                    return Ok(Round::Changed(plan));
                }
                // All remaining steps are impossible on this kernel.
                Ok(Applied::Nothing) => {}
                Err(error) => {
                    if let Some(record) = record {
                        self.state.set_record(&record)?;
                    } else if let Err(also) = self.undo_all(&next) {
                        // The record stays, so that a later call can clean up.
                        log::error!("undo: {also}");
                    }
                    return Err(Interrupted::classify(error));
                }
            }
        }
        State::sweep(&unreadable)?;
        self.state.set_marker(plan.marker())?;
        next.previous.clear();
        next.src_valid_mark.clone_from(&plan.restore);
        next.made_chains.clone_from(&plan.made_chains);
        if self.state.record()?.as_ref() == Some(&next) {
            self.state.note_look()?;
        } else {
            self.state.set_record(&next)?;
        }
        let ordinary = proof::ordinary_ways(&mut self.kernel, &facts);
        self.state.set_ready(&Ready {
            marker: plan.marker(),
            fingerprint: settings.fingerprint(facts.ipvs),
            fulfils: settings.fulfilled(facts.ipvs),
            questions: plan.proof.clone(),
            offloads: plan.offloads(),
            ordinary: ordinary.map_err(Error::kernel("ask where packets go"))?,
        })?;
        self.state.settle(unsettled)?;
        Ok(Round::Settled(plan))
    }

    /// Asks the kernel to resolve the routers whose hardware address it does not know, and waits a moment. A
    /// later reconcile sees the routers that answer later.
    fn resolve_routers(&mut self, facts: &mut Facts, settings: &Settings) -> Result<(), Error> {
        let socket = &mut self.kernel.rtnetlink;
        // The plan reports wrong settings.
        let Ok(chosen) = uplinks::choose(facts, settings) else { return Ok(()) };
        let unknown: Vec<_> = routers::candidates(facts, settings, chosen.into_iter())
            .filter(|key| !facts.neighbours.contains_key(key))
            .collect();
        for &(link, ip) in &unknown {
            // An error means, for example, that the interface is down, which `status` reports.
            let _ = route::resolve(socket, link, ip);
        }
        let deadline = Instant::now() + RESOLVED_WITHIN;
        let missing = |facts: &Facts| unknown.iter().any(|key| !facts.neighbours.contains_key(key));
        while missing(facts) && Instant::now() < deadline {
            thread::sleep(PAUSE);
            facts.neighbours = observe::routers(socket, facts, settings)?;
        }
        Ok(())
    }

    /// Removes everything after a failed first reconcile. That includes the failed step: the kernel may have
    /// executed it, and only the answer was lost.
    fn undo_all(&mut self, made: &Record) -> Result<(), Error> {
        let (facts, _) = self.observe(&made.owned(), Some(made))?;
        for error in self.kernel.apply_all(&diff(&facts, &Plan::default()), &facts) {
            log::error!("undo: {error}");
        }
        Ok(self.state.clear()?)
    }

    /// Checks that another network in use has the same settings. A network is in use while it has a pod on this
    /// node or a conflist that names it.
    /// Error: the first setting that differs.
    fn check_agreement(
        &self,
        record: &Record,
        network: &str,
        settings: &Settings,
    ) -> Result<(), Error> {
        // A recovered record has no network and does not know all settings.
        let same = record.network == network || record.network.is_empty();
        let Some((key, asks, in_force)) = settings.differing(&record.settings).filter(|_| !same)
        else {
            return Ok(());
        };
        let is_listed =
            || record.conflist.as_deref().is_some_and(|path| is_conflist_of(path, &record.network));
        if !is_listed() && !self.state.has_attachment_of(&record.network)? {
            log::info!("network \"{}\" is no longer in use", record.network);
            return Ok(());
        }
        Err(Error::Disagreement {
            key,
            asks: (network.into(), asks.to_string()),
            in_force: (record.network.clone(), in_force.to_string()),
        })
    }

    /// Records the conflist that the settings of `network` came from, if they are in force.
    pub(crate) fn note_conflist(&mut self, network: &str, path: &Path) -> Result<(), Error> {
        let Some(record) = self.state.record()? else { return Ok(()) };
        if record.network == network && record.conflist.as_deref() != Some(path) {
            self.state.set_record(&Record { conflist: Some(path.into()), ..record })?;
        }
        Ok(())
    }
}

/// Earlier settings, except `settings`, by which symroute's state may still be on the node.
fn others_of(record: Option<&Record>, settings: &Settings) -> Vec<Settings> {
    let mut others: Vec<Settings> = Vec::new();
    for old in record.iter().flat_map(|r| r.owned()) {
        if old != settings && !others.contains(old) {
            others.push(old.clone());
        }
    }
    others
}

/// Whether the conflist still belongs to this network and names symroute.
fn is_conflist_of(path: &Path, network: &str) -> bool {
    file::read(path, false).is_ok_and(|file| file.network.as_deref() == Some(network))
}

enum Round {
    /// Nothing is left to do.
    Settled(Plan),
    /// Something was changed. Another round shows whether that was all.
    Changed(Plan),
}

/// Why a round did not finish.
enum Interrupted {
    /// The node changed between observation and steps: another round may succeed.
    Passing(Error),
    Final(Error),
}

impl<E: Into<Error>> From<E> for Interrupted {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

impl Interrupted {
    fn classify(error: Error) -> Self {
        let Error::Kernel { source, .. } = &error else { return Self::Final(error) };
        // An interface was removed or set down.
        match source.errno {
            Errno::ENETDOWN | Errno::ENODEV | Errno::ENETUNREACH => Self::Passing(error),
            _ => Self::Final(error),
        }
    }
}
