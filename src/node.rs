//! The one reconcile: what a node has is brought to what it should have. Called by the slow path
//! of ADD, by DEL of the last pod, by `up`, `down` and `status`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use serde_json::json;

use crate::apply::Kernel;
use crate::config::{Backend, Invalid, Settings};
use crate::error::Error;
use crate::facts::Facts;
use crate::fast;
use crate::gather;
use crate::names;
use crate::plan::diff::{Operation, diff};
use crate::plan::{Plan, plan};
use crate::state::{Key, Lock, Record, State};

/// How long a caller waits for another's reconcile.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a DEL does: the pod must not wait, and whoever reconciles now can clean up next time.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// How often the sets of pods are brought in line with files that change meanwhile.
const ROUNDS: u32 = 8;

/// A node: its state and its kernel.
#[derive(Debug)]
pub struct Node {
    /// The state directory.
    pub state: State,
    /// The kernel of this thread's network namespace.
    pub kernel: Kernel,
}

/// A look at a node, without a change.
#[derive(Debug)]
pub struct View {
    /// What is there.
    pub facts: Facts,
    /// The record of the node state, if any.
    pub record: Option<Record>,
    /// What should be there for the settings asked for.
    pub plan: Plan,
    /// Steps that lead from one to the other; none when all is well.
    pub steps: Vec<Operation>,
}

impl Node {
    /// The node of this thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { state: State::new(names::STATE_DIR), kernel: Kernel::open()? })
    }

    /// Waits for the lock.
    pub fn lock(&self) -> Result<Lock, Error> {
        self.state.lock(PATIENCE)
    }

    /// Brings the node to what `settings` say, in the name of `network`. Atomic for traffic;
    /// after an error the node is as it was.
    pub fn reconcile(
        &mut self,
        _lock: &Lock,
        network: &str,
        settings: &Settings,
    ) -> Result<Plan, Error> {
        check_backend(settings)?;
        let before = self.state.record()?;
        if let Some(record) = &before {
            self.check_agreement(record, network, settings)?;
        }
        for _ in 0..ROUNDS {
            match self.round(before.as_ref(), network, settings) {
                Ok((plan, true)) => return Ok(plan),
                Ok((_, false)) => {}
                // A pod was removed between the look and the change.
                Err(Error::Kernel { source, .. }) if source.errno == Errno::ENOENT => {}
                Err(error) => return Err(error),
            }
        }
        let (plan, _) = self.round(before.as_ref(), network, settings)?;
        Ok(plan)
    }

    /// One round; true when there was nothing (left) to do.
    fn round(
        &mut self,
        before: Option<&Record>,
        network: &str,
        settings: &Settings,
    ) -> Result<(Plan, bool), Error> {
        let record = self.state.record()?;
        let previous = record.as_ref().map(|r| r.settings.clone()).filter(|old| old != settings);
        let owned: Vec<&Settings> = std::iter::once(settings)
            .chain(&previous)
            .chain(record.iter().flat_map(|r| &r.previous))
            .collect();
        let (facts, unreadable) = self.look(&owned)?;
        let plan = plan(&facts, settings)?;
        let mut set_by_us =
            record.as_ref().map_or_else(BTreeSet::new, |r| r.src_valid_mark.clone());
        let steps = diff(&facts, &plan, &set_by_us);
        if steps.is_empty() {
            self.state.sweep(&unreadable)?;
            set_by_us.retain(|link| plan.src_valid_mark.contains(link));
            let settled = Record {
                network: network.into(),
                settings: settings.clone(),
                previous: None,
                src_valid_mark: set_by_us,
            };
            if record.as_ref() != Some(&settled) {
                self.state.set_record(&settled)?;
            }
            return Ok((plan, true));
        }
        set_by_us.extend(steps.iter().filter_map(|step| match step {
            Operation::SrcValidMark { link, on: true } => Some(link),
            _ => None,
        }));
        // Before the kernel is touched, so that a kill at any point leaves a trace to clean up by.
        self.state.set_record(&Record {
            network: network.into(),
            settings: settings.clone(),
            previous: previous.or_else(|| record.and_then(|r| r.previous)),
            src_valid_mark: set_by_us,
        })?;
        if let Err(error) = self.kernel.apply(&steps, &facts) {
            match before {
                Some(before) => self.state.set_record(before)?,
                None => self.state.clear()?,
            }
            return Err(error);
        }
        Ok((plan, false))
    }

    /// The facts, with the enrolled addresses of now, and the attachments that can't be read.
    ///
    /// The files are read after the sets: an address gets its file before its element, so an
    /// element without a file is one that is being removed.
    fn look(&mut self, owned: &[&Settings]) -> Result<(Facts, Vec<String>), Error> {
        let Kernel { rtnetlink, nftables } = &mut self.kernel;
        let mut facts = gather::facts(rtnetlink, nftables, owned)?;
        let (attachments, unreadable) = self.state.attachments()?;
        for path in &unreadable {
            log::warn!("{path}: empty or damaged; the attachment is taken as absent");
        }
        facts.pods = attachments.iter().flat_map(|a| a.addresses.iter().copied()).collect();
        Ok((facts, unreadable))
    }

    /// Another network that is in force must have the same settings.
    fn check_agreement(
        &self,
        record: &Record,
        network: &str,
        settings: &Settings,
    ) -> Result<(), Error> {
        if record.network == network || record.settings == *settings {
            return Ok(());
        }
        let (attachments, _) = self.state.attachments()?;
        let in_use = attachments.iter().any(|a| a.key.network != network)
            || self.state.holders()?.iter().any(|(_, holder)| holder != network);
        let (asks, in_force) = (settings.to_json(), record.settings.to_json());
        let differing = asks.iter().find(|(key, value)| in_force.get(*key) != Some(*value));
        match differing {
            Some((key, value)) if in_use => Err(Error::Disagreement {
                key: key.clone(),
                asks: (network.into(), value.to_string()),
                in_force: (record.network.clone(), in_force[key].to_string()),
            }),
            _ => Ok(()),
        }
    }

    /// Takes all node state away if neither a pod nor a holder needs it. True if it did, or if
    /// there was nothing.
    pub fn tear_down_if_idle(&mut self, lock: &Lock) -> Result<bool, Error> {
        // A pod that comes while the table goes is seen by the second look.
        while self.state.is_idle()? {
            let Some(record) = self.state.record()? else {
                return Ok(true);
            };
            let owned = record.owned();
            let (facts, unreadable) = self.look(&owned)?;
            let steps = diff(&facts, &Plan::default(), &record.src_valid_mark);
            let failures = self.kernel.apply_all(&steps, &facts);
            if let Some(error) = failures.into_iter().next() {
                return Err(error);
            }
            if self.state.is_idle()? {
                self.state.sweep(&unreadable)?;
                self.state.clear()?;
                return Ok(true);
            }
            self.reconcile(lock, &record.network, &record.settings)?;
        }
        Ok(false)
    }

    /// Removes an attachment: what its file names, less what belongs to another attachment by
    /// now, and with the last one the node state. What goes wrong is logged and healed by the next
    /// reconcile.
    pub fn remove(&mut self, key: &Key) {
        match self.state.begin_removal(key) {
            Ok(Some(attachment)) => self.withdraw(&attachment.addresses, key),
            Ok(None) => log::debug!("{key:?} has nothing to remove"),
            Err(error) => log::error!("{error}"),
        }
        if let Err(error) = self.state.end_removal(key) {
            log::error!("{error}");
        }
        if self.state.is_idle().unwrap_or(false) {
            if let Err(error) = self.tear_down() {
                log::error!("node state stays for now: {error}");
            }
        }
    }

    /// Takes addresses out of the pods' sets, unless they belong to another attachment.
    pub fn withdraw(&mut self, addresses: &[IpAddr], key: &Key) {
        let name = key.file_name();
        let mut mine = Vec::new();
        for &address in addresses {
            match self.state.disown(address, &name) {
                Ok(true) => mine.push(address),
                Ok(false) => log::info!("{address} belongs to another attachment by now"),
                Err(error) => log::error!("{error}"),
            }
        }
        if let Err(error) = fast::withdraw(&mut self.kernel.nftables, &mine) {
            log::error!("take {mine:?} out of table inet symroute: {error}");
        }
        // An attachment that got an address in between wrote itself down before it enrolled it.
        mine.retain(|&address| self.state.is_owned(address));
        if let Err(error) = fast::enroll(&mut self.kernel.nftables, &mine) {
            log::error!("put {mine:?} back: {error}");
        }
    }

    /// Takes all node state away if it is idle, without a long wait for another's reconcile.
    fn tear_down(&mut self) -> Result<(), Error> {
        // A node that never had a pod gets no directory by a DEL.
        if self.state.exists() {
            let lock = self.state.lock(IMPATIENCE)?;
            self.tear_down_if_idle(&lock)?;
        }
        Ok(())
    }

    /// Looks at the node without changing it, by the settings in force or else by `fallback`.
    pub fn view(&mut self, fallback: &Settings) -> Result<View, Error> {
        let record = self.state.record()?;
        let settings = record.as_ref().map_or_else(|| fallback.clone(), |r| r.settings.clone());
        let owned = record.as_ref().map_or_else(|| vec![&settings], Record::owned);
        let (facts, _) = self.look(&owned)?;
        let plan = plan(&facts, &settings)?;
        let set_by_us = record.as_ref().map_or_else(BTreeSet::new, |r| r.src_valid_mark.clone());
        let steps = diff(&facts, &plan, &set_by_us);
        Ok(View { facts, record, plan, steps })
    }
}

fn check_backend(settings: &Settings) -> Result<(), Error> {
    if settings.backend == Backend::Iptables {
        let hint = "this release marks with nftables only; set \"auto\" or \"nftables\"";
        return Err(Invalid::new("backend", &json!("iptables"), hint).into());
    }
    Ok(())
}
