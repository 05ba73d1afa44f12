//! `symroutectl status`: what is in force on this node, once or again and again.

use std::env;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::report::{Health, Report, Style};
use super::screen::{Screen, Waited};
use super::{EXIT_FAILED, EXIT_NOT_IN_FORCE, EXIT_OFF, Failure};
use crate::conflist::{Directory, Reason};
use crate::names;
use crate::node::Node;
use crate::plan::Note;

const ABOUT: &str = "\
With --watch, rates are shown beside the counters; ^C or SIGTERM ends it with exit code 0.

";

/// The shortest time between two looks.
const BRISK: Duration = Duration::from_millis(100);

pub(super) fn tail() -> String {
    let codes = [
        (0, "in force and well; or --watch was ended"),
        (EXIT_NOT_IN_FORCE, "not in force"),
        (EXIT_OFF, "in force, but something is wrong"),
    ];
    let examples = [
        "status",
        "status --json | jq '.uplinks[].name'",
        "status --watch --every 5s",
        "status --netns /run/netns/POD",
    ];
    super::tail(ABOUT, &codes, &examples)
}

/// What to show, and how often.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Print one JSON object for programs
    #[arg(long)]
    json: bool,
    /// The runtime's conflists, to find slips in
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// A pod's network namespace, to show what "scope": "pod" has made there
    #[arg(long, value_name = "PATH")]
    pub(super) netns: Option<PathBuf>,
    /// Look again and again, and show rates; with --json one object to a line
    #[arg(long)]
    watch: bool,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = pace, requires = "watch")]
    every: Duration,
}

fn pace(text: &str) -> Result<Duration, String> {
    let time = super::time(text)?;
    if time < BRISK { Err("wanted: 100ms or more".into()) } else { Ok(time) }
}

/// Runs the command: what it prints, and its exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let mut node = super::node_of(words.netns.as_deref())?;
    if words.watch {
        return watch(&mut node, words);
    }
    let report = look(&mut node, &words.conf_dir)?;
    if report.is_blind() {
        super::complain(&Failure::Failed("whether all is well can't be seen: run as root".into()));
    }
    Ok((text(&report, words.json), code(&report)))
}

/// What `up` prints when it is done.
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
        Health::Off => EXIT_OFF,
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
    // A folder that is not there, or can't be read, says nothing of the node.
    let conflists = Directory::open(conf_dir).read().unwrap_or_default();
    let slips = conflists.unknown_keys();
    report.note(slips.map(|Reason { what, way_out }| Note { what, way_out }));
    Ok(report)
}

/// Shows one report after the other, until a signal ends it or the reader has gone.
fn watch(node: &mut Node, words: &Words) -> Result<(String, u8), Failure> {
    let screen = Screen::open().map_err(|error| {
        Failure::Failed(format!("take over the signals that end --watch: {error}"))
    })?;
    let mut before: Option<Report> = None;
    loop {
        // The first look says what can't be done here; a later one may do better the next time.
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
            // A message on standard error would go with the next screen.
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

/// What is shown of one look. Beside a terminal, a blank line is between two tables.
fn page(report: &Report, json: bool, screen: &Screen, is_first: bool) -> String {
    match (json, is_first || screen.is_terminal()) {
        (true, _) => format!("{}\n", report.to_json()),
        (false, true) => report.to_table(style()),
        (false, false) => format!("\n{}", report.to_table(style())),
    }
}
