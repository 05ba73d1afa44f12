//! Whether the runtime will find the programs that a conflist names. One that it does not find keeps every
//! new pod from starting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::decide::{Edit, Reason, View};
use super::directory::Places;
use super::network::Network;
use crate::names;
use crate::runtimes::places::{Given, below, conflists, is_same, plugins};
use crate::runtimes::{self, Runtime};

/// The type of the primary plugin, if the edits put an entry of ours into a list.
fn primary_of(view: &View) -> Option<String> {
    view.edits.iter().find_map(|edit| {
        let Edit::Write { file, text, .. } = edit else { return None };
        let network = Network::parse(file, text.as_bytes()).ok()?;
        network.ours().first()?;
        network.plugins.first().map(|plugin| plugin.kind.clone())
    })
}

/// Whether the runtime looks for the primary where symroute's program goes.
/// Error: it looks elsewhere, and what to correct.
pub(super) fn goes_where_the_runtime_looks(places: &Places, view: &View) -> Result<(), Reason> {
    let Some(primary) = primary_of(view) else { return Ok(()) };
    let runtimes = runtimes::read(&places.root);
    let Some(dir) = directory(places, &runtimes, &primary)? else { return Ok(()) };
    // A link may lead to a place that a container does not see.
    let is_there = dir.join(&primary).symlink_metadata().is_ok();
    if is_there || places.plugins.is_none() {
        return Ok(());
    }
    Err(Reason {
        what: format!(
            "{}: the primary's program {primary} is not there, so the runtime looks for plugins elsewhere",
            dir.display()
        ),
        way_out: "name the directory that has it by --bin-dir; in Kubernetes by the hostPath of the volume \
                  \"plugins\""
            .into(),
    })
}

/// Whether symroute's program is where the runtime looks.
/// Error: it is not, and how to put it there.
pub(super) fn is_in_place(places: &Places, view: &View) -> Result<(), Reason> {
    let Some(primary) = primary_of(view) else { return Ok(()) };
    let runtimes = runtimes::read(&places.root);
    let Some(dir) = directory(places, &runtimes, &primary)? else { return Ok(()) };
    let program = dir.join(names::PROGRAM);
    let runs = |path: &Path| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if !dir.is_dir() || runs(&program) {
        return Ok(());
    }
    Err(Reason {
        what: format!(
            "{}: no such program, and the runtime looks for plugins there: no pod could start",
            program.display()
        ),
        way_out: "put the program there first, or let \"install.sh install\" do both".into(),
    })
}

/// Where the runtime that reads these conflists looks for plugins. None where no runtime reads them, as far
/// as this file system tells.
fn directory(
    places: &Places,
    runtimes: &[Runtime],
    primary: &str,
) -> Result<Option<PathBuf>, Reason> {
    if let Some(dir) = &places.plugins {
        return Ok(Some(dir.clone()));
    }
    let given = Given::default();
    let read = conflists(&places.root, runtimes, &given);
    let conf_dir =
        Path::new("/").join(places.conf_dir.strip_prefix(&places.root).unwrap_or(&places.conf_dir));
    if !read.is_ok_and(|read| is_same(&places.root, &read.value, &conf_dir)) {
        return Ok(None);
    }
    let place = plugins(&places.root, runtimes, &given, Some(primary))?;
    Ok(Some(below(&places.root, &place.value)))
}
