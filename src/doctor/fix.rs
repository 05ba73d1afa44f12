//! What `doctor --fix` does: it applies the remedies that are a rule of the routing policy database.

use serde_json::{Value, json};

use super::look;
use super::tproxy::{Healing, Proxy};
use crate::config::Settings;
use crate::error::Error;
use crate::explain::ask::Asker;
use crate::model::FoundRule;
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

/// Applies what heals the node; nothing where there is nothing to heal. Each proxy gets one rule at most, and
/// one that does not heal it is taken back.
pub(crate) fn fix(node: &mut Node, settings: &Settings) -> Result<Vec<Fixed>, Error> {
    let lock = node.lock()?;
    let (mut fixed, mut tried) = (Vec::new(), Vec::new());
    // One rule may heal several proxies, and each takes a place that the next can't have.
    while let Some((proxy, healing)) =
        broken(node, settings)?.into_iter().find(|(p, _)| !tried.contains(p))
    {
        let rule = &healing.0;
        let added = route::add_rule(&mut node.kernel.rtnetlink, rule);
        if added.is_err() && !fixed.is_empty() {
            // What was done has to be said. The finding stays.
            break;
        }
        added.map_err(Error::kernel(format!("add the rule {rule}")))?;
        tried.push(proxy.clone());
        if broken(node, settings)?.iter().any(|(left, _)| *left == proxy) {
            let message = route::rule_message(rule);
            let useless = FoundRule { rule: rule.clone(), message };
            let gone = route::delete_rule(&mut node.kernel.rtnetlink, &useless);
            gone.map_err(Error::kernel(format!("take the rule {rule} back")))?;
        } else {
            fixed.push(Fixed(healing));
        }
    }
    drop(lock);
    Ok(fixed)
}

fn broken(node: &mut Node, settings: &Settings) -> Result<Vec<(Proxy, Healing)>, Error> {
    match Asker::of(node, settings) {
        Ok(mut asker) => look::remedies(&mut asker),
        // Then there is no plan to look by, and doctor says why.
        Err(Error::Config(_)) => Ok(Vec::new()),
        Err(other) => Err(other),
    }
}
