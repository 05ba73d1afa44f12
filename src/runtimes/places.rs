//! Where the plugin and its entry go: where the runtime looks, or else beside the primary's program.

use std::path::{Path, PathBuf};

use super::{Runtime, Said};
use crate::conflist::Reason;

/// Where distributions keep plugins. The first is what runtimes look in by default.
const USUAL: [&str; 3] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];

/// What the operator or the installer says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Directories that the operator names.
    pub(crate) plugins: Option<PathBuf>,
    pub(crate) conflists: Option<PathBuf>,
    /// Directories that the platform has, as far as its signs tell.
    pub(crate) likely_plugins: Option<PathBuf>,
    pub(crate) likely_conflists: Option<PathBuf>,
}

/// A directory, and why it is the one.
pub(crate) type Place = Said<PathBuf>;

fn place(path: impl Into<PathBuf>, by: impl Into<String>) -> Place {
    Said { value: path.into(), by: by.into() }
}

/// Where a path of the node is below the root of its file system.
pub(crate) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Whether two paths of the node are one directory, also by links.
pub(crate) fn is_same(root: &Path, one: &Path, other: &Path) -> bool {
    let real = |path: &Path| below(root, path).canonicalize().unwrap_or_else(|_| below(root, path));
    real(one) == real(other)
}

/// Where conflists are read.
/// Error: the operator names another directory than the runtime's configuration does, or two runtimes
/// disagree.
pub(crate) fn conflists(root: &Path, runtimes: &[Runtime], given: &Given) -> Result<Place, Reason> {
    let mut said = runtimes.iter().filter_map(|runtime| runtime.conflists.as_ref());
    let (first, second) = (said.next(), said.next());
    if let Some(named) = &given.conflists {
        let right =
            [first, second].into_iter().flatten().find(|s| is_same(root, s.value.as_ref(), named));
        return match (first, right) {
            (Some(said), None) => Err(elsewhere(named, &said.by, &said.value, "--conf-dir")),
            _ => Ok(place(named, "--conf-dir")),
        };
    }
    match (first, second) {
        (Some(one), Some(other)) if !is_same(root, one.value.as_ref(), other.value.as_ref()) => {
            Err(two(one, other, "--conf-dir"))
        }
        (Some(said), _) => {
            let dir = spelled(root, said.value.as_ref(), given.likely_conflists.as_deref());
            Ok(place(dir, &said.by))
        }
        (None, _) => Ok(likely(given.likely_conflists.as_ref(), crate::names::CONF_DIR)),
    }
}

/// Where plugins are called from. `primary` is the primary plugin's type, where a conflist names it.
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
        let is_right = said.is_empty() || all().any(|dir| is_same(root, dir.as_ref(), named));
        return match said.first() {
            Some(first) if !is_right => {
                Err(elsewhere(named, &first.by, &first.value.join(", "), "--bin-dir"))
            }
            _ => Ok(place(named, "--bin-dir")),
        };
    }
    if let [one, other, ..] = said[..] {
        let shared =
            |dir: &String| other.value.iter().any(|d| is_same(root, dir.as_ref(), d.as_ref()));
        if !one.value.iter().any(shared) {
            let joined =
                |s: &Said<Vec<String>>| Said { value: s.value.join(", "), by: s.by.clone() };
            return Err(two(&joined(one), &joined(other), "--bin-dir"));
        }
    }
    let likely_dir = given.likely_plugins.as_deref();
    let usual = || likely_dir.into_iter().chain(USUAL.iter().map(Path::new));
    let Some(said) = said.first() else {
        // A directory that two names lead to counts once.
        let beside = primary.and_then(|name| Some((usual().find(|dir| holds(dir))?, name)));
        return Ok(match beside {
            Some((dir, name)) => place(dir, format!("the program {name} is there")),
            None => likely(given.likely_plugins.as_ref(), USUAL[0]),
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
                    said.by,
                    said.value.join(", ")
                ),
                way_out: "correct that configuration, or put the primary's program there".into(),
            });
        }
    }
    let chosen = chosen.or_else(|| dirs().find(|dir| below(root, dir).is_dir()));
    let chosen = chosen.unwrap_or_else(|| said.value[0].as_ref());
    Ok(place(spelled(root, chosen, likely_dir), &said.by))
}

/// A directory in the platform's words, where those name the same one: a path of this release of the
/// distribution goes with its next one, and its link "current" stays.
fn spelled<'a>(root: &Path, dir: &'a Path, platform: Option<&'a Path>) -> &'a Path {
    platform.filter(|platform| is_same(root, dir, platform)).unwrap_or(dir)
}

fn likely(platform: Option<&PathBuf>, usual: &str) -> Place {
    match platform {
        Some(dir) => place(dir, "the platform has it there"),
        None => place(usual, "the usual place"),
    }
}

fn elsewhere(named: &Path, by: &str, value: &str, option: &str) -> Reason {
    Reason {
        what: format!(
            "{option} {}: {by} says {value}, so the runtime looks there",
            named.display()
        ),
        way_out: format!("leave {option} out, or change that configuration"),
    }
}

fn two(one: &Said<String>, other: &Said<String>, option: &str) -> Reason {
    Reason {
        what: format!("{} says {}, but {} says {}", one.by, one.value, other.by, other.value),
        way_out: format!("say which runtime is in use by {option}"),
    }
}
