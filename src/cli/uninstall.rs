//! `symroutectl uninstall`: takes away what the agent has put on a node, out of the same image, where
//! no shell is. `install.sh uninstall` does it in the same order.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};

use super::attachments::Found;
use super::{EXIT_OFF, Failure, take_down};
use crate::conflist::{Directory, Places};
use crate::error::absent_is_none;
use crate::names;
use crate::node::Node;
use crate::process;
use crate::state::{AgentLock, State};

/// After this, whoever puts our entry back has done so, and what the runtime had begun with it is
/// in its cache.
const SETTLED: Duration = Duration::from_secs(1);

const ABOUT: &str = "\
For nodes without a shell, out of the image that the agent came in; elsewhere
\"install.sh uninstall\" also takes systemd's units and this tool away. In this
order: our entry out of the conflist, the node state, our files, and the plugin
last. While pods need the plugin (CRI-O, podman and Multus call it at their end) the
entry is taken out and nothing else; restart those pods and run it again. containerd
calls what the conflist names by then, so its pods of Kubernetes do not count. May be
run at any time.

";

pub(super) fn tail() -> String {
    let examples = ["uninstall", "uninstall --conf-dir /var/lib/rancher/k3s/agent/etc/cni/net.d"];
    super::tail(ABOUT, &[(0, "done"), (EXIT_OFF, "pods need the plugin")], &examples)
}

/// Where to look, and how far to go.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// The runtime's conflists
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// The runtime's plugins
    #[arg(long, value_name = "DIR", default_value = names::BIN_DIR)]
    bin_dir: PathBuf,
    /// The runtime's results
    #[arg(long, value_name = "DIR", default_value = names::CACHE_DIR)]
    cache_dir: PathBuf,
    /// What is known of the entry
    #[arg(long, value_name = "DIR", default_value = names::LASTING_DIR)]
    state_dir: PathBuf,
    /// The state of this boot
    #[arg(long, value_name = "DIR", default_value = names::STATE_DIR)]
    run_dir: PathBuf,
    /// Go on although pods need the plugin, which hang at their end then
    #[arg(long)]
    force: bool,
    /// Only wait for a signal, as the last container of a pod has to
    #[arg(long)]
    stay: bool,
}

/// A kill at any point leaves a node that starts pods, and another run completes.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    if words.stay {
        stay()?;
        return Ok((String::new(), 0));
    }
    let state = State::new(&words.run_dir);
    let agent_lock = no_agent(&state)?;
    take_entry_out(words)?;
    refuse_while_needed(words, &state)?;
    let mut node = Node::of(state.clone())?;
    // By force: the runtime will not call symroute at the end of the pods that are still attached.
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
    // What "install.sh upgrade" keeps is among them.
    let kept = ["conflist", "previous", "previous-tool", "upgrading"];
    for name in kept.into_iter().chain([names::PLACES_NOTE, names::CONFLIST_TEMPORARY]) {
        delete(&words.state_dir.join(name))?;
    }
    delete_empty(&words.state_dir)?;
    delete(Path::new(names::LOG_FILE))?;
    delete(&words.bin_dir.join(names::CONFLIST_TEMPORARY))?;
    // An ADD that was under way may have come to its end by now.
    if !words.force {
        refuse_while_needed(words, &state)?;
    }
    if let Some(agent_lock) = agent_lock {
        agent_lock.remove()?;
    }
    delete_empty(&words.run_dir)?;
    delete(&words.bin_dir.join(names::PROGRAM))?;
    delete(&words.bin_dir.join(names::TOOL))?;
    Ok(("Uninstalled.\n".into(), 0))
}

/// An agent would put back what is taken away. None starts while the returned value lives.
fn no_agent(state: &State) -> Result<Option<AgentLock>, Failure> {
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
    AgentLock::acquire(state)?.map(Some).map_err(running)
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

/// Pods that were started with us may need the program at their end: some runtimes call it for them.
fn refuse_while_needed(words: &Words, state: &State) -> Result<(), Failure> {
    // In a container the node's file system is elsewhere; the directory of this boot says where.
    let root = words.run_dir.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    let found = Found::of(root, &words.cache_dir, Some(state))?.that_call_us();
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
    if absent_is_none(deleted).map_err(|error| failed(path, &error))?.is_some() {
        say(&format!("{}: deleted", path.display()));
    }
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
    use super::super::Command;
    use super::*;

    fn parsed(line: &str) -> Result<Words, String> {
        match super::super::tests::parsed(&format!("uninstall {line}"))? {
            Command::Uninstall(words) => Ok(words),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn command_lines() {
        let words = parsed("--run-dir /host/run --bin-dir /b").unwrap();
        assert_eq!((words.run_dir, words.bin_dir), ("/host/run".into(), "/b".into()));
        assert_eq!(words.conf_dir, PathBuf::from(names::CONF_DIR));
        assert!(!words.force && !words.stay);
        let words = parsed("--force --stay").unwrap();
        assert!(words.force && words.stay);
        for wrong in ["--json", "--conf-dir", "all", "--dry-run"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
