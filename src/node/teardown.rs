//! Removes node state with the last pod, unless a holder needs it.

use std::time::Duration;

use super::{IMPATIENCE, Node};
use crate::backend::iptables::node_set;
use crate::backend::iptables::set_diff::SetChange;
use crate::backend::nftables::rules::TableFamily;
use crate::backend::nftables::table_diff::TableChange;
use crate::error::Error;
use crate::model::Facts;
use crate::names;
use crate::plan::Plan;
use crate::plan::diff::{Operation, diff};
use crate::state::{Key, Lock, State};

impl Node {
    /// Removes all node state if neither a pod nor a holder needs it. Returns true if it did, or if there was
    /// none.
    pub(crate) fn tear_down_if_idle(&mut self, lock: &Lock) -> Result<bool, Error> {
        // An ADD may write its file during the removal. The second check sees it.
        while self.state.is_idle()? {
            let Some(record) = self.record()? else {
                self.state.clear()?;
                return Ok(true);
            };
            self.state.unset_ready()?;
            let (facts, unreadable) = self.observe(&record.owned(), Some(&record))?;
            // An ADD on the fast path writes its file, then asks whether its settings are in force. So either
            // this process sees the file, or the ADD gets "no" and waits for the lock.
            self.kernel.apply_all(&not_in_force(&facts), &facts);
            if !self.state.is_idle()? {
                self.reconcile(lock, &record.network, &record.settings)?;
                continue;
            }
            let steps = diff(&facts, &Plan::default());
            let failures = self.kernel.apply_all(&steps, &facts);
            if let Some(error) = failures.into_iter().next() {
                return Err(error);
            }
            if self.state.is_idle()? {
                State::sweep(&unreadable)?;
                self.state.clear()?;
                return Ok(true);
            }
            self.reconcile(lock, &record.network, &record.settings)?;
        }
        Ok(false)
    }

    /// Ends this hold, and every hold of `network`, whose settings from now on serve only pods with their own
    /// data plane. Removes the node state unless an attached pod or another hold needs it.
    pub(crate) fn give_up(&mut self, hold: &str, network: &str) -> Result<(), Error> {
        let ends = |(name, of): &(String, String)| name == hold || of == network;
        let ended: Vec<_> = self.state.holders()?.into_iter().filter(ends).collect();
        // A killed call may have ended the holds without removing the node state.
        let is_left = || Ok::<_, Error>(self.state.record()?.is_some() && self.state.is_idle()?);
        if ended.is_empty() && !is_left()? {
            return Ok(());
        }
        let lock = self.lock()?;
        for (name, _) in ended {
            self.state.release(&name)?;
        }
        self.tear_down_if_idle(&lock).map(drop)
    }
}

/// Removes an attachment, and the node state with the last one. Goes on after a failure and returns the
/// failures; the next reconcile heals the rest. Opens a socket only if the kernel has to change. Calls
/// `start_log` only before it logs: most calls don't need the settings.
#[must_use]
pub(crate) fn remove(state: &State, key: &Key, start_log: impl Fn()) -> Vec<Error> {
    let mut failures = Vec::new();
    let had_own_settings = state.detach(key).unwrap_or_else(|error| {
        failures.push(error.into());
        false
    });
    let idle = state.is_idle().unwrap_or(false);
    // `exists`: a DEL must not create the folder on a node that never had a pod.
    let is_due = idle || had_own_settings;
    let settles = (is_due || state.unsettled().is_some())
        && state.exists()
        && !(is_due && state.is_for_pods_alone());
    if settles || !failures.is_empty() {
        start_log();
    }
    if settles {
        // The leftovers of an earlier call can wait for a later one.
        let patience = if is_due { IMPATIENCE } else { Duration::ZERO };
        failures.extend(settle(state, idle, patience).err());
    }
    failures
}

/// Completes an earlier call that was cut short. If another process has the lock, that process does so.
pub(crate) fn settle_rest(state: &State) -> Result<(), Error> {
    if state.unsettled().is_none() {
        return Ok(());
    }
    match settle(state, false, IMPATIENCE) {
        Err(Error::Busy { .. } | Error::XtablesLock { .. }) => Ok(()),
        settled => settled,
    }
}

/// Brings the kernel to the state for the remaining attachments.
fn settle(state: &State, idle: bool, patience: Duration) -> Result<(), Error> {
    let mut node = Node::with_state(state.clone())?;
    let lock = node.lock_within(patience)?;
    if idle && node.tear_down_if_idle(&lock)? {
        return Ok(());
    }
    match node.state.record()? {
        Some(record) => node.reconcile(&lock, &record.network, &record.settings).map(drop),
        None => Ok(()),
    }
}

/// The steps after which every ADD waits for the lock: removes the record of the settings in force.
fn not_in_force(facts: &Facts) -> Vec<Operation> {
    let sets = facts.ours.table.iter().filter_map(|table| table.sets.get(names::IN_FORCE));
    let elements = sets.map(|set| set.elements.clone()).filter(|elements| !elements.is_empty());
    let of_table = elements.map(|elements| {
        Operation::Table(
            TableFamily::Inet,
            vec![TableChange::DeleteElements(names::IN_FORCE.into(), elements)],
        )
    });
    let notes = facts.ours.ipsets.get(names::NODE_SET).into_iter().flat_map(|set| &set.members);
    let in_force: Vec<_> = notes.filter(|note| node_set::says_in_force(note)).cloned().collect();
    let of_ipset = (!in_force.is_empty())
        .then(|| Operation::Sets(vec![SetChange::Remove(names::NODE_SET.into(), in_force)]));
    of_table.chain(of_ipset).collect()
}
