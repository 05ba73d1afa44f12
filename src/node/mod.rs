//! A node: its state and its kernel, and the one reconcile that brings what it has to what it
//! should have. The slow path of an ADD, `up`, `down` and the agent call it.
//!
//! [`observe`] reads facts, [`crate::plan`] makes the desired state and the steps to it (pure),
//! [`apply`] carries them out. [`attach`] is what an ADD does, [`proof`] how it sees that nothing
//! has to be done; [`teardown`] is the end.

pub(crate) mod apply;
pub(crate) mod attach;
pub(crate) mod counters;
pub(crate) mod ended;
pub(crate) mod gate;
pub(crate) mod observe;
pub(crate) mod pods;
pub(crate) mod proof;
mod reconcile;
pub(crate) mod sysctl;
pub(crate) mod teardown;
mod unseen;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use crate::backend::iptables::programs::Programs;
use crate::backend::iptables::{ipset, node_set};
use crate::backend::nftables::table;
use crate::config::Settings;
use crate::error::Error;
use crate::model::{Facts, PodFacts};
use crate::names;
use crate::plan::diff::{Operation, diff};
use crate::plan::{Plan, decide};
use crate::state::{Lock, Record, State};
use apply::{Kernel, PATIENCE};
use unseen::Unseen;

/// How long a call waits for the lock where another process can do the work next time: a DEL must
/// not hold up a pod's end.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// The age of the last look at the whole node from which an ADD takes another. An agent looks
/// twice as often.
const OVERDUE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) state: State,
    /// The kernel of this thread's network namespace.
    pub(crate) kernel: Kernel,
    /// What the looks so far were denied.
    pub(crate) unseen: Unseen,
    /// Whether this is a pod, with a data plane of its own.
    is_pod: bool,
    /// The interface of a pod whose DEL is under way.
    leaving: Option<String>,
}

/// A look at a node, without a change.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) facts: Facts,
    /// The settings that the plan is for, with the plugin's choices.
    pub(crate) settings: Settings,
    pub(crate) plan: Plan,
    /// Steps that lead from one to the other; none when all is well.
    pub(crate) steps: Vec<Operation>,
}

impl Node {
    /// The node of this thread's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        Self::of(State::new(names::STATE_DIR))
    }

    /// The same, with its state where a container has the node's.
    pub(crate) fn of(state: State) -> Result<Self, Error> {
        let (kernel, unseen) = (Kernel::open()?, Unseen::default());
        Ok(Self { state, kernel, unseen, is_pod: false, leaving: None })
    }

    /// The pod whose network namespace this thread is in. Its owner is not trusted.
    pub(crate) fn of_pod(state: State, leaving: Option<String>) -> Result<Self, Error> {
        let mut node = Self { is_pod: true, leaving, ..Self::of(state)? };
        node.kernel.distrust()?;
        node.kernel.iptables = Programs::patient(PATIENCE, Some(node.state.record_file()));
        Ok(node)
    }

    /// Begins another look of a command that goes on: the time for a pod's namespace runs anew.
    pub(crate) fn look_again(&mut self) -> Result<(), Error> {
        if self.is_pod {
            self.kernel.distrust()?;
        }
        Ok(())
    }

    /// Whether it is a pod, with a data plane of its own.
    pub(crate) fn is_pod(&self) -> bool {
        self.is_pod
    }

    /// The same node for looks alone: where a user without root may not read nftables, that is noted
    /// in [`Self::unseen`], and is no error.
    pub(crate) fn to_look() -> Result<Self, Error> {
        Ok(Self { unseen: Unseen::noted(), ..Self::open()? })
    }

    /// Waits for the lock. What is left of the patience is for the lock of iptables.
    pub(crate) fn lock(&mut self) -> Result<Lock, Error> {
        self.lock_within(PATIENCE)
    }

    fn lock_within(&mut self, patience: Duration) -> Result<Lock, Error> {
        self.kernel.iptables = Programs::patient(patience, Some(self.state.record_file()));
        self.state.lock(patience)
    }

    /// Whether nothing has looked at the whole node for long, since no agent runs. Of many ADDs
    /// that ask at once, one gets "yes".
    pub(crate) fn is_overdue(state: &State) -> bool {
        // A clock that was set back counts as well.
        let overdue = |at: SystemTime| at.elapsed().map_or(true, |ago| ago > OVERDUE);
        state.last_look().is_some_and(overdue) && state.note_look().is_ok()
    }

    /// Puts right what differs on a node that is in use.
    pub(crate) fn look(&mut self) -> Result<(), Error> {
        let lock = self.lock_within(Duration::ZERO)?;
        // The last pod may have gone since, or other settings may be in force.
        match self.state.record()? {
            Some(record) if !self.state.is_idle()? => {
                self.reconcile(&lock, &record.network, &record.settings)?;
            }
            _ => return Ok(()),
        }
        drop(lock);
        ended::sweep(&self.state, Path::new(names::CACHE_DIR))
    }

    /// The record, from its file or else from the table or ipset itself; then it has no network.
    pub(crate) fn record(&mut self) -> Result<Option<Record>, Error> {
        let record = self.state.record()?;
        // What stands in a pod's namespace may be another program's.
        if record.is_some() || self.is_pod {
            return Ok(record);
        }
        let recovered = self.recovered();
        self.unseen.rules(recovered)
    }

    /// The record as the table or the ipset has it.
    fn recovered(&mut self) -> Result<Option<Record>, Error> {
        let socket = &mut self.kernel.netfilter;
        let mut read = |set| match table::elements(socket, set) {
            Err(error) if observe::is_missing(&error) || error.errno == Errno::ENOENT => {
                Ok(BTreeSet::new())
            }
            other => other.map_err(Error::kernel(format!("read {set} of table inet symroute"))),
        };
        let recovered = Record::recover(&read(names::LAYOUT)?, &read(names::RESTORE)?);
        if recovered.is_some() {
            return Ok(recovered);
        }
        let notes = ipset::set(socket, names::NODE_SET)
            .map_err(Error::kernel(format!("read ipset {}", names::NODE_SET)))?;
        Ok(notes.and_then(|set| Record::recover_noted(node_set::read(&set.members))))
    }

    /// The facts, with the settings that pods have of their own, and the files of such pods that
    /// can't be read.
    fn observe(
        &mut self,
        owned: &[&Settings],
        record: Option<&Record>,
    ) -> Result<(Facts, Vec<PathBuf>), Error> {
        let by_iptables = self.state.is_marked_by_iptables();
        let pod = if self.is_pod { Some(self.pod_facts()?) } else { None };
        let Self { kernel, unseen, .. } = &mut *self;
        let mut facts = observe::facts(kernel, owned, by_iptables, unseen, pod)?;
        facts.restore = record.map_or_else(BTreeSet::new, |r| r.src_valid_mark.clone());
        facts.made = record.map_or_else(BTreeSet::new, |r| r.made.clone());
        let own = self.state.with_own_settings()?;
        for path in &own.unreadable {
            log::warn!("{}: empty or damaged; the attachment is taken as absent", path.display());
        }
        for attachment in own.readable {
            let pods = if attachment.left_out { &mut facts.left_out } else { &mut facts.hairpins };
            pods.extend(attachment.addresses);
        }
        Ok((facts, own.unreadable))
    }

    /// What the attachments of this pod say.
    fn pod_facts(&self) -> Result<PodFacts, Error> {
        let mut gateways = BTreeMap::<String, Vec<IpAddr>>::new();
        for attachment in self.state.attachments()?.readable {
            for (name, routers) in attachment.gateways {
                gateways.entry(name).or_default().extend(routers);
            }
        }
        Ok(PodFacts { gateways, leaving: self.leaving.clone(), ends: self.state.is_idle()? })
    }

    /// Looks at the node without changing it, by the settings in force or else by `fallback`.
    pub(crate) fn view(&mut self, fallback: &Settings) -> Result<View, Error> {
        let record = self.record()?;
        let settings = record.as_ref().map_or_else(|| fallback.clone(), |r| r.settings.clone());
        let owned = record.as_ref().map_or_else(|| vec![&settings], Record::owned);
        let (facts, _) = self.observe(&owned, record.as_ref())?;
        let (settings, plan) = decide(&facts, &settings)?;
        let mut steps = diff(&facts, &plan);
        if self.unseen.hides_rules() {
            // What is not seen is not missing.
            steps.retain(|step| !step.is_netfilter());
        }
        Ok(View { facts, settings, plan, steps })
    }

    /// The same for settings that can't hold here: nothing is planned.
    pub(crate) fn view_without_plan(&mut self, settings: &Settings) -> Result<View, Error> {
        let (facts, _) = self.observe(&[settings], None)?;
        let (settings, plan) = (settings.clone(), Plan::default());
        Ok(View { facts, settings, plan, steps: Vec::new() })
    }
}
