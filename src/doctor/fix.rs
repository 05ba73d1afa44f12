//! `doctor --fix`: applies the remedies that consist of one rule of the routing policy database.

use serde_json::{Value, json};

use super::look;
use super::tproxy::{Proxy, RemedyRule};
use crate::config::Settings;
use crate::error::Error;
use crate::explain::ask::Asker;
use crate::model::FoundRule;
use crate::netlink::route;
use crate::node::Node;

/// One change that was made on the node.
#[derive(Debug)]
pub(crate) struct Fixed(RemedyRule);

impl Fixed {
    /// Text for a person.
    pub(crate) fn to_text(&self) -> String {
        format!("fixed: {}\n    undo: {}\n", self.0, self.0.undo())
    }

    /// JSON for programs.
    pub(crate) fn to_json(&self) -> Value {
        json!({"did": self.0.to_string(), "undo": self.0.undo()})
    }
}

/// Adds the rules that repair the node, and returns them. Tries one rule for each proxy, and removes a rule
/// that did not help.
pub(crate) fn fix(node: &mut Node, settings: &Settings) -> Result<Vec<Fixed>, Error> {
    let lock = node.lock()?;
    let (mut fixed, mut tried) = (Vec::new(), Vec::new());
    // One rule may repair several proxies, and its priority is no longer free for the next one.
    while let Some((proxy, remedy_rule)) =
        broken(node, settings)?.into_iter().find(|(p, _)| !tried.contains(p))
    {
        let rule = &remedy_rule.0;
        let added = route::add_rule(&mut node.kernel.rtnetlink, rule);
        if added.is_err() && !fixed.is_empty() {
            // Report the rules that were added. The finding for this proxy stays.
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
            fixed.push(Fixed(remedy_rule));
        }
    }
    drop(lock);
    Ok(fixed)
}

fn broken(node: &mut Node, settings: &Settings) -> Result<Vec<(Proxy, RemedyRule)>, Error> {
    match Asker::of(node, settings) {
        Ok(mut asker) => look::remedies(&mut asker),
        // Without a plan there is nothing to check, and doctor reports the reason.
        Err(Error::Config(_)) => Ok(Vec::new()),
        Err(other) => Err(other),
    }
}
