//! The command line tool, `symroutectl`. This module and those of the commands declare the arguments
//! to clap, which makes help, completions and manual pages from the declarations.

mod agent;
mod attachments;
mod bundle;
mod conflist;
mod doctor;
mod explain;
mod marks;
mod pages;
mod places;
mod report;
pub(crate) mod result_cache;
mod screen;
mod status;
mod trace;
mod uninstall;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::capabilities::{self, Capabilities};
use crate::config::source::{NetworkConfig, Reader, SettingsSource};
use crate::error::Error;
use crate::logging;
use crate::names;
use crate::node::{Node, ended, pods};
use crate::process;
use crate::state::{AgentLock, State};

/// Name of the hold with which `up` keeps the node state.
const HOLD: &str = "up";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const EXIT_FAILED: u8 = 1;
/// The command line is wrong. clap exits with this code.
const EXIT_USAGE: u8 = 2;
/// `status`: symroute is not in force. `conflist`: the entry or the primary's file is missing.
const EXIT_NOT_IN_FORCE: u8 = 3;
/// The command succeeded and found something that needs attention.
const EXIT_UNHEALTHY: u8 = 4;

/// Help below a command's options: what it does, its exit codes (`codes` and those of every command)
/// and examples.
fn tail(about: &str, codes: &[(u8, &str)], examples: &[&str]) -> String {
    let mut all = [&[(EXIT_FAILED, "failed"), (EXIT_USAGE, "wrong usage")], codes].concat();
    all.sort_unstable();
    let codes: Vec<_> = all.iter().map(|(code, text)| format!("  {code}  {text}")).collect();
    let examples: Vec<_> = examples.iter().map(|e| format!("  {} {e}", names::TOOL)).collect();
    format!("{about}Exit codes:\n{}\n\nExamples:\n{}", codes.join("\n"), examples.join("\n"))
}

fn whole_tail() -> String {
    let about = "The container runtime calls the plugin \"symroute\" for each pod if a conflist lists \
                     it behind\nthe primary plugin: {\"type\": \"symroute\", \"uplinks\": [\"auto\"]}\n\n";
    let codes = [(0, "done"), (EXIT_NOT_IN_FORCE, "and 4: see COMMAND --help")];
    tail(
        about,
        &codes,
        &["up --config /etc/cni/net.d/10-aws.conflist", "status", "help conflist add"],
    )
}

/// Sends each reply out through the NIC on which its request arrived
#[derive(Debug, Parser)]
#[command(name = names::TOOL, bin_name = names::TOOL, version, after_help = whole_tail())]
#[command(arg_required_else_help = false)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Bring symroute into force on this node now, and keep it in force until "down"
    #[command(after_help = tail(
        "Without --config and --conf-dir, the settings in force stay; a node without any gets \
                 the defaults.\n\n",
        &[(0, "done")],
        &["up", "up --config /etc/cni/net.d/10-aws.conflist"]
    ))]
    Up {
        /// Read the settings from this conflist or plugin object
        #[arg(long, value_name = "FILE", conflicts_with = "conf_dir")]
        config: Option<PathBuf>,
        /// Read the settings from the first conflist in DIR that names symroute
        #[arg(long, value_name = "DIR")]
        conf_dir: Option<PathBuf>,
    },
    /// End the hold of "up" or of a stopped agent, and remove what no pod needs
    #[command(after_help = tail(
        "Rules, tables and marks stay while a pod is attached; the last pod's DEL removes them.\n\n",
        &[(0, "done, or the node state stays for pods or an agent")],
        &["down", "down --force"]
    ))]
    #[command(args_override_self = true)]
    Down {
        /// Remove the node state although pods are attached, and forget those pods
        #[arg(long)]
        force: bool,
    },
    /// Show uplinks, gateways, tables and attachments, and what is wrong with them
    #[command(after_help = status::tail(), args_override_self = true)]
    Status(status::Words),
    /// Find out why replies get lost on this node, with or without symroute
    #[command(after_help = doctor::tail(), args_override_self = true)]
    Doctor(doctor::Words),
    /// Explain which way a request and its reply take through this node, and why
    #[command(after_help = explain::tail(), args_override_self = true)]
    Explain(explain::Words),
    /// List which program uses which bits of the marks, and clashes with symroute's bits
    #[command(after_help = marks::tail(), args_override_self = true)]
    Marks(marks::Words),
    /// Write one file with everything that a bug report needs
    #[command(after_help = bundle::tail(), args_override_self = true)]
    Bundle(bundle::Words),
    /// Follow the packets of a client's connections through this node
    #[command(after_help = trace::tail(), args_override_self = true)]
    Trace(trace::Words),
    /// List the pods whose DEL will call symroute, and the attachments of this node
    #[command(after_help = attachments::tail(), args_override_self = true)]
    Attachments(attachments::Words),
    /// Run as a daemon and restore the node state whenever another program changes it
    #[command(after_help = agent::tail(), args_override_self = true)]
    Agent(agent::Words),
    /// Add symroute's entry to the primary plugin's conflist, remove it or check it
    #[command(after_help = conflist::tail(), arg_required_else_help = false)]
    Conflist(conflist::Words),
    /// Print the directories from which the runtime takes plugins and conflists
    #[command(after_help = places::tail(), args_override_self = true)]
    Places(places::Words),
    /// Remove symroute from a node that has no shell
    #[command(after_help = uninstall::tail(), args_override_self = true)]
    Uninstall(uninstall::Words),
    /// Print the script with which a shell completes this tool's arguments
    #[command(after_help = tail("", &[(0, "done")], &["completions bash >/etc/bash_completion.d/symroutectl"]))]
    Completions {
        /// Name of the shell
        shell: pages::Shell,
    },
    /// Print the manual page of this tool, or write one page per command
    #[command(after_help = tail("", &[(0, "done")], &["man | man -l -", "man /usr/local/share/man/man1"]))]
    Man {
        /// Write symroutectl.1, symroutectl-up.1 and the other pages into this directory
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

/// Error of a command. The text names the cause and the remedy.
#[derive(Debug)]
enum Failure {
    Failed(String),
    /// `uninstall` stopped, because pods still need the plugin (exit code 4).
    Needed(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(match error.remedy() {
            Some(remedy) => format!("{error}; {remedy}"),
            None => error.to_string(),
        })
    }
}

impl From<crate::state::Error> for Failure {
    fn from(error: crate::state::Error) -> Self {
        Error::from(error).into()
    }
}

/// Runs the command of a command line, whose first word is the program's name. Returns the exit code.
pub fn run(words: impl IntoIterator<Item = OsString>) -> u8 {
    match CommandLine::try_parse_from(words) {
        Ok(line) => {
            capabilities::keep(line.command.needs());
            finish(line.command.run())
        }
        Err(answer) => answer_of_clap(&answer),
    }
}

/// Prints help, the version or the error in the command line. Returns the exit code.
fn answer_of_clap(answer: &clap::Error) -> u8 {
    if answer.use_stderr() {
        let (rendered, mut stderr) = (answer.render(), io::stderr().lock());
        let colours = stderr.is_terminal() && env::var_os("NO_COLOR").is_none();
        let text = if colours { rendered.ansi().to_string() } else { rendered.to_string() };
        let text = text.replacen("error", names::TOOL, 1);
        let _ = stderr.write_all(text.as_bytes());
    } else {
        let _ = answer.print();
    }
    u8::try_from(answer.exit_code()).unwrap_or(EXIT_FAILED)
}

impl Command {
    /// Runs the command. Returns the text to print and the exit code.
    fn run(self) -> Result<(String, u8), Failure> {
        match self {
            Self::Up { config, conf_dir } => {
                let folder = conf_dir.map(SettingsSource::Folder);
                up(config.map(SettingsSource::File).or(folder).as_ref())
            }
            Self::Down { force } => down(force),
            Self::Status(words) => status::run(&words),
            Self::Doctor(words) => doctor::run(&words).map(without_control_characters),
            Self::Explain(words) => explain::run(&words).map(without_control_characters),
            Self::Marks(words) => marks::run(&words).map(without_control_characters),
            Self::Bundle(words) => bundle::run(&words),
            Self::Trace(words) => trace::run(&words),
            Self::Attachments(words) => attachments::run(&words),
            Self::Agent(words) => agent::run(words).map(|()| (String::new(), 0)),
            Self::Conflist(words) => conflist::run(words),
            Self::Places(words) => places::run(words),
            Self::Uninstall(words) => uninstall::run(&words),
            Self::Completions { shell } => Ok((pages::completions(shell), 0)),
            Self::Man { folder } => pages::manual(folder.as_deref()).map(|text| (text, 0)),
        }
    }

    /// Capabilities that the command needs. `run` drops all others.
    fn needs(&self) -> Capabilities {
        match self {
            Self::Status(status::Words { netns: Some(_), .. })
            | Self::Explain(explain::Words { netns: Some(_), .. }) => {
                Capabilities::TOOL.and(Capabilities::NAMESPACES)
            }
            Self::Down { force: true } => Capabilities::TOOL.and(Capabilities::NAMESPACES),
            Self::Up { .. }
            | Self::Down { .. }
            | Self::Status(_)
            | Self::Explain(_)
            | Self::Attachments(_)
            | Self::Places(_) => Capabilities::TOOL,
            Self::Agent(words) => words.needs(),
            Self::Conflist(_) => Capabilities::CONFLIST,
            Self::Uninstall(_) => Capabilities::CONFLIST.and(Capabilities::NAMESPACES),
            Self::Doctor(_) | Self::Marks(_) => Capabilities::SEARCH,
            Self::Bundle(_) => Capabilities::SEARCH.and(Capabilities::WRITES),
            Self::Trace(_) => Capabilities::TRACE,
            Self::Completions { .. } => Capabilities::NONE,
            Self::Man { .. } => Capabilities::WRITES,
        }
    }
}

/// Opens the node for reading, or the data plane of the pod with this network namespace.
fn node_of(netns: Option<&Path>) -> Result<Node, Error> {
    let Some(path) = netns else { return Node::to_look() };
    pods::enter(&State::new(names::STATE_DIR), &path.to_string_lossy())
}

/// Removes control characters from the text: another program may have put them into a name.
fn without_control_characters((text, code): (String, u8)) -> (String, u8) {
    (process::without_control_characters(&text), code)
}

/// Parses a duration of at most a day, such as `30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|_| "wanted: a time like 5s or 2min")?;
    if time > DAY { Err("wanted: a day at most".into()) } else { Ok(time) }
}

fn finish(outcome: Result<(String, u8), Failure>) -> u8 {
    let (text, code) = match outcome {
        Ok(done) => done,
        Err(failure) => return complain(&failure),
    };
    // A reader that closes the pipe early (status | head) is not an error.
    let _ = process::print(text.as_bytes());
    code
}

fn complain(failure: &Failure) -> u8 {
    let (text, code) = match failure {
        Failure::Failed(text) => (text, EXIT_FAILED),
        Failure::Needed(text) => (text, EXIT_UNHEALTHY),
    };
    let _ = writeln!(
        io::stderr().lock(),
        "{}: {}",
        names::TOOL,
        process::without_control_characters(text)
    );
    code
}

fn text_of(failure: Failure) -> String {
    match failure {
        Failure::Failed(text) | Failure::Needed(text) => text,
    }
}

fn up(source: Option<&SettingsSource>) -> Result<(String, u8), Failure> {
    let read = source.map_or(Ok(None), |source| source.read(Reader::Up));
    let given = read.map_err(Failure::Failed)?;
    let mut node = Node::open()?;
    if let Some(given) = given.as_ref().filter(|given| !given.config.scope.host) {
        node.give_up(HOLD, &given.network)?;
        let text = "the conflist serves only pods, so there is nothing to do on the node\n";
        return Ok((text.into(), 0));
    }
    let lock = node.lock()?;
    let in_force = node.state.record()?.map(NetworkConfig::from);
    let wanted = given.or(in_force).unwrap_or_else(|| Reader::Up.default_config());
    logging::start(&wanted.config.log);
    node.reconcile(&lock, &wanted.network, &wanted.config.settings)?;
    node.state.hold(HOLD, &wanted.network)?;
    if let Some(path) = &wanted.conflist {
        node.note_conflist(&wanted.network, path)?;
    }
    drop(lock);
    ended::sweep(&node.state, Path::new(names::CACHE_DIR))?;
    let conf_dir = match source {
        Some(SettingsSource::Folder(folder)) => folder,
        _ => Path::new(names::CONF_DIR),
    };
    status::after_up(conf_dir).map(|text| (text, 0))
}

fn down(force: bool) -> Result<(String, u8), Failure> {
    let mut node = Node::open()?;
    // A dying agent still holds its lock file, which would keep the state directory from being removed.
    AgentLock::wait_for_dying(&node.state)?;
    let is_down = take_down(&mut node, force)?;
    let left = node.state.pods()?.len();
    if force && left > 0 {
        return Err(Failure::Failed(format!("{left} pod(s) keep a data plane of their own")));
    }
    if is_down && left > 0 {
        return Ok((
            format!(
                "symroute is not in force on the node; {left} pod(s) keep a data plane of their own \
                 until they end\n"
            ),
            0,
        ));
    }
    if is_down {
        return Ok((
            "symroute is not in force: rules, routes, tables and sysctls are as before\n".into(),
            0,
        ));
    }
    let pods = node.state.count()?;
    let holders: Vec<_> = node.state.holders()?.into_iter().map(|(name, _)| name).collect();
    let mut text = format!("node state stays while it is needed: {pods} pod(s) attached");
    if !holders.is_empty() {
        text.push_str(", held by ");
        text.push_str(&holders.join(", "));
    }
    text.push_str("; the last of them removes it\n");
    Ok((text, 0))
}

/// Ends the holds of `up` and of the agent, and removes the node state unless a pod or another hold
/// needs it. With `force`, forgets all pods and holds first. Returns whether the state is removed.
fn take_down(node: &mut Node, force: bool) -> Result<bool, Failure> {
    if force {
        for pod in node.state.attachments()?.readable {
            node.state.detach(&pod.key)?;
        }
        for error in pods::end_all(&node.state)? {
            complain(&error.into());
        }
    }
    let lock = node.lock()?;
    if force {
        // Files that this release can't read can't be detached one by one.
        let unreadable = node.state.attachments()?.unreadable;
        State::sweep(&unreadable)?;
        node.state.release_all()?;
    }
    node.state.release(HOLD)?;
    // A stopped agent leaves its hold. A running agent takes the hold again.
    node.state.release(crate::agent::heal::HOLD)?;
    Ok(node.tear_down_if_idle(&lock)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Parses a command line without the program's name.
    pub(super) fn parsed(line: &str) -> Result<Command, String> {
        let words = [names::TOOL].into_iter().chain(line.split_whitespace());
        CommandLine::try_parse_from(words).map(|line| line.command).map_err(|e| e.to_string())
    }

    #[test]
    fn the_description_holds() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn command_lines() {
        assert!(matches!(parsed("status --json"), Ok(Command::Status(_))));
        assert!(parsed("status --watch --every 500ms").is_ok());
        assert_eq!(parsed("up"), Ok(Command::Up { config: None, conf_dir: None }));
        let config = Some("a".into());
        assert_eq!(parsed("up --config=a"), Ok(Command::Up { config, conf_dir: None }));
        assert_eq!(parsed("down --force"), Ok(Command::Down { force: true }));
        for wrong in [
            "",
            "fly",
            "up up",
            "status --config a",
            "down --json",
            "up --force",
            "status --root /",
            "status --every 1s",
            "status --watch --every 1ms",
            "uninstall now",
            "up --config",
            "up --config a --conf-dir b",
            "up --config a --config b",
            "down --conf-dir a",
            "completions tcsh",
            "--colour",
        ] {
            let said = parsed(wrong).unwrap_err();
            assert!(said.contains("--help"), "{wrong}: {said}");
        }
    }

    #[test]
    fn what_steers_a_terminal_is_not_printed() {
        let (text, code) = without_control_characters(("a \u{1b}[2J\u{9b}b\tc\n".into(), 4));
        assert_eq!((text.as_str(), code), ("a ?[2J?b\tc\n", 4));
    }

    #[test]
    fn times_are_bounded() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        for no_time in ["5", "soon"] {
            let error = duration(no_time).unwrap_err();
            assert_eq!(error, "wanted: a time like 5s or 2min", "{no_time}");
        }
        assert!(duration("300000000000y").is_err() && duration("25h").is_err());
    }

    #[test]
    fn every_help_has_examples_and_exit_codes() {
        fn check(command: &mut clap::Command) {
            let help = command.render_help().to_string();
            for wanted in ["\nExamples:\n  symroutectl ", "\nExit codes:\n  0  "] {
                assert!(help.contains(wanted), "{wanted:?} in\n{help}");
            }
            let long = help.lines().find(|line| line.chars().count() > 100);
            assert_eq!(long, None, "wider than a terminal");
            command.get_subcommands_mut().filter(|c| c.get_name() != "help").for_each(check);
        }
        let mut whole = CommandLine::command();
        whole.build();
        check(&mut whole);
    }
}
