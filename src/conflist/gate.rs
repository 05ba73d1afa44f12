//! What has to hold before our entry comes into a conflist: its settings work on the node. A conflist
//! with settings that can't work keeps every new pod from starting.

use std::fmt::Debug;
use std::path::Path;

use super::decide::{Edit, Reason, View};
use super::network::Network;
use crate::config;
use crate::config::source::NetworkConfig;

/// The node whose runtime reads the conflist.
pub(crate) trait Gate: Debug + Send {
    /// Whether these settings would work there. Changes nothing.
    /// Error: why not, and the remedy.
    fn fits(&mut self, network: &NetworkConfig) -> Result<(), Reason>;

    /// Brings them into force, before the entry comes in.
    fn open(&mut self, network: &NetworkConfig) -> Result<(), Reason>;

    /// Takes back what [`Gate::open`] has done: the entry did not come in.
    fn close(&mut self);
}

impl View {
    /// The settings that a runtime would read once the edits are carried out, if these put an entry of
    /// ours in or change it.
    /// Error: settings that no ADD takes.
    pub(super) fn promises(&self, dir: &Path) -> Result<Option<NetworkConfig>, Reason> {
        let entry = self.edits.iter().find_map(|edit| {
            let Edit::Write { file, text, .. } = edit else { return None };
            let network = Network::parse(file, text.as_bytes()).ok()?;
            let entry = network.settings(*network.ours().first()?);
            Some((network.name, entry, dir.join(file)))
        });
        let Some((network, entry, path)) = entry else { return Ok(None) };
        let refused = |why: String| Reason {
            what: format!("{}: is left as it is, since no pod could start: {why}", path.display()),
            way_out: "correct the settings, then add again".into(),
        };
        let config = config::parse(&entry).map_err(|invalid| refused(invalid.to_string()))?;
        if !config.scope.host {
            // Nothing of the node comes into force by it.
            return Ok(None);
        }
        Ok(Some(NetworkConfig { network, config, conflist: Some(path) }))
    }
}
