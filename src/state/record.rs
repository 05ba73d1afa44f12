//! The record of the node state: the settings in force, and what has to be set back.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::{Error, State};
use crate::backend::Marker;
use crate::backend::iptables::node_set::Notes;
use crate::config::source::NetworkConfig;
use crate::config::{self, Automatic, Backend, Settings};
use crate::error::absent_is_none;
use crate::model::{ElementData, Elements, Family, Field};
use crate::names;
use crate::plain_file::{self, Links};

pub(super) const FILE: &str = "node.json";
/// Version of the record. Raised when older releases would misread the content.
const VERSION: u64 = 1;

/// Name of the link that names the backend, in words that every release reads.
pub(super) const MARKING: &str = "marking";
const BY_NFTABLES: &str = "nftables";
const BY_IPTABLES: &str = "iptables";

/// State that symroute has on the node. Written before the kernel changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) network: String,
    pub(crate) settings: Settings,
    /// The conflist that the settings came from; none if they came from an ADD.
    pub(crate) conflist: Option<PathBuf>,
    /// Earlier settings whose state may still be on the node. Empty, except during a change and after one that
    /// was cut short.
    pub(crate) previous: Vec<Settings>,
    /// Indexes of the interfaces whose `src_valid_mark` was 0 before symroute.
    pub(crate) src_valid_mark: BTreeSet<u32>,
    /// Built-in chains of iptables-nft that exist only because of symroute.
    pub(crate) made_chains: BTreeSet<(Family, String)>,
}

impl Record {
    /// The settings that identify symroute's state on the node.
    pub(crate) fn owned(&self) -> Vec<&Settings> {
        std::iter::once(&self.settings).chain(&self.previous).collect()
    }

    /// The settings that a network asks for, with the plugin's choices that are in force. If the settings of
    /// another network fulfil them, those stay.
    pub(crate) fn settle(&self, network: &str, asked: &Settings) -> Settings {
        if self.network != network && self.settings.fulfil(asked) {
            return self.settings.clone();
        }
        asked.with_choices_of(&self.settings)
    }

    pub(crate) fn to_json(&self) -> String {
        json!({
            "version": VERSION,
            "network": self.network,
            "settings": self.settings.to_json(),
            "automatic": self.settings.automatic.keys(),
            "conflist": self.conflist,
            "previous": self.previous.iter().map(Settings::to_json).collect::<Vec<_>>(),
            "srcValidMark": self.src_valid_mark,
            "madeChains": self.made_chains.iter().map(|(f, chain)| (f.number(), chain)).collect::<Vec<_>>(),
        })
        .to_string()
    }

    /// None for a damaged file, or for a format that this release does not know.
    pub(crate) fn from_json(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        if value.get("version")?.as_u64()? > VERSION {
            return None;
        }
        let settings = |value: &Value| Some(config::parse(value.as_object()?).ok()?.settings);
        let chain = |value: &Value| {
            let family = Family::from_number(value.get(0)?.as_u64()?.try_into().ok()?)?;
            Some((family, value.get(1)?.as_str()?.to_string()))
        };
        let previous = value.get("previous")?.as_array()?;
        let indexes = value.get("srcValidMark")?.as_array()?;
        // Releases before the iptables backend did not write this key.
        let made = value.get("madeChains").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        // Older releases did not choose any values.
        let chosen = value.get("automatic").and_then(Value::as_array).into_iter().flatten();
        let automatic = Automatic::of(&chosen.filter_map(Value::as_str).collect::<Vec<_>>());
        Some(Self {
            network: value.get("network")?.as_str()?.into(),
            settings: Settings { automatic, ..settings(value.get("settings")?)? },
            conflist: value.get("conflist").and_then(Value::as_str).map(PathBuf::from),
            previous: previous.iter().filter_map(settings).collect(),
            src_valid_mark: indexes.iter().filter_map(|n| n.as_u64()?.try_into().ok()).collect(),
            made_chains: made.iter().filter_map(chain).collect(),
        })
    }

    /// Recovers a record from the nftables table, after a loss of the file: the numbers that identify
    /// symroute's state, and the sysctls. The network and the other settings stay unknown.
    pub(crate) fn recover_from_table(layout: &Elements, restore: &Elements) -> Option<Self> {
        let number = |bytes: &Vec<u8>| bytes.as_slice().try_into().ok().map(u32::from_ne_bytes);
        let value = |wanted: u32| {
            layout.iter().find_map(|(key, data)| match data {
                ElementData::Value(value) if number(key) == Some(wanted) => number(value),
                _ => None,
            })
        };
        let layout = (
            value(names::LAYOUT_MASK)?,
            value(names::LAYOUT_PRIORITY)?,
            value(names::LAYOUT_TABLES)?,
        );
        let restore = restore.iter().filter_map(|(key, _)| number(key)).collect();
        Self::recovered(layout, Backend::Auto, restore)
    }

    /// Recovers a record from the ipset of a node that iptables marks.
    pub(crate) fn recover_from_ipset(notes: Notes) -> Option<Self> {
        let recovered = Self::recovered(notes.layout?, Backend::Iptables, notes.restore)?;
        Some(Self { made_chains: notes.made_chains, ..recovered })
    }

    fn recovered(
        (mask, priority, table_base): (u32, u32, u32),
        backend: Backend,
        src_valid_mark: BTreeSet<u32>,
    ) -> Option<Self> {
        let field = Field::new(mask)?;
        let settings = Settings { backend, field, priority, table_base, ..Settings::default() };
        Some(Self {
            network: String::new(),
            settings,
            conflist: None,
            previous: Vec::new(),
            src_valid_mark,
            made_chains: BTreeSet::new(),
        })
    }
}

impl From<Record> for NetworkConfig {
    fn from(record: Record) -> Self {
        let Record { network, settings, conflist, .. } = record;
        Self { network, config: settings.into(), conflist }
    }
}

impl State {
    /// The record; none if there is none that can be read.
    pub(crate) fn record(&self) -> Result<Option<Record>, Error> {
        Ok(Self::read(&self.path(&[FILE]))?.and_then(|text| Record::from_json(&text)))
    }

    /// When a reconcile or the agent last looked at the whole node: the time of the record's file. None if
    /// there is no file.
    pub(crate) fn last_look(&self) -> Option<SystemTime> {
        fs::symlink_metadata(self.path(&[FILE])).and_then(|file| file.modified()).ok()
    }

    /// Sets the time of [`Self::last_look`] to now.
    pub(crate) fn note_look(&self) -> Result<(), Error> {
        let path = self.path(&[FILE]);
        let open = plain_file::open(&path, Links::Refused);
        let touched = open.and_then(|file| file.set_modified(SystemTime::now()));
        if touched.as_ref().is_err_and(plain_file::is_damaged) {
            return Self::remove(&path).map(drop);
        }
        absent_is_none(touched).map_err(Error::at("touch", &path)).map(drop)
    }

    /// Whether iptables marks, according to the last reconcile.
    pub(crate) fn is_marked_by_iptables(&self) -> bool {
        fs::read_link(self.path(&[MARKING])).is_ok_and(|found| found == Path::new(BY_IPTABLES))
    }

    /// Records the backend that marks from now on.
    pub(crate) fn set_marker(&self, marker: Marker) -> Result<(), Error> {
        let word = match marker {
            Marker::Nftables => BY_NFTABLES,
            Marker::Iptables(_) => BY_IPTABLES,
        };
        if fs::read_link(self.path(&[MARKING])).is_ok_and(|found| found == Path::new(word)) {
            return Ok(());
        }
        self.rename_into_place("", MARKING, |temporary, path| {
            plain_file::with_room(temporary, |temporary| symlink(word, temporary))?;
            plain_file::put(temporary, path)
        })
    }

    pub(crate) fn record_file(&self) -> PathBuf {
        self.path(&[FILE])
    }

    pub(crate) fn set_record(&self, record: &Record) -> Result<(), Error> {
        self.write("", FILE, &record.to_json())
    }
}
