//! Adds our entry to the primary plugin's conflist, keeps it there and removes it.
//!
//! ```text
//! network    parses a file as a runtime does: the network's name and its plugins with their places
//! splice     adds an entry to a text or removes it; every other byte stays
//! folder     the files of the conf dir, and which of them the runtime takes
//! decide     folder and wish -> state, and the edits that correct it
//! gate       checks that the settings work on the node before the entry is added
//! removal    folder -> the edits that remove our entry                    (pure up to here)
//! program    checks that the runtime finds the programs that a conflist names
//! directory  reads the conf dir, applies edits under a lock
//! replace    replaces a file atomically
//! store      the original files and the journal, outside of the conf dir
//! ```
//! docs/conflist.md explains the states to operators.

pub(crate) mod decide;
mod directory;
mod error;
pub(crate) mod folder;
mod gate;
mod network;
mod program;
pub(crate) mod removal;
mod replace;
mod splice;
mod store;

use std::fmt;

use serde_json::{Map, Value, json};

pub(crate) use decide::{Edit, Reason, State, View};
pub(crate) use directory::{Directory, Outcome, Places};
pub(crate) use error::Error;
pub(crate) use folder::is_own;
pub(crate) use gate::Gate;
pub use network::{Network, Plugin};
pub use splice::{insert, same_meaning, without};

use crate::config::{self, Invalid};
use crate::names;

/// Version of `wanted.json`, raised when older releases would misread it.
const VERSION: u64 = 1;

/// File that has our entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// The primary's own conflist.
    #[default]
    InPlace,
    /// A copy of the primary's conflist, [`names::OWN_CONFLIST`], which the runtime takes first.
    OwnFile,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InPlace => "in-place",
            Self::OwnFile => "own-file",
        })
    }
}

/// Wish for our entry in the conf dir. A part that is `None` stays as it was wanted last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Mode; by default that of an existing entry, or in place for a new one.
    pub(crate) mode: Option<Mode>,
    /// Our plugin object. By default an existing entry stays as it is, and a new one has no settings.
    pub(crate) entry: Option<Map<String, Value>>,
    /// Name of the primary's file; by default the file that the runtime takes.
    pub(crate) file: Option<String>,
}

impl Wanted {
    /// Makes an entry of these settings. Error: settings that an ADD would refuse.
    pub(crate) fn entry(mut settings: Map<String, Value>) -> Result<Map<String, Value>, Invalid> {
        match settings.get("type") {
            None => {
                settings.shift_insert(0, "type".into(), json!(names::PLUGIN_TYPE));
            }
            Some(kind) if kind == names::PLUGIN_TYPE => {}
            Some(other) => {
                let hint =
                    format!("allowed: \"{}\"; give our own plugin object", names::PLUGIN_TYPE);
                return Err(Invalid::new("type", other, hint));
            }
        }
        config::parse(&settings)?;
        Ok(settings)
    }

    /// This wish, completed by the parts of `last`.
    fn or(&self, last: &Self) -> Self {
        Self {
            mode: self.mode.or(last.mode),
            entry: self.entry.clone().or_else(|| last.entry.clone()),
            file: self.file.clone().or_else(|| last.file.clone()),
        }
    }

    fn to_json(&self) -> Value {
        let mode = self.mode.map(|mode| mode.to_string());
        json!({"version": VERSION, "mode": mode, "entry": self.entry, "file": self.file})
    }

    /// Inverse of [`Self::to_json`]. `None` for another version.
    fn from_json(value: &Value) -> Option<Self> {
        (value.get("version")?.as_u64()? == VERSION).then_some(())?;
        let modes = [Mode::InPlace, Mode::OwnFile];
        Some(Self {
            mode: modes.into_iter().find(|mode| value["mode"] == mode.to_string()),
            entry: value["entry"].as_object().and_then(|e| Self::entry(e.clone()).ok()),
            file: value["file"].as_str().map(Into::into),
        })
    }

    fn plain() -> Map<String, Value> {
        Map::from_iter([("type".to_string(), json!(names::PLUGIN_TYPE))])
    }
}
