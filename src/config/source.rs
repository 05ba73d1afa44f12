//! Where settings come from: a file, or the conflist of a folder that names symroute.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Config, Settings, file};
use crate::plain_file::{self, Links};

/// Names that libcni reads (`ConfFiles` of libcni's conf.go).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingsSource {
    File(PathBuf),
    /// In the first file of this folder that names us.
    Folder(PathBuf),
}

/// The commands that read settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Up,
    Agent,
}

/// Settings, and the network that brings them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkConfig {
    pub(crate) network: String,
    pub(crate) config: Config,
    /// The conflist that they are in; none for a plugin object.
    pub(crate) conflist: Option<PathBuf>,
}

impl Reader {
    /// The network that the command acts for where no file names one.
    fn network(self) -> String {
        match self {
            Self::Up => "symroute up".into(),
            Self::Agent => "symroute agent".into(),
        }
    }

    /// The settings where neither a file nor the node has any.
    pub(crate) fn default_config(self) -> NetworkConfig {
        let config = Settings::default().into();
        NetworkConfig { network: self.network(), config, conflist: None }
    }
}

impl SettingsSource {
    /// The settings, or none where no file of a folder names us (yet). What a person names to `up`
    /// is held to known keys. A folder is read at each boot, too, and a slip there must not keep the
    /// node from its state.
    /// Error: the file can't be read, or has settings that can't be taken.
    pub(crate) fn read(&self, reader: Reader) -> Result<Option<NetworkConfig>, String> {
        let (path, strictly) = match self {
            Self::File(path) => (path.clone(), reader == Reader::Up),
            Self::Folder(folder) => match names_us(folder) {
                Some(path) => (path, false),
                None => return Ok(None),
            },
        };
        let file::Content { network, config, is_list } = file::read(&path, strictly)?;
        // What lies in a folder may serve pods alone, and a boot goes on.
        if !config.scope.host && strictly {
            return Err(format!(
                "{}: \"scope\": \"pod\": this command serves the node; a pod's own data plane is \
                 made by its ADD",
                path.display()
            ));
        }
        let conflist = is_list.then_some(path);
        let network = network.unwrap_or_else(|| reader.network());
        Ok(Some(NetworkConfig { network, config, conflist }))
    }
}

/// The lexically first file with a plugin of ours, one that serves the node before those that serve pods alone. One
/// that is no JSON is half-written: the runtime skips it too.
fn names_us(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|e| ENDINGS.iter().any(|known| e == *known)))
        .collect();
    files.sort();
    files.retain(|path| {
        let text = plain_file::read(path, plain_file::LONGEST, Links::Followed);
        serde_json::from_slice(&text.unwrap_or_default())
            .is_ok_and(|network| file::names_us(&network))
    });
    // What is wrong with a file is for its reader to say.
    let for_node = |path: &PathBuf| file::read(path, false).map_or(true, |f| f.config.scope.host);
    let first = files.iter().position(for_node).unwrap_or(0);
    files.into_iter().nth(first)
}
