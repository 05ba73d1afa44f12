//! `symroutectl uninstall`: removes symroute from a node without a shell. It comes in the agent's
//! image and works in the same order as `install.sh uninstall`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};

use super::attachments::Found;
use super::{EXIT_UNHEALTHY, Failure, take_down};
use crate::conflist::{Directory, Places};
use crate::error::absent_is_none;
use crate::names;
use crate::node::Node;
use crate::process;
use crate::state::{AgentLock, State};

/// Time after which another program that restores our entry has done so, and a pod whose ADD had begun
/// is in the runtime's cache.
const SETTLED: Duration = Duration::from_secs(1);

const ABOUT: &str = "\
For nodes without a shell, run from the agent's image. On other nodes, use
\"install.sh uninstall\", which also removes the systemd units. The tool removes the
conflist entry, the node state, symroute's files and last the plugin. While pods need
the plugin, the tool removes only the entry; restart those pods, then run the tool
again. CRI-O, podman and Multus call the plugin when a pod ends that started with it.
containerd calls the plugins that the conflist names at that time, so Kubernetes pods
on containerd do not need the plugin. You can run this command at any time.

";

pub(super) fn tail() -> String {
    let examples = ["uninstall", "uninstall --conf-dir /var/lib/rancher/k3s/agent/etc/cni/net.d"];
    super::tail(ABOUT, &[(0, "done"), (EXIT_UNHEALTHY, "pods still need the plugin")], &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Directory of the runtime's conflists
    #[arg(long, value_name = "DIR", default_value = names::CONF_DIR)]
    conf_dir: PathBuf,
    /// Directory of the runtime's plugins
    #[arg(long, value_name = "DIR", default_value = names::BIN_DIR)]
    bin_dir: PathBuf,
    /// Directory of the runtime's ADD results
    #[arg(long, value_name = "DIR", default_value = names::CACHE_DIR)]
    cache_dir: PathBuf,
    /// Directory of saved conflists and journal
    #[arg(long, value_name = "DIR", default_value = names::LASTING_DIR)]
    state_dir: PathBuf,
    /// Directory of the node state
    #[arg(long, value_name = "DIR", default_value = names::STATE_DIR)]
    run_dir: PathBuf,
    /// Remove everything even if pods need the plugin; they hang when they end
    #[arg(long)]
    force: bool,
    /// Only wait for a signal, for the last container of a DaemonSet pod
    #[arg(long)]
    stay: bool,
}

/// Runs the command. If it is killed, the node still starts pods, and another run completes the work.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    if words.stay {
        wait_for_signal()?;
        return Ok((String::new(), 0));
    }
    let state = State::new(&words.run_dir);
    let agent_lock = no_agent(&state)?;
    take_entry_out(words)?;
    refuse_while_needed(words, &state)?;
    let mut node = Node::with_state(state.clone())?;
    // Forced: the runtime will not call symroute when the pods that are still attached end.
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
    // Includes the files that "install.sh upgrade" keeps.
    let kept = ["conflist", "previous", "previous-tool", "upgrading"];
    for name in kept.into_iter().chain([names::PLACES_NOTE, names::CONFLIST_TEMPORARY]) {
        delete(&words.state_dir.join(name))?;
    }
    delete_empty(&words.state_dir)?;
    delete(Path::new(names::LOG_FILE))?;
    delete(&words.bin_dir.join(names::CONFLIST_TEMPORARY))?;
    // An ADD that was running at the first check may have finished by now.
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

/// Checks that no agent runs, since an agent would restore what this command removes. The returned lock
/// keeps an agent from starting. `None` if the node state's directory does not exist.
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
            "{path}: no such directory, so nothing shows whether a conflist names symroute; name the \
                         one that the runtime reads with --conf-dir, or continue with --force"
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
        "{path}: another program restores our entry, perhaps an agent with another --state-dir; stop \
                 it and run this again"
    )))
}

/// Error if pods that started with symroute still need the plugin at their end (see `attachments`).
/// With `--force`, prints them and goes on.
fn refuse_while_needed(words: &Words, state: &State) -> Result<(), Failure> {
    // In a container, the node's root is where --run-dir is mounted from: /host for /host/run/symroute.
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

/// Deletes one of our directories, unless another program has put files into it or mounts it.
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

/// Prints a line at once, so that the operator sees the progress.
fn say(line: &str) {
    let _ = process::print(format!("{line}\n").as_bytes());
}

fn wait_for_signal() -> Result<(), Failure> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    // A container's first process gets no default signal actions, so it must block a signal to wait for it.
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
