//! Settings for `up`: from a conflist or from a plugin object.

use std::path::PathBuf;

use super::Failure;
use crate::config::file;
use crate::config::source;
use crate::config::{Config, Invalid, Log, Scope, Settings};

/// The network that `up` without a name acts for.
pub(super) const OWN_NETWORK: &str = "symroute up";

/// A configuration and the network that it belongs to.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) network: String,
    pub(super) config: Config,
    /// The conflist that it is in; none for a plugin object.
    pub(super) conflist: Option<PathBuf>,
}

pub(super) fn default() -> Config {
    Config { settings: Settings::default(), scope: Scope::Host, log: Log::default() }
}

/// The settings; none where no file of a folder names us. What a person names is held to known
/// keys. A folder is read at each boot, too, and a slip there must not keep the node from its state.
pub(super) fn read(from: &source::Source) -> Result<Option<Source>, Failure> {
    let (path, read) = match from {
        source::Source::File(path) => (path.clone(), file::read_strictly(path)),
        source::Source::Folder(folder) => {
            let Some(path) = source::names_us(folder) else { return Ok(None) };
            let read = file::read(&path);
            (path, read)
        }
    };
    let (network, config) = read.map_err(Failure::Failed)?;
    let conflist = file::is_list(&path).then_some(path);
    Ok(Some(Source { network: network.unwrap_or_else(|| OWN_NETWORK.into()), config, conflist }))
}

pub(super) fn check_scope(config: &Config) -> Result<(), Failure> {
    if config.scope == Scope::Pod {
        let hint = "\"up\" serves the node; a pod's own data plane is made by its ADD";
        let invalid = Invalid::new("scope", &"pod".into(), hint);
        return Err(Failure::Failed(invalid.to_string()));
    }
    Ok(())
}
