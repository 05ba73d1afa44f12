//! `symroute uninstall`: takes away what the agent has put on a node, out of the same image, where
//! no shell is. `install.sh uninstall` does it in the same order.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use lexopt::{Arg::Long, Parser};
use nix::sys::signal::{SigSet, Signal};

use super::attachments::Found;
use super::{Failure, take_down};
use crate::conflist::{Directory, Places};
use crate::names;
use crate::node::Node;
use crate::process;
use crate::state::{Alone, State};

/// After this, whoever puts our entry back has done so, and what the runtime had begun with it is
/// in its cache.
const SETTLED: Duration = Duration::from_secs(1);

pub(super) const HELP: &str = "\
symroute uninstall: gives the node back as it was before

Usage: symroute uninstall [OPTION]...

For nodes without a shell, out of the image that the agent came in; elsewhere
\"install.sh uninstall\" also takes systemd's units away. In this order: our entry
out of the conflist, the node state, our files, and the program last. While pods
need the program (the runtime calls it at their end) the entry is taken out and
nothing else; restart those pods and run it again. May be run at any time.

Options:
  --conf-dir DIR   the runtime's conflists (default /etc/cni/net.d)
  --bin-dir DIR    the runtime's plugins (default /opt/cni/bin)
  --cache-dir DIR  the runtime's results (default /var/lib/cni/results)
  --state-dir DIR  what is known of the entry (default /var/lib/symroute)
  --run-dir DIR    the state of this boot (default /run/symroute)
  --force          go on although pods need the program: those will hang at
                   their end until a symroute is back
  --stay           do nothing, and stay until a signal comes: for the container
                   that follows this one, as pods of a DaemonSet must not end
  -h, --help       print this text

Exit codes: 0 nothing of symroute is left, 1 failed, 2 wrong usage, 4 pods need
the program.

Example:
  symroute uninstall --conf-dir /var/lib/rancher/k3s/agent/etc/cni/net.d
";

/// The words behind "uninstall".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    cache_dir: PathBuf,
    state_dir: PathBuf,
    run_dir: PathBuf,
    force: bool,
    stay: bool,
}

/// Reads the words behind "uninstall"; none where they ask for help.
pub(super) fn parse(parser: &mut Parser) -> Result<Option<Words>, Failure> {
    let mut words = Words {
        conf_dir: names::CONF_DIR.into(),
        bin_dir: names::BIN_DIR.into(),
        cache_dir: names::CACHE_DIR.into(),
        state_dir: names::LASTING_DIR.into(),
        run_dir: names::STATE_DIR.into(),
        force: false,
        stay: false,
    };
    while let Some(word) = parser.next()? {
        match word {
            lexopt::Arg::Short('h') | Long("help") => return Ok(None),
            Long("conf-dir") => words.conf_dir = parser.value()?.into(),
            Long("bin-dir") => words.bin_dir = parser.value()?.into(),
            Long("cache-dir") => words.cache_dir = parser.value()?.into(),
            Long("state-dir") => words.state_dir = parser.value()?.into(),
            Long("run-dir") => words.run_dir = parser.value()?.into(),
            Long("force") => words.force = true,
            Long("stay") => words.stay = true,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(words))
}

/// A kill at any point leaves a node that starts pods, and another run completes.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    if words.stay {
        stay()?;
        return Ok((String::new(), 0));
    }
    let state = State::new(&words.run_dir);
    let alone = no_agent(&state)?;
    take_entry_out(words)?;
    refuse_while_needed(words, &state)?;
    let mut node = Node::at(&words.run_dir)?;
    // Nobody is left to take out an adopted pod at its end, or one that has ended unseen.
    if !take_down(&mut node, true)? {
        let holders: Vec<_> = state.holders()?.into_iter().map(|(name, _)| name).collect();
        return Err(Failure::Failed(format!(
            "the node state stays, it is needed by {}; run this again",
            if holders.is_empty() {
                "a pod that has just started".into()
            } else {
                holders.join(", ")
            }
        )));
    }
    say("the node state is not in force");
    let [kept, previous] = ["conflist", "previous"].map(|name| words.state_dir.join(name));
    delete(&kept)?;
    delete(&previous)?;
    delete(&words.state_dir.join(names::CONFLIST_TEMPORARY))?;
    delete_empty(&words.state_dir)?;
    delete(Path::new(names::LOG_FILE))?;
    delete(&words.bin_dir.join(names::CONFLIST_TEMPORARY))?;
    // An ADD that was under way may have come to its end by now.
    if !words.force {
        refuse_while_needed(words, &state)?;
    }
    if let Some(alone) = alone {
        state.forget_agent(&alone)?;
    }
    delete_empty(&words.run_dir)?;
    delete(&words.bin_dir.join(names::PROGRAM))?;
    Ok(("Uninstalled.\n".into(), 0))
}

/// An agent would put back what is taken away. None starts while the returned value lives.
fn no_agent(state: &State) -> Result<Option<Alone>, Failure> {
    if !state.exists() {
        return Ok(None);
    }
    let running = |pid: Option<u32>| {
        let who = pid.map_or_else(String::new, |pid| format!(", process {pid}"));
        Failure::Failed(format!(
            "an agent runs on this node{who}, and would put everything back; stop it first \
             (kubectl delete -k conf/kubernetes, or systemctl disable --now symroute-agent)"
        ))
    };
    state.be_the_agent()?.map(Some).map_err(running)
}

fn take_entry_out(words: &Words) -> Result<(), Failure> {
    let (conf_dir, state_dir) = (words.conf_dir.clone(), words.state_dir.clone());
    let directory = Directory::at(Places { conf_dir, state_dir, ..Places::default() });
    let path = directory.path().display();
    if !directory.path().is_dir() && !words.force {
        return Err(Failure::Failed(format!(
            "{path}: no such directory, so it can't be told whether a conflist names us; name the \
             one that the runtime reads by --conf-dir, or go on by --force"
        )));
    }
    if let Some(left) = directory.examine_removal(None)?.left.first() {
        return Err(Failure::Failed(left.to_string()));
    }
    for change in directory.remove(None)?.changes {
        say(&format!("{}: our entry is out", directory.path().join(change.file()).display()));
    }
    thread::sleep(SETTLED);
    let again = directory.examine_removal(None)?;
    if again.changes.is_empty() && again.left.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{path}: somebody puts our entry back; an agent that keeps its state elsewhere? stop it \
         and run this again"
    )))
}

/// Pods that were started with us need the program at their end: the runtime calls it for them.
fn refuse_while_needed(words: &Words, state: &State) -> Result<(), Failure> {
    let found = Found::of(&words.cache_dir, Some(state))?.that_call_us();
    if found.is_empty() {
        return Ok(());
    }
    let pods = found.to_text();
    if words.force {
        say(&format!("forced: these pods will hang at their end\n{}", pods.trim_end()));
        return Ok(());
    }
    Err(Failure::Needed(format!(
        "pods need symroute still: without it the runtime can't end them\n{pods}\
         Our entry is out of the conflist, so new pods do without. Restart these or drain the \
         node, and run this again; --force goes on all the same."
    )))
}

fn delete(path: &Path) -> Result<(), Failure> {
    let deleted = match path.symlink_metadata() {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match deleted {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| failed(path, &error))?,
    }
    say(&format!("{}: deleted", path.display()));
    Ok(())
}

/// Deletes a directory of ours, unless somebody else has put something into it, or mounts it.
fn delete_empty(path: &Path) -> Result<(), Failure> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match fs::remove_dir(path) {
        Ok(()) => say(&format!("{}: deleted", path.display())),
        Err(error) if error.kind() == NotFound => {}
        Err(error) if matches!(error.kind(), DirectoryNotEmpty | ResourceBusy) => {
            say(&format!("{}: stays ({error})", path.display()));
        }
        Err(error) => return Err(failed(path, &error)),
    }
    Ok(())
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let text = format!("delete {}: {error}; mount its directory writable", path.display());
    Failure::Failed(format!("{text}, be root, and run this again"))
}

/// At once: who looks on wants to know how far it got.
fn say(line: &str) {
    let _ = process::print(format!("{line}\n").as_bytes());
}

fn stay() -> Result<(), Failure> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    // The first process of a container has to block a signal that it means to take.
    let waited = signals.thread_block().and_then(|()| signals.wait());
    waited.map(drop).map_err(|errno| Failure::Failed(format!("wait for a signal: {errno}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Words>, Failure> {
        parse(&mut Parser::from_iter(line.split_whitespace()))
    }

    #[test]
    fn command_lines() {
        let words = parsed("uninstall --run-dir /host/run --bin-dir /b").unwrap().unwrap();
        assert_eq!((words.run_dir, words.bin_dir), ("/host/run".into(), "/b".into()));
        assert_eq!(words.conf_dir, PathBuf::from(names::CONF_DIR));
        assert!(!words.force && !words.stay);
        let words = parsed("uninstall --force --stay").unwrap().unwrap();
        assert!(words.force && words.stay);
        assert!(parsed("uninstall --help").unwrap().is_none());
        for wrong in ["--json", "--conf-dir", "all", "--dry-run"] {
            assert!(parsed(&format!("uninstall {wrong}")).is_err(), "{wrong}");
        }
    }
}
