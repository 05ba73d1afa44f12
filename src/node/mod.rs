//! A node: its state directory, its kernel, and the one reconcile that brings the kernel to the desired state.
//! The slow path of an ADD, `up`, `down` and the agent call it.
//!
//! [`observe`] reads facts, [`crate::plan`] computes the desired state and the steps (pure), and [`apply`]
//! executes them. [`attach`] does an ADD, [`proof`] proves that a node is ready, and [`teardown`] removes node
//! state.

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

/// How long a call waits for the lock if a later call can do the work. A DEL must not delay the end of a pod.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// Maximum age of the last look at the whole node before an ADD reconciles. The agent's default interval is half
/// of that.
const OVERDUE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) state: State,
    /// The kernel of this thread's network namespace.
    pub(crate) kernel: Kernel,
    /// Rules that this process was not permitted to read.
    pub(crate) unseen: Unseen,
    /// Whether this is a pod with a data plane of its own.
    is_pod: bool,
    /// The interface of the pod that a DEL is removing.
    leaving: Option<String>,
}

/// The facts of a node and the plan for them, without any change.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) facts: Facts,
    /// The settings of the plan, with the plugin's choices for "auto".
    pub(crate) settings: Settings,
    pub(crate) plan: Plan,
    /// Steps from the facts to the plan; empty if the node is healthy.
    pub(crate) steps: Vec<Operation>,
}

impl Node {
    /// Opens the node of this thread's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        Self::with_state(State::new(names::STATE_DIR))
    }

    /// Opens the node with another state directory, as a container needs.
    pub(crate) fn with_state(state: State) -> Result<Self, Error> {
        let (kernel, unseen) = (Kernel::open()?, Unseen::default());
        Ok(Self { state, kernel, unseen, is_pod: false, leaving: None })
    }

    /// Opens the pod whose network namespace this thread is in. The pod may be hostile.
    pub(crate) fn of_pod(state: State, leaving: Option<String>) -> Result<Self, Error> {
        let mut node = Self { is_pod: true, leaving, ..Self::with_state(state)? };
        node.kernel.distrust()?;
        node.kernel.iptables = Programs::patient(PATIENCE, Some(node.state.record_file()));
        Ok(node)
    }

    /// Starts another observation of a command that goes on: the time limit for a pod's namespace starts again.
    pub(crate) fn look_again(&mut self) -> Result<(), Error> {
        if self.is_pod {
            self.kernel.distrust()?;
        }
        Ok(())
    }

    /// Whether this is a pod with a data plane of its own.
    pub(crate) fn is_pod(&self) -> bool {
        self.is_pod
    }

    /// Opens the node for reading only. Rules that a user without root may not read are noted in
    /// [`Self::unseen`] and are no error.
    pub(crate) fn to_look() -> Result<Self, Error> {
        Ok(Self { unseen: Unseen::noted(), ..Self::open()? })
    }

    /// Waits for the lock. The rest of the waiting time is for the lock of iptables.
    pub(crate) fn lock(&mut self) -> Result<Lock, Error> {
        self.lock_within(PATIENCE)
    }

    fn lock_within(&mut self, patience: Duration) -> Result<Lock, Error> {
        self.kernel.iptables = Programs::patient(patience, Some(self.state.record_file()));
        self.state.lock(patience)
    }

    /// Whether an ADD should reconcile the node, because no agent has done so for long. Notes the time, so that
    /// concurrent ADDs get `false`.
    pub(crate) fn is_overdue(state: &State) -> bool {
        // A time in the future counts as long ago: the clock was set back.
        let overdue = |at: SystemTime| at.elapsed().map_or(true, |ago| ago > OVERDUE);
        state.last_look().is_some_and(overdue) && state.note_look().is_ok()
    }

    /// Reconciles a node that is in use, and removes attachments of pods that ended without a DEL.
    /// Fails at once if another process has the lock.
    pub(crate) fn reconcile_if_used(&mut self) -> Result<(), Error> {
        let lock = self.lock_within(Duration::ZERO)?;
        // The last pod may have gone, and other settings may be in force.
        match self.state.record()? {
            Some(record) if !self.state.is_idle()? => {
                self.reconcile(&lock, &record.network, &record.settings)?;
            }
            _ => return Ok(()),
        }
        drop(lock);
        ended::sweep(&self.state, Path::new(names::CACHE_DIR))
    }

    /// The record from its file. Without a file, a node's record is recovered from the nftables table or the
    /// ipset, without the network.
    pub(crate) fn record(&mut self) -> Result<Option<Record>, Error> {
        let record = self.state.record()?;
        // In a pod's namespace, table and ipset may be another program's.
        if record.is_some() || self.is_pod {
            return Ok(record);
        }
        let recovered = self.recover_record();
        self.unseen.rules(recovered)
    }

    /// The record as recovered from the nftables table or the ipset.
    fn recover_record(&mut self) -> Result<Option<Record>, Error> {
        let socket = &mut self.kernel.netfilter;
        let mut read = |set| match table::elements(socket, set) {
            Err(error) if observe::is_missing(&error) || error.errno == Errno::ENOENT => {
                Ok(BTreeSet::new())
            }
            other => other.map_err(Error::kernel(format!("read {set} of table inet symroute"))),
        };
        let recovered = Record::recover_from_table(&read(names::LAYOUT)?, &read(names::RESTORE)?);
        if recovered.is_some() {
            return Ok(recovered);
        }
        let notes = ipset::set(socket, names::NODE_SET)
            .map_err(Error::kernel(format!("read ipset {}", names::NODE_SET)))?;
        Ok(notes.and_then(|set| Record::recover_from_ipset(node_set::read(&set.members))))
    }

    /// Observes the facts, with the settings of single pods. Also returns the unreadable files of such pods.
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
        facts.made_chains = record.map_or_else(BTreeSet::new, |r| r.made_chains.clone());
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

    /// The facts about this pod that its attachments hold.
    fn pod_facts(&self) -> Result<PodFacts, Error> {
        let mut gateways = BTreeMap::<String, Vec<IpAddr>>::new();
        for attachment in self.state.attachments()?.readable {
            for (name, routers) in attachment.gateways {
                gateways.entry(name).or_default().extend(routers);
            }
        }
        Ok(PodFacts { gateways, leaving: self.leaving.clone(), is_ending: self.state.is_idle()? })
    }

    /// Observes the node and plans by the settings in force, or by `fallback` if there are none. Changes
    /// nothing.
    pub(crate) fn view(&mut self, fallback: &Settings) -> Result<View, Error> {
        let record = self.record()?;
        let settings = record.as_ref().map_or_else(|| fallback.clone(), |r| r.settings.clone());
        let owned = record.as_ref().map_or_else(|| vec![&settings], Record::owned);
        let (facts, _) = self.observe(&owned, record.as_ref())?;
        let (settings, plan) = decide(&facts, &settings)?;
        let mut steps = diff(&facts, &plan);
        if self.unseen.hides_rules() {
            // Hidden rules are not missing rules.
            steps.retain(|step| !step.is_netfilter());
        }
        Ok(View { facts, settings, plan, steps })
    }

    /// Observes the node without a plan, for settings that are impossible on this node.
    pub(crate) fn view_without_plan(&mut self, settings: &Settings) -> Result<View, Error> {
        let (facts, _) = self.observe(&[settings], None)?;
        let (settings, plan) = (settings.clone(), Plan::default());
        Ok(View { facts, settings, plan, steps: Vec::new() })
    }
}
