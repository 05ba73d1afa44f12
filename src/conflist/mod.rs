//! Our entry in the primary plugin's conflist: put in, kept, taken out.
//!
//! ```text
//! network    one file as a runtime reads it: a network's name, its plugins, where each stands
//! splice     one entry into a text or out of it; every other byte stays
//! folder     the files of the conf dir, and which of them the runtime takes
//! decide     folder and wish -> state, and the edits that lead to it       (pure up to here)
//! directory  reads the conf dir, carries edits out under a lock
//! replace    one file is replaced as a whole, or not at all
//! store      the copy of a file as found, the journal, outside of the conf dir
//! runtimes   what the container runtime's own configuration says about the conf dir
//! ```
//! docs/conflist.md has the states and what each means to a person.

mod decide;
mod directory;
mod error;
mod folder;
mod network;
mod replace;
mod runtimes;
mod splice;
mod store;

use std::fmt;

use serde_json::{Map, Value, json};

pub use decide::{Edit, Reason, Removal, State, View, decide, removal};
pub use directory::{Directory, Outcome, Places};
pub use error::Error;
pub use folder::{Content, Folder};
pub use network::{Network, Plugin};
pub use splice::{insert, same_meaning, without};

use crate::config::{self, Invalid};
use crate::names;

/// Where our entry is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
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

/// What is to be true of the conf dir.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Where our entry is kept; none for where it is kept already, in place by default.
    pub mode: Option<Mode>,
    /// Our entry. Without it an entry that is there is right as it is, and a new one has no
    /// settings.
    pub entry: Option<Map<String, Value>>,
    /// Name of the primary's file; none for the one that the runtime takes.
    pub file: Option<String>,
}

impl Wanted {
    /// An entry with these settings, checked as an ADD would.
    pub fn entry(mut settings: Map<String, Value>) -> Result<Map<String, Value>, Invalid> {
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

    fn plain() -> Map<String, Value> {
        Map::from_iter([("type".to_string(), json!(names::PLUGIN_TYPE))])
    }
}
