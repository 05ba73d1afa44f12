//! Where settings come from: a file, or the conflist of a folder that names symroute.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Config, Scope, file};

/// The network that the agent acts for where no file names one.
pub(crate) const OWN_NETWORK: &str = "symroute agent";

/// Names that libcni reads (`ConfFiles` of libcni's conf.go).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    /// In the first file of this folder that names us.
    Folder(PathBuf),
}

/// Settings, and the network that brings them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) network: String,
    pub(crate) config: Config,
    /// The conflist that they are in; none for a plugin object.
    pub(crate) conflist: Option<PathBuf>,
}

impl Source {
    /// The settings, or none where no file names us (yet).
    ///
    /// # Errors
    /// A file names us, but with settings that are none.
    pub(crate) fn read(&self) -> Result<Option<Wanted>, String> {
        match self {
            Self::File(path) => wanted(path).map(Some),
            Self::Folder(folder) => {
                let Some(path) = names_us(folder) else { return Ok(None) };
                wanted(&path).map(Some)
            }
        }
    }
}

fn wanted(path: &Path) -> Result<Wanted, String> {
    let (network, config) = file::read(path)?;
    if config.scope == Scope::Pod {
        return Err(format!(
            "{}: \"scope\": \"pod\": the agent serves the node; a pod's own data plane is made by \
             its ADD",
            path.display()
        ));
    }
    let conflist = file::is_list(path).then(|| path.to_path_buf());
    Ok(Wanted { network: network.unwrap_or_else(|| OWN_NETWORK.into()), config, conflist })
}

/// The lexically first file with a plugin of ours. One that is no JSON is somebody's half-written
/// file: the runtime skips it too.
pub(crate) fn names_us(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|e| ENDINGS.iter().any(|known| e == *known)))
        .collect();
    files.sort();
    files.into_iter().find(|path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        serde_json::from_str(&text).is_ok_and(|network| file::names_us(&network))
    })
}
