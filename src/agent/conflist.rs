//! Keeps symroute's entry in the primary plugin's conflist.

use super::cause::Cause;
use super::events::files::Folder;
use super::managed_file::ManagedFile;
use crate::config::Config;
use crate::conflist::{Directory, Error, State, Wanted};
use crate::node::gate::{ThisNode, gate};

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) directory: Directory,
    /// The wanted entry. Fields that are `None` keep the values that the operator gave last.
    pub(crate) wanted: Wanted,
    /// The node, where the settings come into force before the entry names them.
    pub(crate) gate: Option<ThisNode>,
    /// Whether the last check refused the entry.
    is_refused: bool,
}

impl Entry {
    pub(crate) fn new(directory: Directory, wanted: Wanted, gate: Option<ThisNode>) -> Self {
        Self { directory, wanted, gate, is_refused: false }
    }

    /// Whether the entry is in place.
    /// Error: why the agent can't put it in place now.
    fn judge(&mut self, state: &State) -> Result<bool, String> {
        self.is_refused = matches!(state, State::Refused(_));
        match state.reason() {
            Some(reason) => Err(reason.to_string()),
            None => Ok(*state == State::Ready),
        }
    }
}

impl ManagedFile for Entry {
    fn folder(&self) -> Folder {
        Folder { path: self.directory.path().into(), cause: Cause::Conflist, names: None }
    }

    fn is_in_place(&mut self) -> Result<bool, String> {
        let view = self.directory.try_out(&self.wanted, gate(&mut self.gate));
        let view = view.map_err(|error| text(&error))?;
        self.judge(&view.state)
    }

    fn put(&mut self) -> Result<(), String> {
        let outcome = self.directory.add(&self.wanted, gate(&mut self.gate));
        let outcome = outcome.map_err(|error| text(&error))?;
        match outcome.now.map(|now| self.judge(&now.state)) {
            Some(Ok(false)) => Err("another program changed the conflist at the same time".into()),
            Some(Err(reason)) => Err(reason),
            Some(Ok(true)) | None => Ok(()),
        }
    }

    fn settings(&self) -> Option<Config> {
        if self.is_refused { None } else { self.directory.settings_to_come(&self.wanted) }
    }

    fn others(&self) -> String {
        let folder = self.directory.path().display();
        format!("the journal of \"symroutectl conflist\" shows what was put back in {folder}")
    }
}

fn text(error: &Error) -> String {
    format!("{error}; {}", error.remedy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conflist::Places;
    use crate::temp_dir::TempDir;
    use std::fs;

    #[test]
    fn the_entry_is_put_back_and_a_missing_primary_is_waited_for() {
        let root = TempDir::new();
        let places = Places::default().under(&root);
        let file = places.conf_dir.join("10-flannel.conflist");
        let primary =
            r#"{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "flannel"}]}"#;
        fs::create_dir_all(&places.conf_dir).unwrap();
        let directory = Directory::at(places);
        let mut entry = Entry::new(directory, Wanted::default(), None);
        assert!(entry.is_in_place().unwrap_err().contains("; "), "waited for, with a remedy");
        for _ in 0..2 {
            fs::write(&file, primary).unwrap();
            assert_eq!(entry.is_in_place(), Ok(false));
            entry.put().unwrap();
            assert_eq!(entry.is_in_place(), Ok(true));
            assert!(fs::read_to_string(&file).unwrap().contains("symroute"));
        }
    }
}
