//! Attachments: an ADD writes a file for each pod interface, and its DEL removes the file.
//!
//! A reconcile reads only the files of pods with settings of their own, so its cost does not depend on the
//! number of attachments.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::Hasher as _;
use std::net::IpAddr;
use std::ops::Not;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, State, folder, has_prefix, is_there, no_folder_is_none};
use crate::hash::Fnv;
use crate::plain_file;

/// Version of an attachment's file. Raised when older releases would misread the content.
const VERSION: u64 = 1;
/// Number of characters of the container id in a file's name.
const SHOWN: usize = 64;
/// Folder of all attachments except those of pods that are left out.
pub(super) const PODS: &str = "pods";
/// Prefix of the files of attachments with settings of their own. Older releases remove such hidden files with
/// the node state.
pub(super) const OWN_SETTINGS: &str = ".own-";
/// Folders that only older releases create.
pub(super) const OLD_FOLDERS: [&str; 2] = ["gone", "owners"];

/// Maximum number of attachments that one call checks: this takes no longer than the rest of a reconcile.
const ATTACHMENTS_AT_ONCE: usize = 16;
/// File that says where the next check of some attachments begins. Older releases remove hidden files with the
/// node state.
const NEXT: &str = ".next";

/// File that exists while the kernel may have settings of a pod that has gone.
const UNSETTLED: &str = ".unsettled";

/// The values by which a runtime identifies an attachment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) network: String,
    /// `CNI_CONTAINERID`
    pub(crate) container: String,
    /// `CNI_IFNAME`
    pub(crate) ifname: String,
}

impl Key {
    /// File name that fits `NAME_MAX` for parts of any length: a readable beginning and a hash of all parts.
    /// The file repeats the parts, so that a clash can be detected.
    pub(crate) fn file_name(&self) -> String {
        let all = format!("{}\0{}\0{}", self.network, self.container, self.ifname);
        let shown: String = self.container.chars().take(SHOWN).collect();
        format!("{shown}-{}-{:016x}", self.ifname, Fnv::of(all.as_bytes()).finish())
    }

    /// Whether the path has the file name of this attachment.
    fn is_name_of(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.strip_prefix(OWN_SETTINGS).unwrap_or(name) == self.file_name()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) key: Key,
    /// Path of the pod's network namespace, as the runtime named it; may be empty.
    pub(crate) netns: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether this pod accepts a local pod's address as a source.
    pub(crate) hairpin: bool,
    /// Whether this pod is left out. Such an attachment does not hold the node state.
    pub(crate) left_out: bool,
    /// Routers in the results of earlier plugins, by interface. Only a pod's own data plane uses them.
    pub(crate) gateways: BTreeMap<String, Vec<IpAddr>>,
}

impl Attachment {
    /// Whether the pod's annotations differ from the settings of its network.
    pub(crate) fn has_own_settings(&self) -> bool {
        self.hairpin || self.left_out
    }

    pub(crate) fn to_json(&self) -> String {
        let Key { network, container, ifname } = &self.key;
        let content = Content {
            version: VERSION,
            network: network.into(),
            container: container.into(),
            ifname: ifname.into(),
            netns: (&self.netns).into(),
            addresses: (&self.addresses).into(),
            hairpin: self.hairpin,
            left_out: self.left_out,
            gateways: Cow::Borrowed(&self.gateways),
            adopted: false,
        };
        #[expect(clippy::unwrap_used, reason = "text, numbers and flags can all be written")]
        serde_json::to_string(&content).unwrap()
    }

    /// The attachment, and whether an older release wrote it without an ADD (`adopted`). None for text that is
    /// no attachment, such as a file that a full disk has cut short.
    pub(crate) fn from_json(text: &str) -> Option<(Self, bool)> {
        let content: Content<'_> = serde_json::from_str(text).ok()?;
        let key = Key {
            network: content.network.into(),
            container: content.container.into(),
            ifname: content.ifname.into(),
        };
        let attachment = Self {
            key,
            netns: content.netns.into(),
            addresses: content.addresses.into(),
            hairpin: content.hairpin,
            left_out: content.left_out,
            gateways: content.gateways.into_owned(),
        };
        (content.version <= VERSION).then_some((attachment, content.adopted))
    }
}

/// Content of an attachment's file.
#[derive(Serialize, Deserialize)]
struct Content<'a> {
    version: u64,
    network: Cow<'a, str>,
    container: Cow<'a, str>,
    ifname: Cow<'a, str>,
    #[serde(default)]
    netns: Cow<'a, str>,
    addresses: Cow<'a, [IpAddr]>,
    #[serde(default)]
    hairpin: bool,
    #[serde(default, rename = "leftOut", skip_serializing_if = "Not::not")]
    left_out: bool,
    #[serde(default, skip_serializing_if = "no_gateways")]
    gateways: Cow<'a, BTreeMap<String, Vec<IpAddr>>>,
    /// Only an older release wrote this key.
    #[serde(default, skip_serializing)]
    adopted: bool,
}

fn no_gateways(gateways: &BTreeMap<String, Vec<IpAddr>>) -> bool {
    gateways.is_empty()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Whether the kernel has, or needs, settings of this pod alone.
    pub(crate) has_own_settings: bool,
    /// The previous attachment with the same key.
    pub(crate) before: Option<Attachment>,
}

/// Some of the attachments that hold the node state.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) found: Attachments,
    place: u64,
    /// Where the next slice begins.
    next: u64,
}

/// Attachments, and the files that can't be read as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attachments {
    pub(crate) readable: Vec<Attachment>,
    pub(crate) unreadable: Vec<PathBuf>,
}

impl State {
    /// Writes an attachment, all of it or nothing. Callers do this before they ask whether the settings are in
    /// force: a DEL that removes the node state looks for files last.
    pub(crate) fn attach(&self, attachment: &Attachment) -> Result<Written, Error> {
        let name = attachment.key.file_name();
        let (path, text) = (self.path(&[PODS, &name]), attachment.to_json());
        let before = if attachment.left_out {
            let before = Self::read(&path)?;
            Self::remove(&path)?;
            before
        } else {
            // For a new pod this reads nothing.
            self.replace(PODS, &name, &text)?
        };
        let own_before = self.write_own(attachment, &text).inspect_err(|_| {
            let restored = match &before {
                Some(before) => self.write(PODS, &name, before),
                None => Self::remove(&path).map(drop),
            };
            if let Err(error) = restored {
                log::error!("{error}");
            }
        })?;
        let read = |text: String| Some(Attachment::from_json(&text)?.0);
        let has_own_settings = attachment.has_own_settings() || own_before.is_some();
        let before = before.and_then(read).or_else(|| own_before.and_then(read));
        Ok(Written { has_own_settings, before })
    }

    /// Writes the file of a pod with settings of its own, or removes the file. Returns its previous content.
    fn write_own(&self, attachment: &Attachment, text: &str) -> Result<Option<String>, Error> {
        let name = format!("{OWN_SETTINGS}{}", attachment.key.file_name());
        let path = self.path(&[&name]);
        let before = Self::read(&path)?;
        if attachment.has_own_settings() {
            self.write("", &name, text)?;
        } else if before.is_some() {
            self.remove_own(&path)?;
        }
        Ok(before)
    }

    /// Removes a file of own settings, and returns whether it existed. A call that is killed here leaves a
    /// mark: until a reconcile no ADD takes the fast path, and every DEL and GC reconciles.
    fn remove_own(&self, path: &Path) -> Result<bool, Error> {
        if !is_there(path) {
            return Ok(false);
        }
        // A full disk must not keep the pod's settings in force.
        for noted in [self.set_unsettled(), self.unset_ready()] {
            noted.unwrap_or_else(|error| log::warn!("{error}"));
        }
        Self::remove(path)
    }

    fn set_unsettled(&self) -> Result<(), Error> {
        let path = self.path(&[UNSETTLED]);
        plain_file::create(&path).map(drop).map_err(Error::at("make", &path))
    }

    /// Inode and change time of the file [`UNSETTLED`], which differ for each mark; none if there is no mark.
    pub(crate) fn unsettled(&self) -> Option<(u64, i64, i64)> {
        let found = fs::symlink_metadata(self.path(&[UNSETTLED])).ok()?;
        Some((found.ino(), found.ctime(), found.ctime_nsec()))
    }

    /// Removes the mark, if it is still this one. After a later mark, marks the node as not ready.
    pub(crate) fn settle(&self, mark: Option<(u64, i64, i64)>) -> Result<(), Error> {
        match self.unsettled() {
            None => Ok(()),
            now if now == mark => Self::remove(&self.path(&[UNSETTLED])).map(drop),
            Some(_) => self.unset_ready(),
        }
    }

    /// Removes an attachment, and returns whether it had settings of its own.
    pub(crate) fn detach(&self, key: &Key) -> Result<bool, Error> {
        let name = key.file_name();
        let had_own = self.remove_own(&self.path(&[&format!("{OWN_SETTINGS}{name}")]))?;
        // Last: while this file exists, another DEL or GC finds the attachment.
        Self::remove(&self.path(&[PODS, &name]))?;
        Ok(had_own)
    }

    pub(crate) fn attachment(&self, key: &Key) -> Result<Option<Attachment>, Error> {
        let name = key.file_name();
        for path in [self.path(&[PODS, &name]), self.path(&[&format!("{OWN_SETTINGS}{name}")])] {
            let found = Self::read(&path)?.and_then(|text| Attachment::from_json(&text));
            if let Some((attachment, _)) = found.filter(|(a, _)| a.key == *key) {
                return Ok(Some(attachment));
            }
        }
        Ok(None)
    }

    /// Number of attachments that hold the node state, readable or not.
    pub(crate) fn count(&self) -> Result<usize, Error> {
        let path = self.path(&[PODS]);
        let counted = no_folder_is_none(folder::count(&path)).map_err(Error::at("list", &path))?;
        Ok(counted.unwrap_or(0))
    }

    /// The attachments to check next, until [`Self::pass`] moves on.
    pub(crate) fn some_attachments(&self) -> Result<Slice, Error> {
        let place = Self::read(&self.path(&[NEXT]))?.and_then(|text| text.parse().ok());
        let (path, place) = (self.path(&[PODS]), place.unwrap_or(0));
        let slice = no_folder_is_none(folder::slice(&path, place, ATTACHMENTS_AT_ONCE));
        let (names, next) = slice.map_err(Error::at("list", &path))?.unwrap_or_default();
        let found = Self::attachments_of(names.iter().map(|name| path.join(name)))?;
        Ok(Slice { found, place, next })
    }

    /// Makes the next check begin behind these attachments.
    pub(crate) fn pass(&self, slice: &Slice) -> Result<(), Error> {
        if slice.next == slice.place {
            return Ok(());
        }
        self.write("", NEXT, &slice.next.to_string())
    }

    /// All attachments. Takes longer the more there are.
    pub(crate) fn attachments(&self) -> Result<Attachments, Error> {
        let mut found = Self::attachments_of(self.list(PODS)?.into_iter())?;
        let own = self.with_own_settings()?;
        found.readable.extend(own.readable.into_iter().filter(|a| a.left_out));
        found.unreadable.extend(own.unreadable);
        Ok(found)
    }

    pub(crate) fn with_own_settings(&self) -> Result<Attachments, Error> {
        let own = |path: &PathBuf| has_prefix(path, OWN_SETTINGS);
        Self::attachments_of(self.files("")?.into_iter().filter(own))
    }

    fn attachments_of(paths: impl Iterator<Item = PathBuf>) -> Result<Attachments, Error> {
        let mut found = Attachments::default();
        for path in paths {
            match Self::read(&path)?.map(|text| Attachment::from_json(&text)) {
                Some(Some((attachment, _))) if attachment.key.is_name_of(&path) => {
                    found.readable.push(attachment);
                }
                // A file with another name: no DEL would remove it.
                Some(_) => found.unreadable.push(path),
                // Removed since the folder was listed.
                None => {}
            }
        }
        Ok(found)
    }

    pub(crate) fn has_attachment_of(&self, network: &str) -> Result<bool, Error> {
        Ok(self.attachments()?.readable.iter().any(|a| a.key.network == network))
    }

    /// Removes these files, which can't be read as attachments.
    pub(crate) fn sweep(unreadable: &[PathBuf]) -> Result<(), Error> {
        unreadable.iter().try_for_each(|path| Self::remove(path).map(drop))
    }

    /// Converts the state of an older release. Marks its attachments with settings of their own. Removes those
    /// that it wrote without an ADD, since no DEL would.
    pub(crate) fn migrate(&self) -> Result<(), Error> {
        let is_old = |folder: &&&str| is_there(&self.path(&[folder]));
        let Some(_) = OLD_FOLDERS.iter().find(is_old) else { return Ok(()) };
        for path in self.list(PODS)? {
            let read = Self::read(&path)?.and_then(|text| Attachment::from_json(&text));
            match read {
                Some((_, true)) => drop(Self::remove(&path)?),
                Some((attachment, _)) if attachment.hairpin => {
                    let name = format!("{OWN_SETTINGS}{}", attachment.key.file_name());
                    self.write("", &name, &attachment.to_json())?;
                }
                _ => {}
            }
        }
        for folder in OLD_FOLDERS {
            Self::remove(&self.path(&[folder]))?;
        }
        Ok(())
    }
}
