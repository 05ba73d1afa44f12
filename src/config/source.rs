//! Sources of settings: a file, or the first file of a folder that names symroute.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Config, Settings, file};
use crate::plain_file::{self, Links};

/// File name extensions that libcni reads (`ConfFiles` in libcni's conf.go).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingsSource {
    File(PathBuf),
    /// The first file of this folder that names symroute.
    Folder(PathBuf),
}

/// The commands that read settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Up,
    Agent,
}

/// A configuration and the network that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkConfig {
    pub(crate) network: String,
    pub(crate) config: Config,
    /// Path of the conflist; `None` for a plugin object.
    pub(crate) conflist: Option<PathBuf>,
}

impl Reader {
    /// The network name that the command uses if the file has none.
    fn network(self) -> String {
        match self {
            Self::Up => "symroute up".into(),
            Self::Agent => "symroute agent".into(),
        }
    }

    /// The configuration if neither a file nor the node has settings.
    pub(crate) fn default_config(self) -> NetworkConfig {
        let config = Settings::default().into();
        NetworkConfig { network: self.network(), config, conflist: None }
    }
}

impl SettingsSource {
    /// Reads the settings; `None` if no file of a folder names symroute (yet). `up` refuses unknown keys in
    /// a file that the operator names. In a folder, which the node reads at each boot, it ignores them, because
    /// a typing error must not keep the node without its state.
    /// Error: the file can't be read, or a value is wrong.
    pub(crate) fn read(&self, reader: Reader) -> Result<Option<NetworkConfig>, String> {
        let (path, strictly) = match self {
            Self::File(path) => (path.clone(), reader == Reader::Up),
            Self::Folder(folder) => match names_us(folder) {
                Some(path) => (path, false),
                None => return Ok(None),
            },
        };
        let file::Content { network, config, is_list } = file::read(&path, strictly)?;
        // A conflist in a folder may serve only pods, which must not fail a boot.
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

/// The first file by name that names symroute, preferably one that serves the node and not only pods. Skips
/// half-written files, which are not JSON, as the runtime does.
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
    // A faulty file counts as serving the node, so that its reader reports the fault.
    let for_node = |path: &PathBuf| file::read(path, false).map_or(true, |f| f.config.scope.host);
    let first = files.iter().position(for_node).unwrap_or(0);
    files.into_iter().nth(first)
}
