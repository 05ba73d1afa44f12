//! What `doctor --fix` does: it applies the remedies that are a rule of the routing policy database.

use serde_json::{Value, json};

use super::look;
use super::tproxy::Healing;
use crate::config::Settings;
use crate::error::Error;
use crate::explain::ask::Asker;
use crate::netlink::route;
use crate::node::Node;

/// One change of the node.
#[derive(Debug)]
pub(crate) struct Fixed(Healing);

impl Fixed {
    /// For a person.
    pub(crate) fn to_text(&self) -> String {
        format!("fixed: {}\n    undo: {}\n", self.0, self.0.undo())
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        json!({"did": self.0.to_string(), "undo": self.0.undo()})
    }
}

/// Applies what heals the node; nothing where there is nothing to heal.
pub(crate) fn fix(node: &mut Node, settings: &Settings) -> Result<Vec<Fixed>, Error> {
    let lock = node.lock()?;
    let mut fixed = Vec::new();
    // One rule may heal several proxies, and each takes a place that the next can't have.
    while let Some(healing) = next(node, settings)? {
        let rule = &healing.0;
        let is_done = |done: &Fixed| done.0 == healing;
        if fixed.iter().any(is_done) {
            break;
        }
        let added = route::add_rule(&mut node.kernel.rtnetlink, rule);
        added.map_err(Error::kernel(format!("add the rule {rule}")))?;
        fixed.push(Fixed(healing));
    }
    drop(lock);
    Ok(fixed)
}

fn next(node: &mut Node, settings: &Settings) -> Result<Option<Healing>, Error> {
    match Asker::of(node, settings) {
        Ok(mut asker) => Ok(look::remedies(&mut asker)?.into_iter().next()),
        // Then there is no plan to look by, and doctor says why.
        Err(Error::Config(_)) => Ok(None),
        Err(other) => Err(other),
    }
}
