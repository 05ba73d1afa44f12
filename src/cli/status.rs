//! `symroutectl status`: shows what is in force on this node, once or with `--watch`.

use std::env;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::report::{Health, Report, Style};
use super::screen::{Screen, Waited};
use super::{EXIT_FAILED, EXIT_NOT_IN_FORCE, EXIT_UNHEALTHY, Failure};
use crate::conflist::{Directory, Reason};
use crate::names;
use crate::node::Node;
use crate::plan::Note;

const ABOUT: &str = "\
With --watch, the tool shows rates beside the counters; ^C or SIGTERM ends it with exit code 0.

";

/// Shortest time between two reports.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn tail() -> String {
    let codes = [
        (0, "in force and healthy, or --watch has ended"),
        (EXIT_NOT_IN_FORCE, "not in force"),
        (EXIT_UNHEALTHY, "in force, but something is wrong"),
    ];
    let examples = [
        "status",
        "status --json | jq '.uplinks[].name'",
        "status --watch --every 5s",
        "status --netns /run/netns/POD",
    ];
    super::tail(ABOUT, &codes, &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Directory of conflists, to check symroute's keys
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// Show the data plane of "scope": "pod" in this network namespace of a pod
    #[arg(long, value_name = "PATH")]
    pub(super) netns: Option<PathBuf>,
    /// Repeat the report and add rates; with --json, print one object per line
    #[arg(long)]
    watch: bool,
    /// Time between two reports of --watch
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval, requires = "watch")]
    every: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = super::duration(text)?;
    if time < MIN_INTERVAL { Err("wanted: 100ms or more".into()) } else { Ok(time) }
}

/// Runs the command. Returns the text to print and the exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let mut node = super::node_of(words.netns.as_deref())?;
    if words.watch {
        return watch(&mut node, words);
    }
    let report = look(&mut node, &words.conf_dir)?;
    if report.is_blind() {
        super::complain(&Failure::Failed("can't check everything: run as root".into()));
    }
    Ok((text(&report, words.json), code(&report)))
}

/// The report that `up` prints at its end.
pub(super) fn after_up(conf_dir: &Path) -> Result<String, Failure> {
    Ok(text(&look(&mut Node::open()?, conf_dir)?, false))
}

fn text(report: &Report, json: bool) -> String {
    if json { format!("{:#}\n", report.to_json()) } else { report.to_table(style()) }
}

fn code(report: &Report) -> u8 {
    match report.health() {
        Health::Well if report.is_blind() => EXIT_FAILED,
        Health::Well => 0,
        Health::Unhealthy => EXIT_UNHEALTHY,
        Health::NotInForce => EXIT_NOT_IN_FORCE,
    }
}

fn style() -> Style {
    let is_wanted = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
    if is_wanted { Style::Coloured } else { Style::Plain }
}

fn look(node: &mut Node, conf_dir: &Path) -> Result<Report, Failure> {
    node.look_again()?;
    let mut report = Report::of(node)?;
    // A directory that is missing or unreadable is no fault of the node.
    let conflists = Directory::open(conf_dir).read().unwrap_or_default();
    let slips = conflists.unknown_keys();
    report.note(slips.map(|Reason { what, remedy }| Note { what, remedy }));
    Ok(report)
}

/// Shows reports until a signal arrives or the reader closes standard output.
fn watch(node: &mut Node, words: &Words) -> Result<(String, u8), Failure> {
    let screen = Screen::open().map_err(|error| {
        Failure::Failed(format!("take over the signals that end --watch: {error}"))
    })?;
    let mut before: Option<Report> = None;
    loop {
        // An error of the first report ends the command. A later error may pass, so the watch goes on.
        let shown = match look(node, &words.conf_dir) {
            Ok(mut report) => {
                if let Some(before) = &before {
                    report.compare_with(before);
                }
                let text = page(&report, words.json, &screen, before.is_none());
                before = Some(report);
                text
            }
            Err(failure) if before.is_none() => return Err(failure),
            // The next screen would erase a message on standard error.
            Err(failure) if screen.is_terminal() => format!("{}\n", super::text_of(failure)),
            Err(failure) => {
                super::complain(&failure);
                String::new()
            }
        };
        if screen.show(&shown).is_err() || screen.wait(words.every) == Waited::Ended {
            return Ok((String::new(), 0));
        }
    }
}

/// The text of one report. Without a terminal, a blank line separates two tables.
fn page(report: &Report, json: bool, screen: &Screen, is_first: bool) -> String {
    match (json, is_first || screen.is_terminal()) {
        (true, _) => format!("{}\n", report.to_json()),
        (false, true) => report.to_table(style()),
        (false, false) => format!("\n{}", report.to_table(style())),
    }
}
