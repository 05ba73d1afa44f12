//! The record of the node state: what is in force, and what has to be put back.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Error, State, readable};
use crate::config::{self, Settings};
use crate::facts::ElementData;
use crate::mark::Field;
use crate::names;

/// Name of the record's file.
pub(super) const FILE: &str = "node.json";
/// Raised when the record changes so that older releases misread it.
const VERSION: u64 = 1;

/// What was made on the node. Written before the kernel is touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The network whose settings are in force.
    pub network: String,
    /// The settings in force.
    pub settings: Settings,
    /// Settings before those in force of which something may be left: not empty while the node
    /// moves, or when a move was cut short.
    pub previous: Vec<Settings>,
    /// Indexes of the interfaces whose `src_valid_mark` was 0 before we set it.
    pub src_valid_mark: BTreeSet<u32>,
}

impl Record {
    /// The settings by which state of ours is known.
    #[must_use]
    pub fn owned(&self) -> Vec<&Settings> {
        std::iter::once(&self.settings).chain(&self.previous).collect()
    }

    fn to_json(&self) -> String {
        json!({
            "version": VERSION,
            "network": self.network,
            "settings": self.settings.to_json(),
            "previous": self.previous.iter().map(Settings::to_json).collect::<Vec<_>>(),
            "srcValidMark": self.src_valid_mark,
        })
        .to_string()
    }

    fn from_json(text: &str) -> Option<Self> {
        let value = readable(text, VERSION)?;
        let settings = |value: &Value| Some(config::parse(value.as_object()?).ok()?.settings);
        let previous = value.get("previous")?.as_array()?;
        let indexes = value.get("srcValidMark")?.as_array()?;
        Some(Self {
            network: value.get("network")?.as_str()?.into(),
            settings: settings(value.get("settings")?)?,
            previous: previous.iter().filter_map(settings).collect(),
            src_valid_mark: indexes.iter().filter_map(|n| n.as_u64()?.try_into().ok()).collect(),
        })
    }

    /// What the table itself remembers, for when the file is lost: the numbers by which state of
    /// ours is known, and the sysctls. The network and the other settings are not known then.
    #[must_use]
    pub fn recover(layout: &Elements, restore: &Elements) -> Option<Self> {
        let number = |bytes: &Vec<u8>| bytes.as_slice().try_into().ok().map(u32::from_ne_bytes);
        let value = |wanted: u32| {
            layout.iter().find_map(|(key, data)| match data {
                ElementData::Value(value) if number(key) == Some(wanted) => number(value),
                _ => None,
            })
        };
        let settings = Settings {
            field: Field::new(value(names::LAYOUT_MASK)?)?,
            priority: value(names::LAYOUT_PRIORITY)?,
            table_base: value(names::LAYOUT_TABLES)?,
            ..Settings::default()
        };
        Some(Self {
            network: String::new(),
            settings,
            previous: Vec::new(),
            src_valid_mark: restore.iter().filter_map(|(key, _)| number(key)).collect(),
        })
    }
}

/// Elements of a set or map.
type Elements = BTreeSet<(Vec<u8>, ElementData)>;

impl State {
    /// The record, or none where there is none that can be read.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        Ok(Self::read(&self.path(&[FILE]))?.and_then(|text| Record::from_json(&text)))
    }

    /// Whether there is a record, readable or not.
    #[must_use]
    pub fn has_record(&self) -> bool {
        self.path(&[FILE]).exists()
    }

    /// Writes the record.
    pub fn set_record(&self, record: &Record) -> Result<(), Error> {
        self.write("", FILE, &record.to_json())
    }
}
