//! Executes operations. Each can be undone, so that a failed list of operations leaves nothing
//! behind.

use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::sysctl::set_src_valid_mark;
use crate::backend::iptables::programs::Programs;
use crate::backend::iptables::restore_script::Script;
use crate::backend::iptables::set_diff::SetChange;
use crate::backend::iptables::{builtin_chains, ipset};
use crate::backend::nftables::rules::TableFamily;
use crate::backend::nftables::table;
use crate::error::Error;
use crate::model::{Facts, FoundRule, Route};
use crate::netlink::{self, Socket, route};
use crate::plan::diff::Operation;
use crate::process::{VALUE_MOST, cut};

/// Maximum time that a call waits for locks of other processes, in total.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum time that the kernel may keep a set busy after the rules that refer to it were deleted.
const FREED_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Result of a list of operations that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// At least one operation was executed.
    Something,
    /// No operation was executed: the list was empty, or all were left out.
    Nothing,
}

/// The kernel interfaces that operations use.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Socket for links, addresses, routes and rules.
    pub(crate) rtnetlink: Socket,
    /// Socket for nftables and ipsets.
    pub(crate) netfilter: Socket,
    pub(crate) iptables: Programs,
    /// When a list of operations is given up, if ever: a pod's namespace may hold any amount of
    /// state.
    deadline: Option<Instant>,
}

impl Kernel {
    /// Opens both sockets in the network namespace of this thread.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self {
            rtnetlink: Socket::route().map_err(Error::kernel("open a socket to rtnetlink"))?,
            netfilter: Socket::netfilter().map_err(Error::kernel("open a socket to netfilter"))?,
            iptables: Programs::patient(PATIENCE, None),
            deadline: None,
        })
    }

    /// Prepares the sockets for the namespace of a pod, see [`Socket::distrust`].
    pub(crate) fn distrust(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        self.deadline = Some(deadline);
        for socket in [&mut self.rtnetlink, &mut self.netfilter] {
            socket.distrust(deadline).map_err(Error::kernel("connect a socket to the kernel"))?;
        }
        Ok(())
    }

    /// Executes the operations in order. After a failure, undoes the executed ones in reverse order
    /// and returns the error.
    pub(crate) fn apply(
        &mut self,
        operations: &[Operation],
        facts: &Facts,
    ) -> Result<Applied, Error> {
        let mut done: Vec<&Operation> = Vec::new();
        for operation in operations {
            log::debug!("{}", describe(operation, facts));
            match self.in_time(operation, facts).and_then(|()| self.execute(operation, facts)) {
                Ok(()) => done.push(operation),
                Err(error) if is_dispensable(operation, &error) => log::warn!("left out: {error}"),
                Err(error) => {
                    // After the deadline removals are not undone. The removed state only looked
                    // like symroute's, and may be much.
                    let late = self.in_time(operation, facts).is_err();
                    let undone = done.into_iter().rev().filter(|done| !late || !done.is_removal());
                    undone.for_each(|operation| self.undo(operation, facts));
                    return Err(error);
                }
            }
        }
        Ok(if done.is_empty() { Applied::Nothing } else { Applied::Something })
    }

    /// Executes all operations in spite of failures, up to the deadline. Returns the failures.
    pub(crate) fn apply_all(&mut self, operations: &[Operation], facts: &Facts) -> Vec<Error> {
        let mut failures = Vec::new();
        for operation in operations {
            log::debug!("{}", describe(operation, facts));
            if let Err(late) = self.in_time(operation, facts) {
                failures.push(late);
                break;
            }
            failures.extend(self.execute(operation, facts).err());
        }
        failures
    }

    /// Error: the deadline for this operation has passed.
    fn in_time(&self, operation: &Operation, facts: &Facts) -> Result<(), Error> {
        if self.deadline.is_none_or(|deadline| Instant::now() < deadline) {
            return Ok(());
        }
        let text = "the namespace holds more than can be changed in time";
        let source = netlink::Error { errno: Errno::ETIMEDOUT, text: Some(text.into()) };
        Err(Error::Kernel { operation: describe(operation, facts), source })
    }

    fn execute(&mut self, operation: &Operation, facts: &Facts) -> Result<(), Error> {
        let result = match operation {
            Operation::AddRoute(r) => route::add_route(&mut self.rtnetlink, r),
            Operation::ReplaceRoute { new, .. } => route::replace_route(&mut self.rtnetlink, new),
            Operation::DeleteRoute(r) => route::delete_route(&mut self.rtnetlink, r),
            Operation::AddRule(r) => route::add_rule(&mut self.rtnetlink, r),
            Operation::DeleteRule(found) => route::delete_rule(&mut self.rtnetlink, found),
            Operation::SrcValidMark { link, on } => return set_src_valid_mark(facts, *link, *on),
            Operation::Table(family, changes) => {
                table::commit(&mut self.netfilter, *family, changes)
            }
            Operation::Sets(changes) => {
                changes.iter().try_for_each(|change| self.change_set(change))
            }
            Operation::Mangle(scripts) => return self.iptables.run(scripts),
            Operation::RemoveEmpty(family, chains) => {
                builtin_chains::remove_empty(&mut self.netfilter, *family, chains)
            }
        };
        result.map_err(|source| Error::Kernel { operation: describe(operation, facts), source })
    }

    fn change_set(&mut self, change: &SetChange) -> Result<(), netlink::Error> {
        let socket = &mut self.netfilter;
        match change {
            SetChange::Create(set) => ipset::create(socket, set),
            SetChange::Add(set, members) => ipset::add(socket, set, members),
            SetChange::Remove(set, members) => ipset::remove(socket, set, members),
            SetChange::Destroy(set) => {
                // nf_tables frees deleted rules, and what they refer to, some time later
                // (`nf_tables_trans_destroy_work`).
                let deadline = Instant::now() + FREED_WITHIN;
                loop {
                    match ipset::destroy(socket, set) {
                        Err(error) if error.errno == Errno::EBUSY && Instant::now() < deadline => {
                            thread::sleep(PAUSE);
                        }
                        other => return other,
                    }
                }
            }
        }
    }

    /// Undoes an operation as far as possible. A failure is only logged: the caller reports the
    /// first error.
    fn undo(&mut self, operation: &Operation, facts: &Facts) {
        let inverse = match operation {
            Operation::AddRoute(r) => Operation::DeleteRoute(r.clone()),
            Operation::DeleteRoute(r) => Operation::AddRoute(r.clone()),
            Operation::ReplaceRoute { old, new } => {
                Operation::ReplaceRoute { old: new.clone(), new: old.clone() }
            }
            Operation::AddRule(rule) => {
                let message = route::rule_message(rule);
                Operation::DeleteRule(FoundRule { rule: rule.clone(), message })
            }
            Operation::DeleteRule(found) => Operation::AddRule(found.rule.clone()),
            Operation::SrcValidMark { link, on } => {
                Operation::SrcValidMark { link: *link, on: !on }
            }
            Operation::Sets(changes) => {
                Operation::Sets(changes.iter().rev().filter_map(SetChange::inverse).collect())
            }
            Operation::Mangle(scripts) => {
                let back = |s: &Script| Script {
                    change: s.undo.clone(),
                    undo: s.change.clone(),
                    ..s.clone()
                };
                Operation::Mangle(scripts.iter().rev().map(back).collect())
            }
            // Only removals follow these steps. The next reconcile completes what is left.
            Operation::Table(..) | Operation::RemoveEmpty(..) => return,
        };
        if let Err(error) = self.execute(&inverse, facts) {
            log::warn!("undo: {error}");
        }
    }
}

/// Whether the operation may fail without undoing the others. The kernel may refuse to copy a route
/// to the uplink's table: one of main's through another router than the uplink's gateway.
fn is_dispensable(operation: &Operation, error: &Error) -> bool {
    // A kernel may have nf_tables without this family (`CONFIG_NF_TABLES_ARP`).
    if let Operation::Table(TableFamily::Arp, _) = operation {
        let missing = [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT];
        return matches!(error, Error::Kernel { source, .. } if missing.contains(&source.errno));
    }
    // A set of an older release that a rule of another program refers to.
    if let Operation::Sets(changes) = operation {
        let busy = matches!(error, Error::Kernel { source, .. } if source.errno == Errno::EBUSY);
        return busy && changes.iter().all(|change| matches!(change, SetChange::Destroy(_)));
    }
    let (Operation::AddRoute(route) | Operation::ReplaceRoute { new: route, .. }) = operation
    else {
        return false;
    };
    let refused = matches!(error, Error::Kernel { source, .. }
        if matches!(source.errno, Errno::EINVAL | Errno::ENETUNREACH | Errno::EHOSTUNREACH));
    refused && !route.is_default() && route.nexthops.iter().any(|hop| hop.gateway.is_some())
}

/// An operation in the words of `ip` and `nft`, for errors and logs.
pub(crate) fn describe(operation: &Operation, facts: &Facts) -> String {
    match operation {
        Operation::AddRoute(r) => format!("add route {}", route_text(r, facts)),
        Operation::ReplaceRoute { new, .. } => format!("replace route {}", route_text(new, facts)),
        Operation::DeleteRoute(r) => format!("delete route {}", route_text(r, facts)),
        Operation::AddRule(rule) => format!("add rule {rule}"),
        Operation::DeleteRule(found) => format!("delete rule {}", found.rule),
        Operation::SrcValidMark { link, on } => {
            format!("set src_valid_mark of {} to {}", facts.link_name(*link), u8::from(*on))
        }
        Operation::Sets(changes) => {
            changes.iter().map(SetChange::text).collect::<Vec<_>>().join(", ")
        }
        Operation::Mangle(scripts) => {
            let what = |s: &Script| cut(s.what.join(", "), VALUE_MOST);
            let text = |s: &Script| format!("{} {}: {}", s.variant, s.family, what(s));
            scripts.iter().map(text).collect::<Vec<_>>().join("; ")
        }
        Operation::RemoveEmpty(family, chains) => {
            let chains: Vec<_> = chains.iter().map(String::as_str).collect();
            format!("remove what is empty of {} in {family} table mangle", chains.join(", "))
        }
        Operation::Table(family, changes) => format!(
            "change table {family} symroute ({} change{})",
            changes.len(),
            if changes.len() == 1 { "" } else { "s" }
        ),
    }
}

/// A route in the words of `ip`.
pub(crate) fn route_text(route: &Route, facts: &Facts) -> String {
    use std::fmt::Write as _;
    let mut text = if route.is_default() { "default".to_string() } else { route.dst.to_string() };
    for hop in &route.nexthops {
        if let Some(gateway) = hop.gateway {
            // Writing to a string does not fail.
            let _ = write!(text, " via {gateway}");
        }
        let _ = write!(text, " dev {}", facts.link_name(hop.link));
    }
    let _ = write!(text, " table {} ({})", route.table, route.family());
    text
}
