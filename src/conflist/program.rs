//! Checks that the runtime will find the programs that a conflist names. If it misses one, no new pod
//! starts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::decide::{Edit, Reason, View};
use super::directory::Places;
use super::network::Network;
use crate::names;
use crate::plain_file::{self, Links};
use crate::runtimes;
use crate::runtimes::places::{Given, below, conflists, is_same_directory, plugins};

/// The type of the primary plugin, if the edits add or change an entry of ours.
fn primary_of(view: &View) -> Option<String> {
    view.edits.iter().find_map(|edit| {
        let Edit::Write { file, text, .. } = edit else { return None };
        let network = Network::parse(file, text.as_bytes()).ok()?;
        network.ours().first()?;
        network.plugins.first().map(|plugin| plugin.kind.clone())
    })
}

/// Checks that the runtime looks for the primary plugin in the directory of symroute's program. Error: the
/// runtime looks elsewhere, and the remedy.
pub(super) fn check_plugin_directory(places: &Places, view: &View) -> Result<(), Reason> {
    let Some(primary) = primary_of(view) else { return Ok(()) };
    let Some(dir) = &places.plugins else { return directories(places, &primary).map(drop) };
    // Not followed: a link may lead to a path outside of the agent's container.
    if dir.join(&primary).symlink_metadata().is_ok() {
        return Ok(());
    }
    Err(Reason {
        what: format!(
            "{}: the primary's program {primary} is not there, so the runtime looks for plugins \
             elsewhere",
            dir.display()
        ),
        remedy: "name the directory that has it by --bin-dir, in Kubernetes by the hostPath of \
                  the volume \"plugins\"; --trust-bin-dir if the runtime looks in both"
            .into(),
    })
}

/// Checks that symroute's program is in a directory in which the runtime looks. Error: the program is
/// missing or can't be run, and the remedy.
pub(super) fn is_in_place(places: &Places, view: &View) -> Result<(), Reason> {
    let Some(primary) = primary_of(view) else { return Ok(()) };
    let dirs = directories(places, &primary)?;
    let runs = |dir: &PathBuf| {
        let executable = |m: fs::Metadata| m.is_file() && m.permissions().mode() & 0o111 != 0;
        fs::metadata(dir.join(names::PROGRAM)).is_ok_and(executable)
    };
    let Some(dir) = dirs.iter().find(|dir| dir.is_dir()) else { return Ok(()) };
    if dirs.iter().any(runs) {
        return Ok(());
    }
    Err(Reason {
        what: format!(
            "{}: is not there, or can't be run, and the runtime looks for plugins there: no pod \
             could start",
            dir.join(names::PROGRAM).display()
        ),
        remedy: "put the program there first, or let \"install.sh install\" do both".into(),
    })
}

/// The directories in which the runtime looks for plugins, the most likely first. Empty if this file system
/// does not show that a runtime reads these conflists, or which one.
fn directories(places: &Places, primary: &str) -> Result<Vec<PathBuf>, Reason> {
    if let Some(dir) = &places.plugins {
        return Ok(vec![dir.clone()]);
    }
    let runtimes = runtimes::read(&places.root);
    let given = Given { plugins: noted_plugin_directory(&places.state_dir), ..Given::default() };
    let read = conflists(&places.root, &runtimes, &given);
    let conf_dir = places.conf_dir.strip_prefix(&places.root).unwrap_or(&places.conf_dir);
    let conf_dir = Path::new("/").join(conf_dir);
    if !read.is_ok_and(|read| is_same_directory(&places.root, &read.value, &conf_dir)) {
        return Ok(Vec::new());
    }
    // Only the operator knows which of two runtimes is in use.
    if given.plugins.is_none() && runtimes.len() > 1 {
        return Ok(Vec::new());
    }
    let place = plugins(&places.root, &runtimes, &given, Some(primary))?;
    let named = runtimes.iter().filter(|_| given.plugins.is_none());
    let others = named.filter_map(|runtime| runtime.plugins.as_ref()).flat_map(|said| &said.value);
    let all = std::iter::once(place.value).chain(others.map(PathBuf::from));
    Ok(all.map(|dir| below(&places.root, &dir)).collect())
}

/// The directory into which install.sh has put the plugin, as noted in the state directory.
fn noted_plugin_directory(state_dir: &Path) -> Option<PathBuf> {
    let text = plain_file::read_text(
        &state_dir.join(names::PLACES_NOTE),
        plain_file::LONGEST,
        Links::Followed,
    );
    let text = text.ok()?;
    text.lines().find_map(|line| line.strip_prefix("bin|")).map(PathBuf::from)
}
