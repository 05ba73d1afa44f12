//! The one reconcile: what a node has is brought to what it should have. Called by the slow path
//! of ADD, by DEL of the last pod, by `up`, `down` and `status`.

use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::apply::{Applied, Kernel, PATIENCE};
use crate::config::Settings;
use crate::error::Error;
use crate::facts::{Facts, Family};
use crate::fast::{self, Enrolled};
use crate::gather;
use crate::names;
use crate::netlink::{ipset, nft};
use crate::plan::diff::{Operation, TableChange, diff};
use crate::plan::{Plan, plan};
use crate::ruleset::sets::hairpin_set;
use crate::startup::leave;
use crate::state::{Attachment, Key, Lock, Marking, Record, State};
use crate::xtables::diff::SetChange;
use crate::xtables::notes;
use crate::xtables::tools::Tools;
use nix::errno::Errno;

/// How long a DEL does: the pod must not wait, and whoever reconciles now can clean up next time.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// How long nobody may look at the whole node. An agent does twice as often.
const OVERDUE: Duration = Duration::from_secs(60);
/// How often the sets of pods are brought in line with files that change meanwhile.
const ROUNDS: u32 = 8;

/// A node: its state and its kernel.
#[derive(Debug)]
pub struct Node {
    /// The state directory.
    pub state: State,
    /// The kernel of this thread's network namespace.
    pub kernel: Kernel,
    /// Whether something was removed from `nf_tables`.
    removed: bool,
}

/// A look at a node, without a change.
#[derive(Debug)]
pub struct View {
    /// What is there.
    pub facts: Facts,
    /// What should be there for the settings asked for.
    pub plan: Plan,
    /// Steps that lead from one to the other; none when all is well.
    pub steps: Vec<Operation>,
}

impl Node {
    /// The node of this thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Self::at(Path::new(names::STATE_DIR))
    }

    /// The same, with its state where a container has the node's.
    pub fn at(state: &Path) -> Result<Self, Error> {
        Ok(Self { state: State::new(state), kernel: Kernel::open()?, removed: false })
    }

    /// Waits for the lock. What is left of the patience is for the lock of iptables.
    pub fn lock(&mut self) -> Result<Lock, Error> {
        self.lock_within(PATIENCE)
    }

    fn lock_within(&mut self, patience: Duration) -> Result<Lock, Error> {
        self.kernel.iptables = Tools::patient(patience);
        self.state.lock(patience)
    }

    /// Ends the work of a call that has no other thread. Where something was removed from
    /// `nf_tables` just now, by this call or by a DEL before it, a child closes the sockets.
    pub fn leave(self) {
        leave(&self.state, self.removed, None);
    }

    /// The same at the end of an ADD that looked at nothing but its own pod. Where nobody has looked
    /// at the whole node for long, because no agent runs, a child does.
    pub fn leave_and_look(self) {
        let overdue = |at: SystemTime| at.elapsed().is_ok_and(|ago| ago > OVERDUE);
        // Of many pods that start at once, one.
        if !self.state.last_look().is_some_and(overdue) || self.state.note_look().is_err() {
            return self.leave();
        }
        let look = || {
            if let Err(error) = Self::look_now(&self.state) {
                log::warn!("a look at the node: {error}");
            }
        };
        leave(&self.state, self.removed, Some(&look));
    }

    /// Puts right what differs on a node that is in use. Of a process that ends then: its end closes
    /// the sockets, when nothing is left to wait for.
    fn look_now(state: &State) -> Result<(), Error> {
        let kernel = Kernel::open()?;
        let mut node = ManuallyDrop::new(Self { state: state.clone(), kernel, removed: false });
        let lock = node.lock_within(IMPATIENCE)?;
        // The last pod may have gone since, or other settings may be in force.
        match node.state.record()? {
            Some(record) if !node.state.is_idle()? => {
                node.reconcile(&lock, &record.network, &record.settings).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Where addresses are enrolled.
    #[must_use]
    pub fn marking(&self) -> Marking {
        self.state.marking().unwrap_or_default()
    }

    /// Brings the node to what `settings` say, in the name of `network`. Atomic for traffic;
    /// after an error the node is as it was.
    pub fn reconcile(
        &mut self,
        _lock: &Lock,
        network: &str,
        settings: &Settings,
    ) -> Result<Plan, Error> {
        let record = self.record()?;
        if let Some(record) = &record {
            self.check_agreement(record, network, settings)?;
        }
        let network = self.leader(record.as_ref(), network)?;
        let mut rounds = 1..ROUNDS;
        loop {
            let last = rounds.next().is_none();
            match self.round(&network, settings) {
                Ok(Round::Settled(plan)) => return Ok(plan),
                Ok(Round::Changed(plan)) if last => return Ok(plan),
                Ok(Round::Changed(_)) => {}
                Err(Interrupted::Passing(error)) if last => return Err(error),
                Err(Interrupted::Passing(error)) => log::info!("once more: {error}"),
                Err(Interrupted::For(error)) => return Err(error),
            }
        }
    }

    /// One look and the steps that it asks for.
    fn round(&mut self, network: &str, settings: &Settings) -> Result<Round, Interrupted> {
        let record = self.record()?;
        let mut previous: Vec<Settings> = Vec::new();
        for old in record.iter().flat_map(|r| std::iter::once(&r.settings).chain(&r.previous)) {
            if old != settings && !previous.contains(old) {
                previous.push(old.clone());
            }
        }
        let owned: Vec<&Settings> = std::iter::once(settings).chain(&previous).collect();
        let (facts, unreadable) = self.look(&owned, record.as_ref())?;
        let plan = plan(&facts, settings).map_err(Error::from)?;
        let steps = diff(&facts, &plan);
        let mut next = Record {
            network: network.into(),
            settings: settings.clone(),
            previous,
            src_valid_mark: facts.restore.union(&plan.restore).copied().collect(),
            made: facts.made.union(&plan.made).cloned().collect(),
        };
        // Before the kernel is touched, so that a kill at any point leaves a trace to clean up by.
        if !steps.is_empty() {
            self.state.set_record(&next)?;
            match self.kernel.apply(&steps, &facts) {
                Ok(Applied::Something) => return Ok(Round::Changed(plan)),
                // What is left to do can't be done.
                Ok(Applied::Nothing) => {}
                Err(error) => {
                    match record {
                        Some(record) => self.state.set_record(&record)?,
                        None => self.undo_all(&next)?,
                    }
                    return Err(Interrupted::by(error, &steps));
                }
            }
        }
        self.state.sweep(&unreadable)?;
        self.state.set_marking(plan.marking())?;
        next.previous.clear();
        next.src_valid_mark.clone_from(&plan.restore);
        next.made.clone_from(&plan.made);
        if self.state.record()?.as_ref() == Some(&next) {
            self.state.note_look()?;
        } else {
            self.state.set_record(&next)?;
        }
        Ok(Round::Settled(plan))
    }

    /// After a failed first reconcile. What failed is taken away too: the kernel may have done it
    /// and only the answer was lost.
    fn undo_all(&mut self, made: &Record) -> Result<(), Error> {
        let (facts, _) = self.look(&made.owned(), Some(made))?;
        for error in self.kernel.apply_all(&diff(&facts, &Plan::default()), &facts) {
            log::error!("undo: {error}");
        }
        Ok(self.state.clear()?)
    }

    /// The record, from its file or else from the table or ipset itself; then it has no network.
    pub fn record(&mut self) -> Result<Option<Record>, Error> {
        if let Some(record) = self.state.record()? {
            return Ok(Some(record));
        }
        let socket = &mut self.kernel.netfilter;
        let mut read = |set| match nft::elements(socket, set) {
            Err(error) if gather::is_missing(&error) || error.errno == Errno::ENOENT => {
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
        Ok(notes.and_then(|set| Record::recover_noted(notes::read(&set.members))))
    }

    /// The facts, with the enrolled addresses of now, and the attachments that can't be read.
    ///
    /// The files are read after the sets: an address gets its file before its element, so an
    /// element without a file is one that is being removed.
    fn look(
        &mut self,
        owned: &[&Settings],
        record: Option<&Record>,
    ) -> Result<(Facts, Vec<String>), Error> {
        let marking = self.state.marking();
        let mut facts = gather::facts(&mut self.kernel, owned, marking)?;
        facts.restore = record.map_or_else(BTreeSet::new, |r| r.src_valid_mark.clone());
        facts.made = record.map_or_else(BTreeSet::new, |r| r.made.clone());
        let (attachments, unreadable) = self.state.attachments()?;
        for path in &unreadable {
            log::warn!("{path}: empty or damaged; the attachment is taken as absent");
        }
        let addresses = |a: &Attachment| a.addresses.clone();
        facts.pods = attachments.iter().flat_map(addresses).collect();
        facts.hairpins = attachments.iter().filter(|a| a.hairpin).flat_map(addresses).collect();
        Ok((facts, unreadable))
    }

    /// In whose name the settings are: of the network that brought them, while it is in use.
    fn leader(&self, record: Option<&Record>, network: &str) -> Result<String, Error> {
        let others = self.others(network)?;
        let leader = record.map(|r| &r.network).filter(|leader| others.contains(*leader));
        Ok(leader.map_or_else(|| network.to_string(), Clone::clone))
    }

    /// The other networks that have pods here or hold the node state.
    fn others(&self, network: &str) -> Result<BTreeSet<String>, Error> {
        let (attachments, _) = self.state.attachments()?;
        let holders = self.state.holders()?.into_iter().map(|(_, network)| network);
        let networks = attachments.into_iter().map(|a| a.key.network).chain(holders);
        Ok(networks.filter(|other| other != network).collect())
    }

    /// Another network that is in force must have the same settings.
    fn check_agreement(
        &self,
        record: &Record,
        network: &str,
        settings: &Settings,
    ) -> Result<(), Error> {
        // A record without a network was recovered and does not know all settings.
        let same = record.network == network || record.network.is_empty();
        if same || record.settings == *settings || self.others(network)?.is_empty() {
            return Ok(());
        }
        let (asks, in_force) = (settings.to_json(), record.settings.to_json());
        let differing = asks.iter().find(|(key, value)| in_force.get(*key) != Some(*value));
        match differing {
            Some((key, value)) => Err(Error::Disagreement {
                key: key.clone(),
                asks: (network.into(), value.to_string()),
                in_force: (record.network.clone(), in_force[key].to_string()),
            }),
            None => Ok(()),
        }
    }

    /// Takes all node state away if neither a pod nor a holder needs it. True if it did, or if
    /// there was nothing.
    pub fn tear_down_if_idle(&mut self, lock: &Lock) -> Result<bool, Error> {
        // A pod that comes while the table goes is seen by the second look.
        while self.state.is_idle()? {
            let Some(record) = self.record()? else {
                self.state.clear()?;
                return Ok(true);
            };
            self.removed = true;
            let (facts, unreadable) = self.look(&record.owned(), Some(&record))?;
            // An ADD on the fast path writes its file and then asks whether its settings are in
            // force. So either it is seen here, or it sees this and waits for the lock.
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
                self.state.sweep(&unreadable)?;
                self.state.clear()?;
                return Ok(true);
            }
            self.reconcile(lock, &record.network, &record.settings)?;
        }
        Ok(false)
    }

    /// Removes an attachment: what its file names, less what belongs to another attachment by
    /// now, and with the last one the node state. Goes on after a failure; the next reconcile
    /// heals what is left.
    pub fn remove(&mut self, key: &Key) -> Vec<Error> {
        let mut failures = Vec::new();
        match self.state.begin_removal(key) {
            Ok(Some(attachment)) => failures.extend(self.withdraw(&attachment, None)),
            Ok(None) => log::debug!("{key:?} has nothing to remove"),
            Err(error) => failures.push(error.into()),
        }
        failures.extend(self.state.end_removal(key).err().map(Error::from));
        if self.state.is_idle().unwrap_or(false) {
            failures.extend(self.tear_down().err());
        }
        failures
    }

    /// Takes out of the pods' sets what an attachment had and does not keep, unless it belongs to
    /// another attachment.
    pub fn withdraw(&mut self, had: &Attachment, keeps: Option<&Attachment>) -> Vec<Error> {
        let name = had.key.file_name();
        let (mut failures, mut members, mut given_up) = (Vec::new(), Vec::new(), Vec::new());
        for &ip in &had.addresses {
            match keeps.filter(|kept| kept.addresses.contains(&ip)) {
                Some(kept) if had.hairpin && !kept.hairpin => {
                    members.push((hairpin_set(Family::of(ip)), ip));
                }
                Some(_) => {}
                None => match self.state.disown(ip, &name) {
                    Ok(true) => {
                        members.extend(fast::memberships_of(ip, had.hairpin));
                        given_up.push(ip);
                    }
                    Ok(false) => log::info!("{ip} belongs to another attachment by now"),
                    Err(error) => failures.push(error.into()),
                },
            }
        }
        let marking = self.marking();
        self.removed |= marking == Marking::Nftables && !members.is_empty();
        let mut sets = Enrolled::at(marking, &mut self.kernel.netfilter);
        let taken = sets.withdraw(&members);
        failures.extend(taken.map_err(Error::kernel(format!("take {members:?} out"))).err());
        // An attachment that got an address in between wrote itself down before it enrolled it.
        let owners = given_up.into_iter().filter_map(|ip| Some((ip, self.state.owner(ip)?)));
        let back: Vec<_> =
            owners.flat_map(|(ip, owner)| fast::memberships_of(ip, owner.hairpin)).collect();
        let put = sets.enroll(&back);
        failures.extend(put.map_err(Error::kernel(format!("put {back:?} back"))).err());
        failures
    }

    /// Takes all node state away if it is idle, without a long wait for another's reconcile.
    fn tear_down(&mut self) -> Result<(), Error> {
        // A node that never had a pod gets no directory by a DEL.
        if self.state.exists() {
            let lock = self.lock_within(IMPATIENCE)?;
            self.tear_down_if_idle(&lock)?;
        }
        Ok(())
    }

    /// Looks at the node without changing it, by the settings in force or else by `fallback`.
    pub fn view(&mut self, fallback: &Settings) -> Result<View, Error> {
        let record = self.record()?;
        let settings = record.as_ref().map_or_else(|| fallback.clone(), |r| r.settings.clone());
        let owned = record.as_ref().map_or_else(|| vec![&settings], Record::owned);
        let (facts, _) = self.look(&owned, record.as_ref())?;
        let plan = plan(&facts, &settings)?;
        let steps = diff(&facts, &plan);
        Ok(View { facts, plan, steps })
    }
}

/// What one look led to.
enum Round {
    /// There is nothing (more) to do.
    Settled(Plan),
    /// Something was done; another look shows whether that was all.
    Changed(Plan),
}

/// Why a round was not finished.
enum Interrupted {
    /// The node changed between the look and the steps: worth another look.
    Passing(Error),
    /// This.
    For(Error),
}

impl<E: Into<Error>> From<E> for Interrupted {
    fn from(error: E) -> Self {
        Self::For(error.into())
    }
}

impl Interrupted {
    fn by(error: Error, steps: &[Operation]) -> Self {
        let Error::Kernel { source, .. } = &error else { return Self::For(error) };
        let passing = match source.errno {
            // An interface went away or down.
            Errno::ENETDOWN | Errno::ENODEV | Errno::ENETUNREACH => true,
            // A pod that was to be taken out was taken out by its own DEL.
            Errno::ENOENT => steps.iter().any(takes_pods_out),
            _ => false,
        };
        if passing { Self::Passing(error) } else { Self::For(error) }
    }
}

/// The step that tells every ADD to wait for the lock.
fn not_in_force(facts: &Facts) -> Vec<Operation> {
    let sets = facts.ours.table.iter().filter_map(|table| table.sets.get(names::IN_FORCE));
    let elements = sets.map(|set| set.elements.clone()).filter(|elements| !elements.is_empty());
    let of_table = elements.map(|elements| {
        Operation::Table(vec![TableChange::DeleteElements(names::IN_FORCE.into(), elements)])
    });
    let notes = facts.ours.ipsets.get(names::NODE_SET).into_iter().flat_map(|set| &set.members);
    let said: Vec<_> = notes.filter(|note| notes::says_in_force(note)).cloned().collect();
    let of_ipset = (!said.is_empty())
        .then(|| Operation::Sets(vec![SetChange::Remove(names::NODE_SET.into(), said)]));
    of_table.chain(of_ipset).collect()
}

fn takes_pods_out(step: &Operation) -> bool {
    let Operation::Table(changes) = step else { return false };
    changes.iter().any(|change| {
        matches!(change, TableChange::DeleteElements(set, _)
            if names::OF_PODS.contains(&set.as_str()))
    })
}
