//! The command line of `symroute agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg::Long, Parser};

use super::Failure;
use crate::agent::binary::Binary;
use crate::agent::conflist::Entry;
use crate::agent::keep::Kept;
use crate::agent::{self, Options};
use crate::config::source::Source;
use crate::conflist::{Directory, Places, Wanted};
use crate::names;

/// Default of `--listen`.
const LISTEN: &str = "127.0.0.1:9617";
/// Default of `--resync`.
const RESYNC: Duration = Duration::from_secs(30);

pub(super) const HELP: &str = "\
symroute agent: keeps what is in force in force, whoever changes the node

Usage: symroute agent [--config FILE | --conf-dir DIR] [options]

It takes its settings from FILE, or from the first conflist in DIR that names
symroute; where there is none it keeps what is in force, or else the defaults.
It holds the node state, also when it ends: a signal stops the agent and removes
nothing; \"symroute down\" does that afterwards.

Options:
  --config FILE       a conflist or a plugin object
  --conf-dir DIR      the runtime's conflists (default /etc/cni/net.d)
  --cache-dir DIR     the runtime's results (default /var/lib/cni/results): pods
                      that were there before symroute are enrolled from it
  --manage-conflist   keep our entry in the primary plugin's conflist in DIR
  --entry FILE        the same, with these settings: a JSON object
  --state-dir DIR     what is known of that entry (default /var/lib/symroute)
  --install FILE      keep a copy of FILE as the plugin in --bin-dir
  --bin-dir DIR       the runtime's plugins (default /opt/cni/bin)
  --listen ADDR:PORT  /healthz, /readyz, /metrics (default 127.0.0.1:9617), or
                      \"off\"
  --resync TIME       look at everything that often, whatever was told (default
                      30s)
  -h, --help          print this text

Example:
  symroute agent --conf-dir /etc/cni/net.d --listen 127.0.0.1:9617
";

/// The words behind "agent".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    config: Option<PathBuf>,
    conf_dir: PathBuf,
    cache_dir: PathBuf,
    manage_conflist: bool,
    entry: Option<PathBuf>,
    state_dir: PathBuf,
    install: Option<PathBuf>,
    bin_dir: PathBuf,
    listen: Option<SocketAddr>,
    resync: Duration,
}

/// Reads the words behind "agent"; none where they ask for help.
pub(super) fn parse(parser: &mut Parser) -> Result<Option<Words>, Failure> {
    let mut words = Words {
        config: None,
        conf_dir: names::CONF_DIR.into(),
        cache_dir: names::CACHE_DIR.into(),
        manage_conflist: false,
        entry: None,
        state_dir: names::LASTING_DIR.into(),
        install: None,
        bin_dir: names::BIN_DIR.into(),
        listen: LISTEN.parse().ok(),
        resync: RESYNC,
    };
    while let Some(word) = parser.next()? {
        match word {
            lexopt::Arg::Short('h') | Long("help") => return Ok(None),
            Long("config") => words.config = Some(parser.value()?.into()),
            Long("conf-dir") => words.conf_dir = parser.value()?.into(),
            Long("cache-dir") => words.cache_dir = parser.value()?.into(),
            Long("manage-conflist") => words.manage_conflist = true,
            Long("entry") => words.entry = Some(parser.value()?.into()),
            Long("state-dir") => words.state_dir = parser.value()?.into(),
            Long("install") => words.install = Some(parser.value()?.into()),
            Long("bin-dir") => words.bin_dir = parser.value()?.into(),
            Long("listen") => words.listen = listen(&parser.value()?.to_string_lossy())?,
            Long("resync") => words.resync = resync(&parser.value()?.to_string_lossy())?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(words))
}

fn listen(text: &str) -> Result<Option<SocketAddr>, Failure> {
    if text == "off" {
        return Ok(None);
    }
    let wrong = |_| Failure::Usage(format!("--listen {text}: wanted: ADDRESS:PORT, or \"off\""));
    text.parse().map(Some).map_err(wrong)
}

fn resync(text: &str) -> Result<Duration, Failure> {
    let time = humantime::parse_duration(text).ok().filter(|time| *time >= Duration::from_secs(1));
    let wrong = || Failure::Usage(format!("--resync {text}: wanted: 1s or more, like 30s or 5m"));
    time.ok_or_else(wrong)
}

/// Runs the agent until a signal ends it.
pub(super) fn run(words: Words) -> Result<(), Failure> {
    let mut kept = Vec::new();
    // First of all: a conflist must not name a program that is not there.
    if let Some(from) = words.install {
        kept.push(Kept::new(Box::new(Binary::new(from, words.bin_dir))));
    }
    if words.manage_conflist || words.entry.is_some() {
        let (conf_dir, state_dir) = (words.conf_dir.clone(), words.state_dir);
        let places = Places { conf_dir, state_dir, ..Places::default() };
        let entry = words.entry.as_deref().map(super::conflist::entry).transpose()?;
        let wanted = Wanted { entry, ..Wanted::default() };
        kept.push(Kept::new(Box::new(Entry::new(Directory::at(places), wanted))));
    }
    let source = match words.config {
        Some(file) => Source::File(file),
        None => Source::Folder(words.conf_dir),
    };
    let options = Options {
        source: Some(source),
        cache: words.cache_dir,
        listen: words.listen,
        resync: words.resync,
        kept,
    };
    agent::run(options).map_err(Failure::Failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Words>, Failure> {
        parse(&mut Parser::from_iter(line.split_whitespace()))
    }

    #[test]
    fn command_lines() {
        let words = parsed("agent --listen [::1]:80 --resync 5m --config a").unwrap().unwrap();
        assert_eq!(words.listen, "[::1]:80".parse().ok());
        assert_eq!(words.resync, Duration::from_secs(300));
        assert_eq!(words.config, Some("a".into()));
        let words = parsed("agent --listen off").unwrap().unwrap();
        assert_eq!((words.listen, words.resync), (None, RESYNC));
        assert_eq!(parsed("agent").unwrap().unwrap().listen, LISTEN.parse().ok());
        assert!(parsed("agent --help").unwrap().is_none());
        for wrong in ["--listen localhost", "--resync 0s", "--resync soon", "--json", "up"] {
            assert!(parsed(&format!("agent {wrong}")).is_err(), "{wrong}");
        }
    }
}
