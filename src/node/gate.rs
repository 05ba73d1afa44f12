//! This node as the gate of a conflist change: settings come into force before an entry names
//! symroute.

use super::Node;
use crate::config::source::NetworkConfig;
use crate::conflist::{Gate, Reason};
use crate::error::Error;

/// The node of this network namespace.
#[derive(Debug)]
pub(crate) struct ThisNode {
    /// Name of the hold on the node state.
    hold: &'static str,
    /// Whether settings come into force, or are only tried.
    enforces: bool,
    /// Whether the hold did not exist before.
    is_new: bool,
}

impl ThisNode {
    /// A gate that brings settings into force and holds them by this name.
    pub(crate) fn holding(hold: &'static str) -> Self {
        Self { hold, enforces: true, is_new: false }
    }

    /// A gate that only tries settings.
    pub(crate) fn trying(hold: &'static str) -> Self {
        Self { enforces: false, ..Self::holding(hold) }
    }

    fn enforce(&mut self, wanted: &NetworkConfig) -> Result<(), Error> {
        let mut node = Node::open()?;
        let lock = node.lock()?;
        let held = node.state.holders()?.into_iter().find(|(name, _)| name == self.hold);
        // The hold moves first. Otherwise the settings of a network that takes over would disagree
        // with it.
        node.state.hold(self.hold, &wanted.network)?;
        let reconciled = node.reconcile(&lock, &wanted.network, &wanted.config.settings);
        let outcome = reconciled.and_then(|_| match &wanted.conflist {
            Some(path) => node.note_conflist(&wanted.network, path),
            None => Ok(()),
        });
        self.is_new = outcome.is_ok() && held.is_none();
        match (&outcome, held) {
            (Err(_), Some((_, before))) => node.state.hold(self.hold, &before)?,
            (Err(_), None) => node.state.release(self.hold)?,
            (Ok(()), _) => {}
        }
        outcome
    }

    fn release(&self) -> Result<(), Error> {
        let mut node = Node::open()?;
        let lock = node.lock()?;
        node.state.release(self.hold)?;
        node.tear_down_if_idle(&lock).map(drop)
    }
}

impl Gate for ThisNode {
    fn fits(&mut self, wanted: &NetworkConfig) -> Result<(), Reason> {
        let settings = &wanted.config.settings;
        let tried = Node::open().and_then(|mut node| node.try_out(&wanted.network, settings));
        tried.map_err(|error| refused(wanted, &error))
    }

    fn open(&mut self, wanted: &NetworkConfig) -> Result<(), Reason> {
        if !self.enforces {
            return self.fits(wanted);
        }
        self.enforce(wanted).map_err(|error| refused(wanted, &error))
    }

    fn close(&mut self) {
        if !self.is_new {
            return;
        }
        if let Err(error) = self.release() {
            log::error!("undo the hold for the conflist: {error}");
        }
    }
}

/// The node as a gate for the conflist, if there is one.
pub(crate) fn gate(node: &mut Option<ThisNode>) -> Option<&mut dyn Gate> {
    node.as_mut().map(|node| node as &mut dyn Gate)
}

fn refused(wanted: &NetworkConfig, error: &Error) -> Reason {
    let file = wanted.conflist.as_deref().unwrap_or_else(|| "the conflist".as_ref());
    let remedy = error.remedy().unwrap_or("correct the settings, then add again");
    Reason {
        what: format!("{}: is left as it is, since no pod could start: {error}", file.display()),
        remedy: remedy.into(),
    }
}
