//! `symroutectl places`: prints the directories from which the runtime takes plugins and conflists.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::Failure;
use crate::conflist::{Directory, Places, Reason};
use crate::runtimes;
use crate::runtimes::places::{Given, Place, below, conflists, plugins};

/// Version of the JSON report, raised when a key changes its meaning or is removed.
const VERSION: u32 = 1;

const ABOUT: &str = "\
The tool reads the configuration of containerd or CRI-O. If that names no directory, it looks
for the primary plugin's program. It fails if the two disagree: while the runtime can't find a
plugin, no pod starts.

";

pub(super) fn tail() -> String {
    let examples = ["places", "places --root /mnt/node --json | jq -r .plugins.path"];
    super::tail(ABOUT, &[(0, "printed")], &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Root of the node's file system
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Directory of plugins; an error if the runtime uses another one
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Directory of conflists; an error if the runtime uses another one
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// Directory of plugins if the configuration names none
    #[arg(long, value_name = "DIR")]
    likely_bin_dir: Option<PathBuf>,
    /// Directory of conflists if the configuration names none
    #[arg(long, value_name = "DIR")]
    likely_conf_dir: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command. Returns the text to print and the exit code.
pub(super) fn run(words: Words) -> Result<(String, u8), Failure> {
    let root = words.root;
    let given = Given {
        plugins: words.bin_dir,
        conflists: words.conf_dir,
        likely_plugins: words.likely_bin_dir,
        likely_conflists: words.likely_conf_dir,
    };
    let failed = |reason: Reason| Failure::Failed(reason.to_string());
    let runtimes = runtimes::read(&root);
    let conf_dir = conflists(&root, &runtimes, &given).map_err(failed)?;
    let primary = primary(&root, &conf_dir.value);
    let bin_dir = plugins(&root, &runtimes, &given, primary.as_deref()).map_err(failed)?;
    let mut out = String::new();
    if words.json {
        let place = |place: &Place| json!({"path": place.value, "by": place.source});
        let (plugins, conflists) = (place(&bin_dir), place(&conf_dir));
        let report = json!({"version": VERSION, "plugins": plugins, "conflists": conflists});
        let _ = writeln!(out, "{report:#}");
    } else {
        for (what, Place { value, source }) in [("plugins", bin_dir), ("conflists", conf_dir)] {
            let _ = writeln!(out, "{what} {} ({source})", value.display());
        }
    }
    Ok((out, 0))
}

/// The type of the primary plugin in the conflist that the runtime takes, if one exists.
fn primary(root: &Path, conf_dir: &Path) -> Option<String> {
    let places = Places { conf_dir: below(root, conf_dir), ..Places::default() };
    let folder = Directory::at(places).read().ok()?;
    let network = folder.network(folder.taken_by_runtime()?).ok()?;
    network.plugins.first().map(|plugin| plugin.kind.clone())
}
