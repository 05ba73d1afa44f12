//! Chooses the directories for the plugin and its entry: those of the runtime's configuration, or that of
//! the primary plugin's program.

use std::path::{Path, PathBuf};

use super::{Runtime, Sourced};
use crate::conflist::Reason;

/// Directories of plugins in distributions. The first is the runtimes' default.
const USUAL: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

/// Directories from the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Directory that the operator names (`--bin-dir`).
    pub(crate) plugins: Option<PathBuf>,
    /// Directory that the operator names (`--conf-dir`).
    pub(crate) conflists: Option<PathBuf>,
    /// Directory of the Kubernetes distribution that the installer has recognised (`--likely-bin-dir`).
    pub(crate) likely_plugins: Option<PathBuf>,
    /// Directory of the Kubernetes distribution that the installer has recognised (`--likely-conf-dir`).
    pub(crate) likely_conflists: Option<PathBuf>,
}

/// A directory, and the reason for its choice.
pub(crate) type Place = Sourced<PathBuf>;

fn place(path: impl Into<PathBuf>, source: impl Into<String>) -> Place {
    Sourced { value: path.into(), source: source.into() }
}

/// Maps a path of the node to the path below `root`, the root of the node's file system.
pub(crate) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Whether two paths of the node lead to the same directory, perhaps through links.
pub(crate) fn is_same_directory(root: &Path, one: &Path, other: &Path) -> bool {
    let real = |path: &Path| below(root, path).canonicalize().unwrap_or_else(|_| below(root, path));
    real(one) == real(other)
}

/// The directory from which the runtime reads conflists. Error: the operator names another directory than
/// the runtime's configuration, or two runtimes disagree.
pub(crate) fn conflists(root: &Path, runtimes: &[Runtime], given: &Given) -> Result<Place, Reason> {
    let mut said = runtimes.iter().filter_map(|runtime| runtime.conflists.as_ref());
    let (first, second) = (said.next(), said.next());
    if let Some(named) = &given.conflists {
        let right = [first, second]
            .into_iter()
            .flatten()
            .find(|s| is_same_directory(root, s.value.as_ref(), named));
        return match (first, right) {
            (Some(said), None) => {
                Err(contradicted_option(named, &said.source, &said.value, "--conf-dir"))
            }
            _ => Ok(place(named, "--conf-dir")),
        };
    }
    match (first, second) {
        (Some(one), Some(other))
            if !is_same_directory(root, one.value.as_ref(), other.value.as_ref()) =>
        {
            Err(contradicting_runtimes(one, other, "--conf-dir"))
        }
        (Some(said), _) => {
            let dir =
                prefer_platform_path(root, said.value.as_ref(), given.likely_conflists.as_deref());
            Ok(place(dir, &said.source))
        }
        (None, _) => Ok(likely_place(given.likely_conflists.as_ref(), crate::names::CONF_DIR)),
    }
}

/// The directory from which the runtime calls plugins. `primary` is the type of the primary plugin, if known.
/// Error: the runtime's configuration, the operator and the place of the primary's program disagree.
pub(crate) fn plugins(
    root: &Path,
    runtimes: &[Runtime],
    given: &Given,
    primary: Option<&str>,
) -> Result<Place, Reason> {
    let holds = |dir: &Path| primary.is_some_and(|name| below(root, dir).join(name).exists());
    let said: Vec<_> = runtimes.iter().filter_map(|runtime| runtime.plugins.as_ref()).collect();
    if let Some(named) = &given.plugins {
        let all = || said.iter().flat_map(|s| &s.value);
        let is_right =
            said.is_empty() || all().any(|dir| is_same_directory(root, dir.as_ref(), named));
        return match said.first() {
            Some(first) if !is_right => {
                Err(contradicted_option(named, &first.source, &first.value.join(", "), "--bin-dir"))
            }
            _ => Ok(place(named, "--bin-dir")),
        };
    }
    if let [one, other, ..] = said[..] {
        let shared = |dir: &String| {
            other.value.iter().any(|d| is_same_directory(root, dir.as_ref(), d.as_ref()))
        };
        if !one.value.iter().any(shared) {
            let joined = |s: &Sourced<Vec<String>>| Sourced {
                value: s.value.join(", "),
                source: s.source.clone(),
            };
            return Err(contradicting_runtimes(&joined(one), &joined(other), "--bin-dir"));
        }
    }
    let likely_dir = given.likely_plugins.as_deref();
    let usual = || likely_dir.into_iter().chain(USUAL.iter().map(Path::new));
    let Some(said) = said.first() else {
        let beside = primary.and_then(|name| Some((usual().find(|dir| holds(dir))?, name)));
        return Ok(match beside {
            Some((dir, name)) => place(dir, format!("the program {name} is there")),
            None => likely_place(given.likely_plugins.as_ref(), USUAL[0]),
        });
    };
    let dirs = || said.value.iter().map(Path::new);
    let chosen = dirs().find(|dir| holds(dir));
    if let (None, Some(name)) = (chosen, primary) {
        if let Some(stray) = usual().find(|dir| holds(dir)) {
            return Err(Reason {
                what: format!(
                    "the primary's program {name} is in {}, but {} says {}",
                    stray.display(),
                    said.source,
                    said.value.join(", ")
                ),
                remedy: "correct that configuration, or put the primary's program there".into(),
            });
        }
    }
    let chosen = chosen.or_else(|| dirs().find(|dir| below(root, dir).is_dir()));
    let chosen = chosen.unwrap_or_else(|| said.value[0].as_ref());
    Ok(place(prefer_platform_path(root, chosen, likely_dir), &said.source))
}

/// Prefers the platform's path if both paths lead to the same directory: a path of the distribution's current
/// release vanishes with the next release, while its link `current` stays.
fn prefer_platform_path<'a>(root: &Path, dir: &'a Path, platform: Option<&'a Path>) -> &'a Path {
    platform.filter(|platform| is_same_directory(root, dir, platform)).unwrap_or(dir)
}

fn likely_place(platform: Option<&PathBuf>, usual: &str) -> Place {
    match platform {
        Some(dir) => place(dir, "the platform has it there"),
        None => place(usual, "the usual place"),
    }
}

fn contradicted_option(named: &Path, source: &str, value: &str, option: &str) -> Reason {
    Reason {
        what: format!(
            "{option} {}: {source} says {value}, so the runtime looks there",
            named.display()
        ),
        remedy: format!("leave {option} out, or change that configuration"),
    }
}

fn contradicting_runtimes(one: &Sourced<String>, other: &Sourced<String>, option: &str) -> Reason {
    Reason {
        what: format!(
            "{} says {}, but {} says {}",
            one.source, one.value, other.source, other.value
        ),
        remedy: format!("say which runtime is in use by {option}"),
    }
}
