//! `symroutectl conflist add|remove|check`: manages our entry in the primary plugin's conflist.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValue;
use clap::{Args, Subcommand, ValueEnum};
use nix::unistd::geteuid;
use serde_json::{Map, Value, json};

use super::{EXIT_FAILED, EXIT_NOT_IN_FORCE, EXIT_UNHEALTHY, Failure, HOLD};
use crate::config::unknown;
use crate::conflist::{Directory, Edit, Error, Mode, Outcome, Places, State, View, Wanted, is_own};
use crate::names;
use crate::node::gate::{ThisNode, gate};
use crate::plain_file::{self, Links};

/// Version of the JSON report, raised when a key changes its meaning or is removed.
const VERSION: u32 = 1;

const ABOUT: &str = "\
With --mode in-place, the entry is in the primary's own file. With own-file, it is in
a copy, 05-symroute.conflist, which the runtime takes instead of the primary's file.
Without --mode, the entry stays in the mode that it has; a new one goes in place.
\"add\" remembers --mode, --config and --file until \"remove\". A command that fails or
refuses changes nothing.

";

/// The help below the options, for the command and for each of its verbs.
pub(super) fn tail() -> String {
    let examples = [
        "conflist add --config /etc/symroute.json --dry-run",
        "conflist check --json",
        "conflist remove --conf-dir /var/lib/rancher/k3s/agent/etc/cni/net.d",
    ];
    let codes = [
        (0, "done, or (check) the entry is right"),
        (
            EXIT_NOT_IN_FORCE,
            "the entry is missing (check), or the primary's file does not exist yet",
        ),
        (EXIT_UNHEALTHY, "check: the entry exists, but something is wrong"),
    ];
    super::tail(ABOUT, &codes, &examples)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Remove,
    Check,
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, PartialEq, Eq, Subcommand)]
enum Action {
    /// Add the entry behind the primary plugin, or correct an existing entry
    #[command(after_help = tail(), args_override_self = true)]
    Add(Wish),
    /// Remove the entry and restore the files byte for byte
    #[command(after_help = tail(), args_override_self = true)]
    Remove(Place),
    /// Report the state of the entry and change nothing
    #[command(after_help = tail(), args_override_self = true)]
    Check(Wish),
}

/// Arguments that describe the wanted entry.
#[derive(Debug, PartialEq, Eq, Args)]
struct Wish {
    /// File that has the entry
    #[arg(long)]
    mode: Option<Mode>,
    /// JSON object of the entry [default: unchanged, or {"type": "symroute"}]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With "add", only try the settings and do not bring them into force
    #[arg(long)]
    no_up: bool,
    #[command(flatten)]
    place: Place,
}

/// Arguments that say where the conflist is and how to report.
#[derive(Debug, PartialEq, Eq, Args)]
struct Place {
    /// Name of the primary's file [default: the one that the runtime takes]
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Directory of the runtime's conflists
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// Directory of saved conflists and journal
    #[arg(long, value_name = "DIR", default_value = names::LASTING_DIR)]
    state_dir: PathBuf,
    /// Root of the node's file system, which contains both directories
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Report what the command would do, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl ValueEnum for Mode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::InPlace, Self::OwnFile]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::InPlace => "in-place",
            Self::OwnFile => "own-file",
        }))
    }
}

/// One call of any verb. `remove` has a wish without mode and entry.
#[derive(Debug)]
struct Request {
    verb: Verb,
    wish: Wish,
    places: Places,
}

impl From<Words> for Request {
    fn from(words: Words) -> Self {
        let (verb, wish) = match words.action {
            Action::Add(wish) => (Verb::Add, wish),
            Action::Check(wish) => (Verb::Check, wish),
            Action::Remove(place) => {
                (Verb::Remove, Wish { mode: None, config: None, no_up: true, place })
            }
        };
        let (conf_dir, state_dir) = (wish.place.conf_dir.clone(), wish.place.state_dir.clone());
        let mut places = Places { conf_dir, state_dir, ..Places::default() };
        if let Some(root) = &wish.place.root {
            places = places.under(root);
        }
        Self { verb, wish, places }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(format!("{error}; {}", error.remedy()))
    }
}

impl Request {
    /// The node on which the entry's settings have to work. `None` with a `--root` of another node, and
    /// for users other than root, who can't inspect the node.
    fn node(&self) -> Option<ThisNode> {
        let is_here = self.wish.place.root.as_deref().is_none_or(|root| root == Path::new("/"));
        let may_look = geteuid().is_root();
        let node = if self.wish.no_up { ThisNode::trying(HOLD) } else { ThisNode::holding(HOLD) };
        (is_here && may_look).then_some(node)
    }
}

/// Runs the command. Returns the text to print and the exit code.
pub(super) fn run(words: Words) -> Result<(String, u8), Failure> {
    let request = Request::from(words);
    let entry = request.wish.config.as_deref().map(entry).transpose()?;
    let directory = Directory::at(request.places.clone());
    let wanted = Wanted { mode: request.wish.mode, entry, file: request.wish.place.file.clone() };
    let only = wanted.file.as_deref();
    let mut node = request.node();
    let outcome = match (request.verb, request.wish.place.dry_run) {
        (Verb::Check, _) => {
            let view = Some(directory.examine(&wanted)?);
            Outcome { found: view.clone(), now: view, ..Outcome::default() }
        }
        (Verb::Add, true) => {
            let view = directory.try_out(&wanted, gate(&mut node))?;
            let changes = view.edits.clone();
            let now = Some(view.clone());
            Outcome { found: Some(view), now, changes, ..Outcome::default() }
        }
        (Verb::Add, false) => directory.add(&wanted, gate(&mut node))?,
        (Verb::Remove, true) => directory.examine_removal(only)?,
        (Verb::Remove, false) => directory.remove(only)?,
    };
    if let (Verb::Add, false, Some(view)) = (request.verb, request.wish.place.json, &outcome.now) {
        if let State::Refused(reason) = &view.state {
            return Err(Failure::Failed(reason.to_string()));
        }
    }
    let exists = directory.path().is_dir();
    let code = code(&request, &outcome, exists);
    let report = if request.wish.place.json { to_json } else { to_text };
    Ok((report(&request, &outcome, exists), code))
}

/// Reads our plugin object from a file. Error: the file can't be read, has an unknown key or a wrong
/// value.
pub(super) fn entry(path: &Path) -> Result<Map<String, Value>, Failure> {
    let fail = |text: String| Failure::Failed(format!("{}: {text}", path.display()));
    let text = plain_file::read_text(path, plain_file::LONGEST, Links::Followed)
        .map_err(|error| fail(error.to_string()))?;
    let entry: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| fail(format!("{error}; give our plugin object")))?;
    if let Some(unknown) = unknown(&entry).next() {
        return Err(fail(unknown.to_string()));
    }
    Wanted::entry(entry).map_err(|invalid| fail(invalid.to_string()))
}

fn code(request: &Request, outcome: &Outcome, exists: bool) -> u8 {
    let Some(view) = &outcome.now else {
        return match (exists, outcome.left.is_empty()) {
            (false, _) => EXIT_NOT_IN_FORCE,
            (true, false) => EXIT_FAILED,
            (true, true) => 0,
        };
    };
    match (&view.state, request.verb) {
        (State::Ready, _) => 0,
        (State::WaitingForPrimary(_), _) | (State::Missing, Verb::Check) => EXIT_NOT_IN_FORCE,
        (_, Verb::Check) => EXIT_UNHEALTHY,
        (State::Refused(_), _) => EXIT_FAILED,
        // A dry run of `add` that would correct the entry. A real run leaves none of these states.
        (_, _) => 0,
    }
}

fn to_text(request: &Request, outcome: &Outcome, exists: bool) -> String {
    let dir = &request.places.conf_dir;
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    for change in &outcome.changes {
        let path = dir.join(change.file());
        let (would, path) =
            (if request.wish.place.dry_run { "would be " } else { "" }, path.display());
        match (change, request.verb) {
            (Edit::Delete { .. }, _) => line(format!("{path}: {would}deleted")),
            (Edit::Write { file, .. }, Verb::Add) if is_own(file) => {
                let source = view_file(outcome.now.as_ref());
                line(format!("{path}: {would}written, a copy of {source} with our entry"));
            }
            (Edit::Write { text, .. }, Verb::Add) if has_entry(text) => {
                line(format!("{path}: our entry {would}put in"));
            }
            (Edit::Write { .. }, _) => line(format!("{path}: our entry {would}taken out")),
        }
    }
    if let Some(view) = &outcome.now {
        for note in &view.notes {
            line(format!("note: {note}"));
        }
        if request.verb == Verb::Check
            || outcome.changes.is_empty()
            || view.state.reason().is_some()
        {
            line(describe(view, dir));
        }
    } else if outcome.changes.is_empty() && outcome.left.is_empty() && outcome.notes.is_empty() {
        line(if exists {
            format!("{}: no entry of ours in it", dir.display())
        } else {
            format!("{}: no such directory; name the one that the runtime reads", dir.display())
        });
    }
    for note in &outcome.notes {
        line(format!("note: {note}"));
    }
    for left in &outcome.left {
        line(left.to_string());
    }
    out
}

fn has_entry(text: &str) -> bool {
    crate::conflist::Network::parse(".conflist", text.as_bytes())
        .is_ok_and(|n| !n.ours().is_empty())
}

fn view_file(view: Option<&View>) -> &str {
    view.and_then(|view| view.file.as_deref()).unwrap_or("the primary's")
}

/// Describes the state in one line.
fn describe(view: &View, dir: &Path) -> String {
    let file = match view.mode {
        Mode::InPlace => view_file(Some(view)),
        Mode::OwnFile => view.own,
    };
    let path = dir.join(file);
    let path = path.display();
    let fix = "; put it right with: symroutectl conflist add";
    match &view.state {
        State::Ready => format!("ready: {path} has our entry"),
        State::Missing => format!("missing: {path} has no entry of symroute{fix}"),
        State::Duplicate => format!("duplicate: {path} has more than one entry of ours{fix}"),
        State::Misplaced => format!("misplaced: {path} has our entry before the primary's{fix}"),
        State::Differs => format!("differs: {path} has our entry with other settings{fix}"),
        State::Stale => {
            format!("stale: {path} is not made of {} as it is now{fix}", view_file(Some(view)))
        }
        State::OtherMode => {
            format!("other-mode: our entry is in {path} and in the other mode's file{fix}")
        }
        State::WaitingForPrimary(reason) => format!("waiting: {reason}"),
        State::Refused(reason) => format!("refused: {reason}"),
    }
}

fn to_json(request: &Request, outcome: &Outcome, exists: bool) -> String {
    let dir = &request.places.conf_dir;
    let changes = outcome.changes.iter().map(|change| match change {
        Edit::Write { file, text, .. } => json!({"file": file, "do": "write", "text": text}),
        Edit::Delete { file } => json!({"file": file, "do": "delete"}),
    });
    let left = outcome.left.iter().map(|r| json!({"what": r.what, "wayOut": r.remedy}));
    let mut report = json!({
        "version": VERSION,
        "directory": dir,
        "exists": exists,
        "dryRun": request.wish.place.dry_run,
        "changes": changes.collect::<Vec<_>>(),
        "left": left.collect::<Vec<_>>(),
        "notes": outcome.notes,
    });
    if let (Some(found), Some(now)) = (&outcome.found, &outcome.now) {
        let reason = now.state.reason();
        report["found"] = json!(found.state.name());
        report["state"] = json!(now.state.name());
        report["mode"] = json!(now.mode.to_string());
        report["file"] = json!(now.file);
        report["notes"] = json!(now.notes);
        report["reason"] = json!(reason.map(|r| &r.what));
        report["wayOut"] = json!(reason.map(|r| &r.remedy));
    }
    format!("{report:#}\n")
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        match super::super::tests::parsed(&format!("conflist {line}"))? {
            Command::Conflist(words) => Ok(words.into()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn command_lines() {
        let request = parsed("add --mode own-file --root /host").unwrap();
        assert_eq!(request.wish.mode, Some(Mode::OwnFile));
        assert_eq!(request.places.conf_dir, PathBuf::from("/host/etc/cni/net.d"));
        assert_eq!(request.places.state_dir, PathBuf::from("/host/var/lib/symroute"));
        for wrong in
            ["", "fly", "add check", "add --mode elsewhere", "remove --mode in-place", "add --file"]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
