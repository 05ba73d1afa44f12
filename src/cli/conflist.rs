//! `symroute conflist add|remove|check`: our entry in the list of plugins that the runtime calls.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use lexopt::Arg::{Long, Short, Value as Word};
use serde_json::{Map, Value, json};

use super::{EXIT_FAILED, EXIT_NOT_IN_FORCE, EXIT_OFF, Failure};
use crate::conflist::{Directory, Edit, Error, Mode, Outcome, Places, State, View, Wanted};
use crate::names;

/// Raised when keys of the JSON report change their meaning or go away.
const VERSION: u32 = 1;

/// The command's own help.
const HELP: &str = "\
symroute conflist: symroute's entry in the conflist of the primary CNI plugin

Usage: symroute conflist add [--mode in-place|own-file] [--config FILE] [OPTION]...
       symroute conflist remove [OPTION]...
       symroute conflist check [--mode in-place|own-file] [--config FILE] [OPTION]...

Commands:
  add     put the entry behind the primary plugin, once, or put it right; does
          nothing when all is well, and may be run again at any time
  remove  take it out: the files are byte for byte as they were
  check   say how it stands; changes nothing

Options:
  --mode in-place    in the primary's own file
  --mode own-file    in a copy of it, 05-symroute.conflist, that the runtime takes
                     before it; without --mode: where the entry is, else in place
  --config FILE      the entry, a JSON object; default {\"type\": \"symroute\"}, and an
                     entry that is there keeps its settings
  --file NAME        the primary's file, where the runtime's choice is not the right
                     one; \"remove\": this file only
  --conf-dir DIR     where the runtime reads conflists (/etc/cni/net.d)
  --state-dir DIR    copies of files as found, and the journal (/var/lib/symroute)
  --root DIR         the node's file system; both directories are looked for there
  --dry-run          say what would be done, and do nothing
  --json             print for programs
  -h, --help         print this text
\"add\" remembers --mode, --config and --file until \"remove\".

Exit codes: 0 done, or well; 1 failed or refused, nothing was changed; 2 wrong
usage; 3 not there: the entry (check), or the primary's file so far; 4 check: the
entry is there, but something is off.

Examples:
  symroute conflist add
  symroute conflist add --config /etc/symroute.json --dry-run
  symroute conflist add --conf-dir /var/lib/rancher/k3s/agent/etc/cni/net.d
  symroute conflist check --json
  symroute conflist remove
";

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Remove,
    Check,
}

/// The words behind "conflist".
#[derive(Debug, PartialEq, Eq)]
struct Request {
    verb: Verb,
    mode: Option<Mode>,
    config: Option<PathBuf>,
    file: Option<String>,
    places: Places,
    dry_run: bool,
    json: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(format!("{error}; {}", error.way_out()))
    }
}

/// Whether these words, the program's name among them, are for this command.
pub(super) fn is_meant(words: &[OsString]) -> bool {
    words.get(1).is_some_and(|word| word == "conflist")
}

/// Runs the command: what it prints, and its exit code.
pub(super) fn run(words: Vec<OsString>) -> Result<(String, u8), Failure> {
    let Some(request) = parse(words.into_iter().skip(1))? else {
        return Ok((HELP.into(), 0));
    };
    let entry = request.config.as_deref().map(entry).transpose()?;
    let directory = Directory::at(request.places.clone());
    let wanted = Wanted { mode: request.mode, entry, file: request.file.clone() };
    let only = wanted.file.as_deref();
    let outcome = match (request.verb, request.dry_run) {
        (Verb::Check, _) => {
            let view = Some(directory.examine(&wanted)?);
            Outcome { found: view.clone(), now: view, ..Outcome::default() }
        }
        (Verb::Add, true) => {
            let view = directory.examine(&wanted)?;
            let changes = view.edits.clone();
            let now = Some(view.clone());
            Outcome { found: Some(view), now, changes, ..Outcome::default() }
        }
        (Verb::Add, false) => directory.add(&wanted)?,
        (Verb::Remove, true) => directory.examine_removal(only)?,
        (Verb::Remove, false) => directory.remove(only)?,
    };
    if let (Verb::Add, false, Some(view)) = (request.verb, request.json, &outcome.now) {
        if let State::Refused(reason) = &view.state {
            return Err(Failure::Failed(reason.to_string()));
        }
    }
    let exists = directory.path().is_dir();
    let code = code(&request, &outcome, exists);
    let report = if request.json { to_json } else { to_text };
    Ok((report(&request, &outcome, exists), code))
}

/// The request; none where help is asked for. The first word is "conflist".
fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Option<Request>, Failure> {
    let mut parser = lexopt::Parser::from_iter(words);
    let (mut verb, mut root) = (None, None);
    let mut places = Places::default();
    let (mut mode, mut config, mut file, mut dry_run, mut json) = (None, None, None, false, false);
    while let Some(word) = parser.next()? {
        match word {
            Short('h') | Long("help") => return Ok(None),
            Long("mode") => mode = Some(parse_mode(&parser.value()?)?),
            Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("file") => file = Some(parser.value()?.to_string_lossy().into_owned()),
            Long("conf-dir") => places.conf_dir = parser.value()?.into(),
            Long("state-dir") => places.state_dir = parser.value()?.into(),
            Long("root") => root = Some(PathBuf::from(parser.value()?)),
            Long("dry-run") => dry_run = true,
            Long("json") => json = true,
            Word(word) if verb.is_none() => {
                verb = Some(match word.to_str() {
                    Some("add") => Verb::Add,
                    Some("remove") => Verb::Remove,
                    Some("check") => Verb::Check,
                    Some("help") => return Ok(None),
                    _ => {
                        let text = format!("no command \"conflist {}\"", word.to_string_lossy());
                        return Err(Failure::Usage(text));
                    }
                });
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let usage = |text: &str| Failure::Usage(text.into());
    let verb = verb.ok_or_else(|| usage("one of add, remove, check is missing"))?;
    if verb == Verb::Remove && (mode.is_some() || config.is_some()) {
        return Err(usage("--mode and --config go with \"conflist add\" and \"conflist check\""));
    }
    if let Some(root) = root {
        places = places.under(&root);
    }
    Ok(Some(Request { verb, mode, config, file, places, dry_run, json }))
}

fn parse_mode(word: &OsString) -> Result<Mode, Failure> {
    match word.to_str() {
        Some("in-place") => Ok(Mode::InPlace),
        Some("own-file") => Ok(Mode::OwnFile),
        _ => {
            let word = word.to_string_lossy();
            let text = format!("--mode {word}: allowed are in-place and own-file");
            Err(Failure::Usage(text))
        }
    }
}

/// Our plugin object in a file.
pub(super) fn entry(path: &Path) -> Result<Map<String, Value>, Failure> {
    let fail = |text: String| Failure::Failed(format!("{}: {text}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let entry: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| fail(format!("{error}; give our plugin object")))?;
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
        (_, Verb::Check) => EXIT_OFF,
        (State::Refused(_), _) => EXIT_FAILED,
        // A dry run that would put it right; a real one leaves none of these behind.
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
        let (would, path) = (if request.dry_run { "would be " } else { "" }, path.display());
        match (change, request.verb) {
            (Edit::Delete { .. }, _) => line(format!("{path}: {would}deleted")),
            (Edit::Write { file, .. }, Verb::Add) if file == names::OWN_CONFLIST => {
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
    } else if outcome.changes.is_empty() && outcome.left.is_empty() {
        line(if exists {
            format!("{}: no entry of ours in it", dir.display())
        } else {
            format!("{}: no such directory; name the one that the runtime reads", dir.display())
        });
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

/// The state in one line.
fn describe(view: &View, dir: &Path) -> String {
    let file = match view.mode {
        Mode::InPlace => view_file(Some(view)),
        Mode::OwnFile => names::OWN_CONFLIST,
    };
    let path = dir.join(file);
    let path = path.display();
    let fix = "; put it right with: symroute conflist add";
    match &view.state {
        State::Ready => format!("ready: {path} has our entry"),
        State::Missing => format!("missing: {path} has no entry of ours{fix}"),
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
    let left = outcome.left.iter().map(|r| json!({"what": r.what, "wayOut": r.way_out}));
    let mut report = json!({
        "version": VERSION,
        "directory": dir,
        "exists": exists,
        "dryRun": request.dry_run,
        "changes": changes.collect::<Vec<_>>(),
        "left": left.collect::<Vec<_>>(),
    });
    if let (Some(found), Some(now)) = (&outcome.found, &outcome.now) {
        let reason = now.state.reason();
        report["found"] = json!(found.state.name());
        report["state"] = json!(now.state.name());
        report["mode"] = json!(now.mode.to_string());
        report["file"] = json!(now.file);
        report["notes"] = json!(now.notes);
        report["reason"] = json!(reason.map(|r| &r.what));
        report["wayOut"] = json!(reason.map(|r| &r.way_out));
    }
    format!("{report:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Request>, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn command_lines() {
        let request = parsed("conflist add --mode own-file --root /host").unwrap().unwrap();
        assert_eq!(request.mode, Some(Mode::OwnFile));
        assert_eq!(request.places.conf_dir, PathBuf::from("/host/etc/cni/net.d"));
        assert_eq!(request.places.state_dir, PathBuf::from("/host/var/lib/symroute"));
        assert_eq!(parsed("conflist check --help"), Ok(None));
        for wrong in [
            "conflist",
            "conflist fly",
            "conflist add check",
            "conflist add --mode elsewhere",
            "conflist remove --mode in-place",
            "conflist add --file",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
