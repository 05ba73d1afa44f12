//! Checks that the settings of an entry work on the node before the entry is added to a conflist. With
//! settings that can't work, no new pod starts.

use std::fmt::Debug;
use std::path::Path;

use super::decide::{Edit, Reason, View};
use super::network::Network;
use crate::config;
use crate::config::source::NetworkConfig;

/// The node whose runtime reads the conflist.
pub(crate) trait Gate: Debug + Send {
    /// Checks that these settings would work on the node. Changes nothing. Error: why not, and the remedy.
    fn fits(&mut self, network: &NetworkConfig) -> Result<(), Reason>;

    /// Brings settings into force before the entry is added.
    fn open(&mut self, network: &NetworkConfig) -> Result<(), Reason>;

    /// Undoes [`Gate::open`], because the entry could not be added.
    fn close(&mut self);
}

impl View {
    /// The settings of the entry that the edits add or change; `None` if they add none, or if the settings
    /// serve only pods. Error: settings that an ADD would refuse.
    pub(super) fn added_settings(&self, dir: &Path) -> Result<Option<NetworkConfig>, Reason> {
        let entry = self.edits.iter().find_map(|edit| {
            let Edit::Write { file, text, .. } = edit else { return None };
            let network = Network::parse(file, text.as_bytes()).ok()?;
            let entry = network.settings(*network.ours().first()?);
            Some((network.name, entry, dir.join(file)))
        });
        let Some((network, entry, path)) = entry else { return Ok(None) };
        let refused = |why: String| Reason {
            what: format!("{}: is left as it is, since no pod could start: {why}", path.display()),
            remedy: "correct the settings, then add again".into(),
        };
        let config = config::parse(&entry).map_err(|invalid| refused(invalid.to_string()))?;
        if !config.scope.host {
            // Such an entry brings nothing into force on the node.
            return Ok(None);
        }
        Ok(Some(NetworkConfig { network, config, conflist: Some(path) }))
    }
}
