//! `symroutectl doctor`: finds out why replies get lost on this node.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{EXIT_UNHEALTHY, Failure};
use crate::config::Settings;
use crate::config::source::{Reader, SettingsSource};
use crate::conflist::{Directory, Wanted};
use crate::doctor::fix::{self, Fixed};
use crate::doctor::{Finding, Severity, conflist, look, of_kernel};
use crate::error::Error;
use crate::names;
use crate::node::Node;
use crate::state::AgentLock;

/// Version of the JSON report, raised when a key changes its meaning or is removed.
const VERSION: u32 = 1;

const ABOUT: &str = "\
The node does not need symroute, and the tool changes nothing without --fix. Each finding has
an id, the evidence and the remedy; docs/troubleshooting.md explains the ids.

";

pub(super) fn tail() -> String {
    let codes = [(0, "nothing but notes"), (EXIT_UNHEALTHY, "a warning or a problem")];
    let examples =
        ["doctor", "doctor --for 30s", "doctor --fix", "doctor --json | jq -r '.findings[].id'"];
    super::tail(ABOUT, &codes, &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Count the drops of the reverse path filter for this long
    #[arg(long = "for", value_name = "TIME", default_value = "2s", value_parser = super::duration)]
    watched: Duration,
    /// Add the ip rule of each "tproxy" finding, and print how to undo that
    #[arg(long)]
    fix: bool,
    /// Plan with the settings in this file if symroute is not in force
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the runtime's conflists
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command. Returns the text to print and the exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let settings = super::explain::settings_in(words.config.as_deref(), &words.conf_dir)?;
    let looked = look(words, &settings);
    let Looked { mut found, fixed, unseen } = match looked {
        Err(error) => match of_kernel(&error) {
            Some(finding) => Looked { found: vec![finding], ..Looked::default() },
            None => return Err(error.into()),
        },
        Ok(looked) => looked,
    };
    found.sort_by_key(|finding| Reverse(finding.severity));
    let is_well = found.iter().all(|finding| finding.severity == Severity::Note);
    let text = if words.json {
        let findings: Vec<_> = found.iter().map(Finding::to_json).collect();
        let unseen: Vec<_> = unseen.0.into_iter().collect();
        let mut report = json!({"version": VERSION, "findings": findings, "notSeen": unseen});
        if words.fix {
            report["fixed"] = fixed.iter().map(Fixed::to_json).collect();
        }
        format!("{report:#}\n")
    } else {
        let mut text: String = fixed.iter().map(Fixed::to_text).collect();
        if words.fix && fixed.is_empty() {
            text.push_str("fixed: nothing, no finding is one that --fix can correct\n");
        }
        if found.is_empty() {
            text.push_str("ok: replies leave by the interface that their requests came in by\n");
        }
        text.extend(found.iter().map(Finding::to_text));
        text.push_str(&unseen.1);
        text
    };
    Ok((text, if is_well { 0 } else { EXIT_UNHEALTHY }))
}

#[derive(Default)]
struct Looked {
    found: Vec<Finding>,
    fixed: Vec<Fixed>,
    /// What the tool could not read, for the JSON report and for the text.
    unseen: (Option<String>, String),
}

fn look(words: &Words, settings: &Settings) -> Result<Looked, Error> {
    let mut node = Node::to_look()?;
    let fixed = if words.fix { fix::fix(&mut node, settings)? } else { Vec::new() };
    let mut found = look::findings(&mut node, settings, words.watched)?;
    // A directory that is missing or unreadable is no finding about the node.
    let view = Directory::open(&words.conf_dir).examine(&Wanted::default()).ok();
    let order = view.and_then(|view| conflist::finding(&view, &words.conf_dir));
    let asked = SettingsSource::Folder(words.conf_dir.clone()).read(Reader::Agent);
    // An entry with "scope": "pod" asks for nothing on the node.
    let asked = asked.map(|found| found.filter(|found| found.config.scope.host));
    let record = node.record()?;
    let agent_runs = AgentLock::is_held(&node.state);
    let settings = conflist::settings(&asked, record.as_ref(), &words.conf_dir, agent_runs);
    // With a duplicate entry, nothing says whose settings count.
    found.extend(settings.filter(|_| order.is_none() || asked.is_ok()));
    found.extend(order);
    Ok(Looked { found, fixed, unseen: (node.unseen.line(), node.unseen.text()) })
}
