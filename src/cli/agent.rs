//! The command line of `symroutectl agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Failure;
use crate::agent::binary::Binary;
use crate::agent::conflist::Entry;
use crate::agent::heal::HOLD;
use crate::agent::managed_file::Keeper;
use crate::agent::{self, Options};
use crate::capabilities::Capabilities;
use crate::config::source::SettingsSource;
use crate::conflist::{Directory, Places, Wanted};
use crate::logging;
use crate::names;
use crate::node::gate::ThisNode;

const ABOUT: &str = "\
The agent takes its settings from --config, or from the first conflist in --conf-dir
that names symroute. Without either, the settings in force stay; a node without any
gets the defaults. The agent holds the node state. A signal stops the agent and
removes nothing; run \"symroutectl down\" afterwards to remove the node state.

";

pub(super) fn tail() -> String {
    let examples = ["agent --manage-conflist --resync 5m", "agent --config /etc/symroute.json"];
    super::tail(ABOUT, &[(0, "ended by a signal")], &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Read the settings from this conflist or plugin object
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the runtime's conflists
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// Directory of the runtime's ADD results
    #[arg(long, value_name = "DIR", default_value = names::CACHE_DIR)]
    cache_dir: PathBuf,
    /// Keep symroute's entry in the primary plugin's conflist in --conf-dir
    #[arg(long)]
    manage_conflist: bool,
    /// Like --manage-conflist, with the JSON object in this file as the entry
    #[arg(long, value_name = "FILE")]
    entry: Option<PathBuf>,
    /// Directory of saved conflists and journal
    #[arg(long, value_name = "DIR", default_value = names::LASTING_DIR)]
    state_dir: PathBuf,
    /// Keep a copy of this program as the plugin in --bin-dir
    #[arg(long, value_name = "FILE")]
    install: Option<PathBuf>,
    /// Directory of the runtime's plugins
    #[arg(long, value_name = "DIR", default_value = names::BIN_DIR)]
    bin_dir: PathBuf,
    /// Add the entry even if --bin-dir does not have the primary plugin
    #[arg(long)]
    trust_bin_dir: bool,
    /// Serve /healthz, /readyz and /metrics, or "off"
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9617", value_parser = listen)]
    listen: Listen,
    /// Accept HTTP requests for this host name too; repeatable
    #[arg(long = "allow-host", value_name = "NAME")]
    allow_hosts: Vec<String>,
    /// Write the log to standard error instead of a file
    #[arg(long)]
    log_to_stderr: bool,
    /// Check the whole node this often, even without a change
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = resync)]
    resync: Duration,
}

/// Address of the HTTP server; `None` for "off". The alias keeps clap from reading `Option` as an
/// optional argument.
type Listen = Option<SocketAddr>;

fn listen(text: &str) -> Result<Listen, &'static str> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "wanted: ADDRESS:PORT, or \"off\"")
}

impl Words {
    /// Capabilities of the agent: it needs more if it keeps a conflist entry or the plugin in place.
    pub(super) fn needs(&self) -> Capabilities {
        if self.manage_conflist || self.entry.is_some() || self.install.is_some() {
            Capabilities::CONFLIST
        } else {
            Capabilities::TOOL
        }
    }
}

fn resync(text: &str) -> Result<Duration, &'static str> {
    let time = humantime::parse_duration(text).ok().filter(|time| *time >= Duration::from_secs(1));
    time.ok_or("wanted: 1s or more, like 30s or 5m")
}

/// Runs the agent until a signal ends it.
pub(super) fn run(words: Words) -> Result<(), Failure> {
    if words.log_to_stderr {
        logging::start_on_stderr();
    }
    let mut keepers = Vec::new();
    // Before the conflist keeper: a conflist must not name a program that does not exist.
    let mut plugins = None;
    if let Some(from) = words.install {
        plugins = Some(words.bin_dir.clone()).filter(|_| !words.trust_bin_dir);
        keepers.push(Keeper::new(Binary::new(from, words.bin_dir)));
    }
    if words.manage_conflist || words.entry.is_some() {
        let (conf_dir, state_dir) = (words.conf_dir.clone(), words.state_dir);
        let places = Places { conf_dir, state_dir, plugins, ..Places::default() };
        let entry = words.entry.as_deref().map(super::conflist::entry).transpose()?;
        let wanted = Wanted { entry, ..Wanted::default() };
        let gate = Some(ThisNode::holding(HOLD));
        keepers.push(Keeper::new(Entry::new(Directory::at(places), wanted, gate)));
    }
    let source = match words.config {
        Some(file) => SettingsSource::File(file),
        None => SettingsSource::Folder(words.conf_dir),
    };
    let options = Options {
        source,
        cache: words.cache_dir,
        listen: words.listen,
        hosts: words.allow_hosts,
        resync: words.resync,
        keepers,
    };
    agent::run(options).map_err(Failure::Failed)
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;

    fn parsed(line: &str) -> Result<Words, String> {
        match super::super::tests::parsed(&format!("agent {line}"))? {
            Command::Agent(words) => Ok(words),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn command_lines() {
        let words = parsed("--listen [::1]:80 --resync 5m --config a").unwrap();
        assert_eq!(words.listen, "[::1]:80".parse().ok());
        assert_eq!(words.resync, Duration::from_secs(300));
        assert_eq!(words.config, Some("a".into()));
        let words = parsed("--listen 1.1.1.1:1 --listen off").unwrap();
        assert_eq!((words.listen, words.resync), (None, Duration::from_secs(30)));
        assert_eq!(parsed("").unwrap().listen, "127.0.0.1:9617".parse().ok());
        for wrong in ["--listen localhost", "--resync 0s", "--resync soon", "--json", "up"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
