//! The record of the node state: what is in force, and what has to be put back.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Error, State};
use crate::config::{self, Settings};

/// Name of the record's file.
pub(super) const FILE: &str = "node.json";
/// Raised when the record changes so that older releases misread it.
const VERSION: u32 = 1;

/// What was made on the node. Written before the kernel is touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The network whose settings are in force.
    pub network: String,
    /// The settings in force.
    pub settings: Settings,
    /// The settings before, while the node moves from them to those in force.
    pub previous: Option<Settings>,
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
            "previous": self.previous.as_ref().map(Settings::to_json),
            "srcValidMark": self.src_valid_mark,
        })
        .to_string()
    }

    fn from_json(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let settings = |name: &str| -> Option<Settings> {
            let object: &Map<String, Value> = value.get(name)?.as_object()?;
            Some(config::parse(object).ok()?.settings)
        };
        let indexes = value.get("srcValidMark")?.as_array()?;
        Some(Self {
            network: value.get("network")?.as_str()?.into(),
            settings: settings("settings")?,
            previous: settings("previous"),
            src_valid_mark: indexes.iter().filter_map(|n| n.as_u64()?.try_into().ok()).collect(),
        })
    }
}

impl State {
    /// The record, or none where there is none that can be read.
    pub fn record(&self) -> Result<Option<Record>, Error> {
        Ok(Self::read(&self.path(&[FILE]))?.and_then(|text| Record::from_json(&text)))
    }

    /// Writes the record.
    pub fn set_record(&self, record: &Record) -> Result<(), Error> {
        self.write("", FILE, &record.to_json())
    }
}
