//! `symroutectl doctor`: what is wrong with replies on this node.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{EXIT_OFF, Failure};
use crate::doctor::{Severity, look};
use crate::node::Node;

/// Raised when keys of the JSON report change their meaning or go away.
const VERSION: u32 = 1;

const ABOUT: &str = "\
Needs no symroute on the node, and changes nothing. Each finding has an id, which
docs/troubleshooting.md explains, the evidence, and the remedy.

";

pub(super) fn tail() -> String {
    let codes = [(0, "nothing but notes"), (EXIT_OFF, "a warning or a problem")];
    let examples = ["doctor", "doctor --for 30s", "doctor --json | jq -r '.findings[].id'"];
    super::tail(ABOUT, &codes, &examples)
}

/// How to look.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// For how long to count what the reverse path filter drops
    #[arg(long = "for", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    watched: Duration,
    /// Settings to plan by where symroute is not in force
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object for programs
    #[arg(long)]
    json: bool,
}

/// Runs the command: what it prints, and its exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let settings = super::explain::settings(words.config.as_deref())?;
    let mut node = Node::to_look()?;
    let found = look::findings(&mut node, &settings, words.watched)?;
    let is_well = found.iter().all(|finding| finding.severity == Severity::Note);
    let text = if words.json {
        let findings: Vec<_> = found.iter().map(crate::doctor::Finding::to_json).collect();
        let unseen: Vec<_> = node.unseen.line().into_iter().collect();
        format!("{:#}\n", json!({"version": VERSION, "findings": findings, "notSeen": unseen}))
    } else if found.is_empty() {
        format!(
            "ok: replies leave by the interface that their requests came in by\n{}",
            node.unseen.text()
        )
    } else {
        let findings = found.iter().map(crate::doctor::Finding::to_text);
        findings.chain([node.unseen.text()]).collect()
    };
    Ok((text, if is_well { 0 } else { EXIT_OFF }))
}
