//! `symroutectl doctor`: what is wrong with replies on this node.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{EXIT_OFF, Failure};
use crate::config::Settings;
use crate::config::source::{Reader, SettingsSource};
use crate::conflist::{Directory, Wanted};
use crate::doctor::fix::{self, Fixed};
use crate::doctor::{Finding, Severity, conflist, look, of_kernel};
use crate::error::Error;
use crate::names;
use crate::node::Node;
use crate::state::AgentLock;

/// Raised when keys of the JSON report change their meaning or go away.
const VERSION: u32 = 1;

const ABOUT: &str = "\
Needs no symroute on the node, and changes nothing without --fix. Each finding has an id, which
docs/troubleshooting.md explains, the evidence, and the remedy.

";

pub(super) fn tail() -> String {
    let codes = [(0, "nothing but notes"), (EXIT_OFF, "a warning or a problem")];
    let examples =
        ["doctor", "doctor --for 30s", "doctor --fix", "doctor --json | jq -r '.findings[].id'"];
    super::tail(ABOUT, &codes, &examples)
}

/// How to look.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// For how long to count what the reverse path filter drops
    #[arg(long = "for", value_name = "TIME", default_value = "2s", value_parser = super::time)]
    watched: Duration,
    /// Add the ip rule of each finding "tproxy", and say how to undo that
    #[arg(long)]
    fix: bool,
    /// Settings to plan by where symroute is not in force
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the runtime reads conflists
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// Print one JSON object for programs
    #[arg(long)]
    json: bool,
}

/// Runs the command: what it prints, and its exit code.
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
            text.push_str("fixed: nothing, there is nothing that --fix can heal\n");
        }
        if found.is_empty() {
            text.push_str("ok: replies leave by the interface that their requests came in by\n");
        }
        text.extend(found.iter().map(Finding::to_text));
        text.push_str(&unseen.1);
        text
    };
    Ok((text, if is_well { 0 } else { EXIT_OFF }))
}

/// What was found and done.
#[derive(Default)]
struct Looked {
    found: Vec<Finding>,
    fixed: Vec<Fixed>,
    /// What could not be seen, for programs and for people.
    unseen: (Option<String>, String),
}

fn look(words: &Words, settings: &Settings) -> Result<Looked, Error> {
    let mut node = Node::to_look()?;
    let fixed = if words.fix { fix::fix(&mut node, settings)? } else { Vec::new() };
    let mut found = look::findings(&mut node, settings, words.watched)?;
    // A folder that is not there, or can't be read, says nothing of the node.
    let view = Directory::open(&words.conf_dir).examine(&Wanted::default()).ok();
    let order = view.and_then(|view| conflist::finding(&view, &words.conf_dir));
    let asked = SettingsSource::Folder(words.conf_dir.clone()).read(Reader::Agent);
    // What serves pods alone asks for nothing on the node.
    let asked = asked.map(|found| found.filter(|found| found.config.scope.host));
    let record = node.record()?;
    let agent_runs = AgentLock::is_held(&node.state);
    let settings = conflist::settings(&asked, record.as_ref(), &words.conf_dir, agent_runs);
    // Of two entries it can't be said which one's settings count.
    found.extend(settings.filter(|_| order.is_none() || asked.is_ok()));
    found.extend(order);
    Ok(Looked { found, fixed, unseen: (node.unseen.line(), node.unseen.text()) })
}
