//! Which settings the agent keeps in force.

use std::fs;
use std::path::{Path, PathBuf};

use super::cause::Cause;
use super::events::files::Folder;
use crate::config::{Config, Scope, file};

/// The network that the agent acts for where no file names one.
pub const OWN_NETWORK: &str = "symroute agent";

/// Names that libcni reads (`ConfFiles` of libcni's conf.go).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// Where the settings are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In this file.
    File(PathBuf),
    /// In the first file of this folder that names us.
    Folder(PathBuf),
}

/// Settings, and the network that brings them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Name of the network.
    pub network: String,
    /// Its configuration.
    pub config: Config,
    /// Whether the network is one of the runtime's, so that pods can belong to it.
    pub is_network: bool,
}

impl Source {
    /// What is to be watched for changes.
    #[must_use]
    pub fn folder(&self) -> Folder {
        let (path, names) = match self {
            Self::File(path) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let name = path.file_name().map(|name| vec![name.to_os_string()]);
                (parent.unwrap_or(Path::new(".")), name)
            }
            Self::Folder(path) => (path.as_path(), None),
        };
        Folder { path: path.into(), cause: Cause::Conflist, names }
    }

    /// The settings, or none where no file names us (yet).
    ///
    /// # Errors
    /// A file names us, but with settings that are none.
    pub fn read(&self) -> Result<Option<Wanted>, String> {
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
    let is_network = network.is_some();
    Ok(Wanted { network: network.unwrap_or_else(|| OWN_NETWORK.into()), config, is_network })
}

/// The lexically first file with a plugin of ours. One that is no JSON is somebody's half-written
/// file: the runtime skips it too.
fn names_us(folder: &Path) -> Option<PathBuf> {
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
