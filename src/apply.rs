//! Operations carried out. What was done can be undone, so that a failing step leaves nothing.

use std::fs;

use nix::errno::Errno;

use crate::error::Error;
use crate::facts::{Facts, FoundRule, Route};
use crate::gather::src_valid_mark_path;
use crate::netlink::nft::Batch;
use crate::netlink::{Socket, route};
use crate::plan::diff::{Operation, TableChange};

/// What became of a list of operations that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// At least one was carried out.
    Something,
    /// None was: there were none, or none that can be.
    Nothing,
}

/// Where operations go.
#[derive(Debug)]
pub struct Kernel {
    /// Links, addresses, routes, rules.
    pub rtnetlink: Socket,
    /// The nftables table.
    pub nftables: Socket,
}

impl Kernel {
    /// Opens both sockets in the network namespace of this thread.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            rtnetlink: Socket::route().map_err(Error::kernel("open a socket to rtnetlink"))?,
            nftables: Socket::netfilter().map_err(Error::kernel("open a socket to nf_tables"))?,
        })
    }

    /// Carries out the operations in order. After a failure those done are undone, the last
    /// first, and the failure is returned.
    pub fn apply(&mut self, operations: &[Operation], facts: &Facts) -> Result<Applied, Error> {
        let mut done: Vec<&Operation> = Vec::new();
        for operation in operations {
            log::debug!("{}", describe(operation, facts));
            match self.execute(operation, facts) {
                Ok(()) => done.push(operation),
                Err(error) if is_dispensable(operation, &error) => log::warn!("left out: {error}"),
                Err(error) => {
                    done.into_iter().rev().for_each(|operation| self.undo(operation, facts));
                    return Err(error);
                }
            }
        }
        Ok(if done.is_empty() { Applied::Nothing } else { Applied::Something })
    }

    /// Carries out all operations, whatever fails, and returns what failed.
    pub fn apply_all(&mut self, operations: &[Operation], facts: &Facts) -> Vec<Error> {
        let execute = |operation| {
            log::debug!("{}", describe(operation, facts));
            self.execute(operation, facts).err()
        };
        operations.iter().filter_map(execute).collect()
    }

    fn execute(&mut self, operation: &Operation, facts: &Facts) -> Result<(), Error> {
        let result = match operation {
            Operation::AddRoute(r) => route::add_route(&mut self.rtnetlink, r),
            Operation::ReplaceRoute { new, .. } => route::replace_route(&mut self.rtnetlink, new),
            Operation::DeleteRoute(r) => route::delete_route(&mut self.rtnetlink, r),
            Operation::AddRule(r) => route::add_rule(&mut self.rtnetlink, r),
            Operation::DeleteRule(found) => route::delete_rule(&mut self.rtnetlink, found),
            Operation::SrcValidMark { link, on } => return set_src_valid_mark(facts, *link, *on),
            Operation::Table(changes) => batch(changes).commit(&mut self.nftables),
        };
        result.map_err(|source| Error::Kernel { operation: describe(operation, facts), source })
    }

    /// Undoes an operation as well as it can be: the failure that led here is what is reported.
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
            // One batch, after which there are removals only; what is left is healed by the next
            // reconcile.
            Operation::Table(_) => return,
        };
        if let Err(error) = self.execute(&inverse, facts) {
            log::warn!("undo: {error}");
        }
    }
}

/// A route of main that leads to some place by another router than the uplink's gateway is copied
/// for that place's sake. One that the kernel does not take in another table is no reason to fail.
fn is_dispensable(operation: &Operation, error: &Error) -> bool {
    let (Operation::AddRoute(route) | Operation::ReplaceRoute { new: route, .. }) = operation
    else {
        return false;
    };
    let refused = matches!(error, Error::Kernel { source, .. }
        if matches!(source.errno, Errno::EINVAL | Errno::ENETUNREACH | Errno::EHOSTUNREACH));
    refused && !route.is_default() && route.nexthops.iter().any(|hop| hop.gateway.is_some())
}

fn set_src_valid_mark(facts: &Facts, link: u32, on: bool) -> Result<(), Error> {
    // An interface that has gone took its sysctls with it.
    let Some(link) = facts.link(link) else {
        return Ok(());
    };
    let path = src_valid_mark_path(&link.name);
    match fs::write(&path, if on { "1" } else { "0" }) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Sysctl { path, source })
        }
        _ => Ok(()),
    }
}

fn batch(changes: &[TableChange]) -> Batch {
    let mut batch = Batch::default();
    for change in changes {
        match change {
            TableChange::DeleteTable => batch.delete_table(),
            TableChange::NewTable => batch.new_table(),
            TableChange::NewSet(set) => batch.new_set(set),
            TableChange::NewChain(chain) => batch.new_chain(chain),
            TableChange::FlushChain(name) => batch.flush_chain(name),
            TableChange::AppendRule(chain, rule) => batch.append_rule(chain, rule),
            TableChange::DeleteElements(set, elements) => batch.delete_elements(set, elements),
            TableChange::AddElements(set, elements) => batch.add_elements(set, elements),
            TableChange::DeleteChain(name) => batch.delete_chain(name),
            TableChange::DeleteSet(name) => batch.delete_set(name),
        }
    }
    batch
}

/// An operation in the words of `ip` and `nft`, for errors and logs.
#[must_use]
pub fn describe(operation: &Operation, facts: &Facts) -> String {
    match operation {
        Operation::AddRoute(r) => format!("add route {}", route_text(r, facts)),
        Operation::ReplaceRoute { new, .. } => format!("replace route {}", route_text(new, facts)),
        Operation::DeleteRoute(r) => format!("delete route {}", route_text(r, facts)),
        Operation::AddRule(rule) => format!("add rule {rule}"),
        Operation::DeleteRule(found) => format!("delete rule {}", found.rule),
        Operation::SrcValidMark { link, on } => {
            format!("set src_valid_mark of {} to {}", facts.link_name(*link), u8::from(*on))
        }
        Operation::Table(changes) => format!(
            "change table inet symroute ({} change{})",
            changes.len(),
            if changes.len() == 1 { "" } else { "s" }
        ),
    }
}

fn route_text(route: &Route, facts: &Facts) -> String {
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
