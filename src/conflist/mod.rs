//! Our entry in the primary plugin's conflist: put in, kept, taken out.
//!
//! ```text
//! network    one file as a runtime reads it: a network's name, its plugins, where each stands
//! splice     one entry into a text or out of it; every other byte stays
//! folder     the files of the conf dir, and which of them the runtime takes
//! decide     folder and wish -> state, and the edits that lead to it
//! gate       what has to hold on the node before our entry comes in
//! removal    folder -> the edits that take our entry out                  (pure up to here)
//! directory  reads the conf dir, carries edits out under a lock
//! replace    one file is replaced as a whole, or not at all
//! store      the copy of a file as found, the journal, outside of the conf dir
//! ```
//! docs/conflist.md has the states and what each means to a person.

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

/// Raised when what is remembered of a wish changes so that older releases misread it.
const VERSION: u64 = 1;

/// Where our entry is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// In the primary's own conflist.
    #[default]
    InPlace,
    /// In a copy of it, [`names::OWN_CONFLIST`], that the runtime takes before the primary's.
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

/// What is to be true of the conf dir. What is left open here is as it was wanted last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where our entry is kept; by default where it is kept already, or else in place.
    pub(crate) mode: Option<Mode>,
    /// Our entry. By default one that is there is right as it is, and a new one has no settings.
    pub(crate) entry: Option<Map<String, Value>>,
    /// Name of the primary's file; by default the one that the runtime takes.
    pub(crate) file: Option<String>,
}

impl Wanted {
    /// An entry with these settings, checked as an ADD would.
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

    /// This, where something is left open as `last` has it.
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

    /// What was written by [`Self::to_json`], of this version.
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
