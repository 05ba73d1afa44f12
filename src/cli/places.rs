//! `symroutectl places`: where this node's runtime takes plugins and conflists from.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::Failure;
use crate::conflist::{Directory, Places, Reason};
use crate::runtimes;
use crate::runtimes::places::{Given, Place, below, conflists, plugins};

/// Raised when keys of the JSON report change their meaning or go away.
const VERSION: u32 = 1;

const ABOUT: &str = "\
The configuration of containerd or CRI-O says it, and where it does not, the place of the
primary plugin's program. Where these disagree, that is an error: a plugin that the runtime
does not find keeps every pod from starting.

";

pub(super) fn tail() -> String {
    let examples = ["places", "places --root /mnt/node --json | jq -r .plugins.path"];
    super::tail(ABOUT, &[(0, "printed")], &examples)
}

/// What is known already.
#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// The node's file system
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where plugins go; an error if the runtime looks elsewhere
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Where conflists are; an error if the runtime reads elsewhere
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// Where plugins go if nothing says it
    #[arg(long, value_name = "DIR")]
    likely_bin_dir: Option<PathBuf>,
    /// Where conflists are if nothing says it
    #[arg(long, value_name = "DIR")]
    likely_conf_dir: Option<PathBuf>,
    /// Print one JSON object for programs
    #[arg(long)]
    json: bool,
}

/// Runs the command: what it prints, and its exit code.
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
        let place = |place: &Place| json!({"path": place.value, "by": place.by});
        let (plugins, conflists) = (place(&bin_dir), place(&conf_dir));
        let report = json!({"version": VERSION, "plugins": plugins, "conflists": conflists});
        let _ = writeln!(out, "{report:#}");
    } else {
        for (what, Place { value, by }) in [("plugins", bin_dir), ("conflists", conf_dir)] {
            let _ = writeln!(out, "{what} {} ({by})", value.display());
        }
    }
    Ok((out, 0))
}

/// The type of the primary plugin, where the runtime's first conflist names one.
fn primary(root: &Path, conf_dir: &Path) -> Option<String> {
    let places = Places { conf_dir: below(root, conf_dir), ..Places::default() };
    let folder = Directory::at(places).read().ok()?;
    let network = folder.network(folder.in_force()?).ok()?;
    network.plugins.first().map(|plugin| plugin.kind.clone())
}
