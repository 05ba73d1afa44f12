//! `symroute attachments`: the pods that need the program in its place, to be asked before it goes.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{EXIT_OFF, Failure};
use crate::cni::cached::{self, Cached};
use crate::names;
use crate::state::State;

/// Where to look.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    cache: PathBuf,
    /// The state of this boot; none where the file system is not that of a running node.
    state: Option<PathBuf>,
}

impl Words {
    pub(super) fn new(cache: Option<&Path>, root: Option<&Path>) -> Self {
        let root = root.unwrap_or(Path::new("/"));
        let cache = cache.unwrap_or(Path::new(names::CACHE_DIR));
        let state = (root == Path::new("/")).then(|| names::STATE_DIR.into());
        Self { cache: root.join(cache.strip_prefix("/").unwrap_or(cache)), state }
    }
}

/// One line for each: what names us, and how to get rid of it.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let mut text = String::new();
    for path in cached(&words.cache)? {
        let _ = writeln!(text, "{}: a pod whose DEL will call symroute", path.display());
    }
    if let Some(state) = &words.state {
        for pod in State::new(state).attachments()?.0 {
            let key = pod.key;
            let _ = writeln!(
                text,
                "enrolled: {} of container {}, network {}",
                key.ifname, key.container, key.network
            );
        }
    }
    let code = if text.is_empty() { 0 } else { EXIT_OFF };
    Ok((text, code))
}

/// The entries of the runtime's cache with us among the plugins.
fn cached(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let fail = |error: io::Error| Failure::Failed(format!("read {}: {error}", folder.display()));
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut ours = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        let text = fs::read_to_string(&path).unwrap_or_default();
        if cached::read(&text) == Some(Cached::Ours) {
            ours.push(path);
        }
    }
    ours.sort();
    Ok(ours)
}
