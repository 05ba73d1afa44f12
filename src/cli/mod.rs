//! The command line tool: `symroute up`, `down`, `status`, `attachments`, `agent`, `conflist`,
//! `uninstall`.

mod agent;
mod attachments;
mod configuration;
mod conflist;
mod report;
mod result_cache;
mod uninstall;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use lexopt::Arg::{Long, Short, Value};

use crate::config::Config;
use crate::config::source::Source as Settings;
use crate::error::Error;
use crate::logging;
use crate::node::Node;
use crate::process;
use crate::state::State;
use configuration::Source;
use report::{Health, Report};

/// Name of the hold that `up` has on the node state.
const HOLD: &str = "up";

/// Something could not be done.
const EXIT_FAILED: u8 = 1;
/// The command line was wrong.
const EXIT_USAGE: u8 = 2;
/// `status`: not in force.
const EXIT_NOT_IN_FORCE: u8 = 3;
/// `status`: in force, but something is off.
const EXIT_OFF: u8 = 4;

const HELP: &str = "\
symroute: replies leave this node by the NIC the request came in by

Usage: symroute up [--config FILE | --conf-dir DIR]
       symroute down [--force]
       symroute status [--json]
       symroute attachments [--json] [--cache-dir DIR] [--root DIR]
       symroute agent [options]
       symroute conflist add|remove|check [OPTION]...
       symroute uninstall [OPTION]...
       symroute --help | --version

Commands:
  up      put rules, tables and marks in place now, without a pod, and hold them
          until \"down\"; --config takes a conflist or a plugin object with the
          settings, --conf-dir a folder of which the first conflist that names
          symroute has them; without, those in force or else the defaults are used
  down    end that hold and the one of an agent that was stopped; with no pod
          enrolled, take everything away; --force: also with pods enrolled, which
          are forgotten
  status  show uplinks, gateways, tables, enrolled pods and what is off
  attachments
          list the pods whose DEL will call symroute, and those enrolled here
  agent   stay, and keep all this in place whoever changes the node; see
          \"symroute agent --help\"
  conflist
          put our entry into the primary plugin's conflist, or take it out;
          see: symroute conflist --help
  uninstall
          give a node without a shell back as it was; see: symroute uninstall --help

Options:
  --config FILE    settings for \"up\"
  --conf-dir DIR   settings for \"up\", by the runtime's folder
  --cache-dir DIR  the runtime's results (default /var/lib/cni/results)
  --root DIR       another node's file system, of which nothing runs
  --json           print \"status\" for programs
  -h, --help       print this text
  -V, --version    print the version

Exit codes: 0 done (status: in force and well; attachments: none), 1 failed,
2 wrong usage, 3 status: not in force, 4 status: in force, but something is off;
attachments: there are some.

Examples:
  symroute up --config /etc/cni/net.d/10-aws.conflist
  symroute status
  symroute status --json | jq '.uplinks[].name'

A container runtime runs symroute as a CNI plugin of type \"symroute\", listed in
a conflist behind the primary plugin:
  {\"type\": \"symroute\", \"uplinks\": [\"auto\"]}
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Version,
    Up { config: Option<Settings> },
    Down { force: bool },
    Status { json: bool },
    Attachments(attachments::Words),
    Agent(agent::Words),
    AgentHelp,
    Uninstall(uninstall::Words),
    UninstallHelp,
}

/// Why a command was not carried out.
#[derive(Debug)]
enum Failure {
    Usage(String),
    Failed(String),
    /// Pods need the program, so it stays.
    Needed(String),
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(match error.way_out() {
            Some(way_out) => format!("{error}; {way_out}"),
            None => error.to_string(),
        })
    }
}

impl From<crate::state::Error> for Failure {
    fn from(error: crate::state::Error) -> Self {
        Error::from(error).into()
    }
}

/// Runs the command that these words ask for.
pub fn run(words: impl IntoIterator<Item = OsString>) -> u8 {
    let words: Vec<OsString> = words.into_iter().collect();
    if conflist::is_meant(&words) {
        return finish(conflist::run(words));
    }
    finish(parse(words).and_then(|command| match command {
        Command::Help => Ok((HELP.to_string(), 0)),
        Command::Version => Ok((format!("symroute {}\n", env!("CARGO_PKG_VERSION")), 0)),
        Command::Up { config } => up(config.as_ref()),
        Command::Down { force } => down(force),
        Command::Attachments(words) => attachments::run(&words),
        Command::Status { json } => status(json),
        Command::Agent(words) => agent::run(words).map(|()| (String::new(), 0)),
        Command::AgentHelp => Ok((agent::HELP.to_string(), 0)),
        Command::Uninstall(words) => uninstall::run(&words),
        Command::UninstallHelp => Ok((uninstall::HELP.to_string(), 0)),
    }))
}

fn finish(outcome: Result<(String, u8), Failure>) -> u8 {
    let (text, code) = match outcome {
        Ok(done) => done,
        Err(failure) => return complain(&failure),
    };
    // A reader that has gone away (status | head) is no failure.
    let _ = process::print(text.as_bytes());
    code
}

fn complain(failure: &Failure) -> u8 {
    let (text, code) = match failure {
        Failure::Usage(text) => (format!("{text}; see \"symroute --help\""), EXIT_USAGE),
        Failure::Failed(text) => (text.clone(), EXIT_FAILED),
        Failure::Needed(text) => (text.clone(), EXIT_OFF),
    };
    let _ = writeln!(io::stderr().lock(), "symroute: {text}");
    code
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, Failure> {
    let mut parser = lexopt::Parser::from_iter(words);
    let (mut verb, mut config, mut json, mut force) = (None, None, false, false);
    let (mut cache_dir, mut root) = (None, None);
    while let Some(word) = parser.next()? {
        match word {
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('V') | Long("version") => return Ok(Command::Version),
            Long("config" | "conf-dir") if config.is_some() => {
                let text = "one of --config and --conf-dir, once";
                return Err(Failure::Usage(text.into()));
            }
            Long("config") => config = Some(Settings::File(parser.value()?.into())),
            Long("conf-dir") => config = Some(Settings::Folder(parser.value()?.into())),
            Long("cache-dir") => cache_dir = Some(PathBuf::from(parser.value()?)),
            Long("root") => root = Some(PathBuf::from(parser.value()?)),
            Long("json") => json = true,
            Long("force") => force = true,
            Value(value) if verb.is_none() && value == "agent" => {
                return Ok(agent::parse(&mut parser)?.map_or(Command::AgentHelp, Command::Agent));
            }
            Value(value) if verb.is_none() && value == "uninstall" => {
                let words = uninstall::parse(&mut parser)?;
                return Ok(words.map_or(Command::UninstallHelp, Command::Uninstall));
            }
            Value(value) if verb.is_none() => verb = Some(value.to_string_lossy().into_owned()),
            other => return Err(other.unexpected().into()),
        }
    }
    let command = match verb.as_deref() {
        Some("up") => Command::Up { config: config.take() },
        Some("down") => Command::Down { force: std::mem::take(&mut force) },
        Some("attachments") => Command::Attachments(attachments::Words::new(
            cache_dir.take().as_deref(),
            root.take().as_deref(),
            std::mem::take(&mut json),
        )),
        Some("status") => Command::Status { json: std::mem::take(&mut json) },
        Some("help") => Command::Help,
        Some(other) => return Err(Failure::Usage(format!("no command \"{other}\""))),
        None => return Err(Failure::Usage("a command is missing".into())),
    };
    if config.is_some() || json || force || cache_dir.is_some() || root.is_some() {
        let text = "--config and --conf-dir go with \"up\", --json with \"status\" and \
                    \"attachments\", --force with \"down\", --cache-dir and --root with \"attachments\"";
        return Err(Failure::Usage(text.into()));
    }
    Ok(command)
}

fn up(settings: Option<&Settings>) -> Result<(String, u8), Failure> {
    let given = settings.map(configuration::read).transpose()?.flatten();
    if let Some(Source { config, .. }) = &given {
        configuration::check_scope(config)?;
    }
    let mut node = Node::open()?;
    let lock = node.lock()?;
    let in_force = node.state.record()?.map(|r| Source {
        network: r.network,
        config: Config { settings: r.settings, ..configuration::default() },
        conflist: r.conflist,
    });
    let source = given.or(in_force).unwrap_or_else(|| Source {
        network: configuration::OWN_NETWORK.into(),
        config: configuration::default(),
        conflist: None,
    });
    logging::start(&source.config.log);
    node.reconcile(&lock, &source.network, &source.config.settings)?;
    node.state.hold(HOLD, &source.network)?;
    if let Some(path) = &source.conflist {
        node.note_conflist(path)?;
    }
    drop(lock);
    node.sweep_ended()?;
    status(false).map(|(text, _)| (text, 0))
}

fn down(force: bool) -> Result<(String, u8), Failure> {
    let mut node = Node::open()?;
    // Its file would be left.
    node.state.let_a_killed_agent_end()?;
    if take_down(&mut node, force)? {
        return Ok(("symroute is not in force: everything is as it was before\n".into(), 0));
    }
    let pods = node.state.count()?;
    let holders: Vec<_> = node.state.holders()?.into_iter().map(|(name, _)| name).collect();
    let mut text = format!("node state stays while it is needed: {pods} pod(s) attached");
    if !holders.is_empty() {
        text.push_str(", held by ");
        text.push_str(&holders.join(", "));
    }
    text.push_str("; the last of them takes it away\n");
    Ok((text, 0))
}

/// Takes the node state away unless somebody else needs it still: whether it is gone. With `force`
/// the pods are forgotten.
fn take_down(node: &mut Node, force: bool) -> Result<bool, Failure> {
    if force {
        for pod in node.state.attachments()?.readable {
            node.state.detach(&pod.key)?;
        }
    }
    let lock = node.lock()?;
    if force {
        // What can't be read, by this release or at all, can't be removed one by one.
        let unreadable = node.state.attachments()?.unreadable;
        State::sweep(&unreadable)?;
    }
    node.state.release(HOLD)?;
    // It stays when the agent stops; one that runs takes it again.
    node.state.release(crate::agent::heal::HOLD)?;
    Ok(node.tear_down_if_idle(&lock)?)
}

fn status(json: bool) -> Result<(String, u8), Failure> {
    let report = Report::of(&mut Node::open()?)?;
    let text = if json { report.to_json() } else { report.to_table() };
    let code = match report.health() {
        Health::Well => 0,
        Health::Off => EXIT_OFF,
        Health::NotInForce => EXIT_NOT_IN_FORCE,
    };
    Ok((text, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        let words = line.split_whitespace().map(OsString::from);
        parse(words).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn command_lines() {
        assert_eq!(parsed("symroute status --json"), Ok(Command::Status { json: true }));
        assert_eq!(parsed("symroute up"), Ok(Command::Up { config: None }));
        let file = Some(Settings::File("a".into()));
        assert_eq!(parsed("symroute up --config a"), Ok(Command::Up { config: file.clone() }));
        assert_eq!(parsed("symroute --config=a up"), Ok(Command::Up { config: file }));
        let folder = Some(Settings::Folder("a".into()));
        assert_eq!(parsed("symroute up --conf-dir a"), Ok(Command::Up { config: folder }));
        assert_eq!(parsed("symroute down --force"), Ok(Command::Down { force: true }));
        assert_eq!(parsed("symroute down -h"), Ok(Command::Help));
        for wrong in [
            "symroute",
            "symroute fly",
            "symroute up up",
            "symroute status --config a",
            "symroute down --json",
            "symroute up --force",
            "symroute status --root /",
            "symroute uninstall now",
            "symroute up --config",
            "symroute up --config a --conf-dir b",
            "symroute down --conf-dir a",
            "symroute --colour",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
