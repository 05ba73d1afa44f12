//! Attachments: one file for each pod interface that an ADD has written and its DEL removes.
//!
//! A reconcile reads only the files of pods that have settings of their own, so it costs the same
//! however many attachments there are.

use std::fs;
use std::io;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Error, State, absent_is_none, readable};
use crate::hash::fnv;

/// Raised when the content of an attachment's file changes so that older releases misread it.
const VERSION: u64 = 1;
/// Characters of the container id that a file's name shows.
const SHOWN: usize = 64;
/// The folder of all attachments but those that are left out.
pub(super) const PODS: &str = "pods";
/// The folder of the attachments that have settings of their own.
pub(super) const OWN_SETTINGS: &str = "own-settings";
/// Folders that only older releases have.
pub(super) const OLD_FOLDERS: [&str; 2] = ["gone", "owners"];

/// What a runtime calls an attachment by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Name of the network.
    pub network: String,
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_IFNAME`
    pub ifname: String,
}

impl Key {
    /// A file name that fits `NAME_MAX` however long the parts are: a readable beginning and a
    /// hash of all of it. The file repeats the parts, so that a clash would be seen.
    #[must_use]
    pub fn file_name(&self) -> String {
        let all = format!("{}\0{}\0{}", self.network, self.container, self.ifname);
        let shown: String = self.container.chars().take(SHOWN).collect();
        format!("{shown}-{}-{:016x}", self.ifname, fnv(all.as_bytes()))
    }
}

/// An attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Which one.
    pub key: Key,
    /// Path of the pod's network namespace, as the runtime named it; may be empty.
    pub netns: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether a local pod's address is accepted as a source for this pod.
    pub hairpin: bool,
    /// Whether this pod is left out. Such an attachment does not hold the node state.
    pub left_out: bool,
}

impl Attachment {
    /// Whether the pod differs from what its network says.
    #[must_use]
    pub fn has_own_settings(&self) -> bool {
        self.hairpin || self.left_out
    }

    fn to_json(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let mut object = json!({
            "version": VERSION,
            "network": self.key.network,
            "container": self.key.container,
            "ifname": self.key.ifname,
            "netns": self.netns,
            "addresses": addresses,
            "hairpin": self.hairpin,
        });
        if self.left_out {
            object["leftOut"] = json!(true);
        }
        object.to_string()
    }

    /// None for what is empty or no attachment: a file cut short by a full disk, say. An older
    /// release has written an attachment without an ADD where `adopted` stands.
    fn from_json(text: &str) -> Option<(Self, bool)> {
        let value = readable(text, VERSION)?;
        let part = |name: &str| value.get(name)?.as_str().map(str::to_string);
        let key = Key {
            network: part("network")?,
            container: part("container")?,
            ifname: part("ifname")?,
        };
        let list = value.get("addresses")?.as_array()?;
        let addresses = list.iter().map(|a| a.as_str()?.parse().ok()).collect::<Option<_>>()?;
        let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
        let (hairpin, left_out) = (flag("hairpin"), flag("leftOut"));
        let netns = part("netns").unwrap_or_default();
        Some((Self { key, netns, addresses, hairpin, left_out }, flag("adopted")))
    }
}

/// What an attachment's file said before it was written anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Whether the kernel has, or is to have, settings of this pod alone.
    pub has_own_settings: bool,
    /// Whether there was a file.
    pub existed: bool,
}

/// All attachments, and the files that can't be read as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachments {
    /// The readable ones.
    pub readable: Vec<Attachment>,
    /// Paths of the other files.
    pub unreadable: Vec<String>,
}

impl State {
    /// Writes an attachment. This comes before the question whether the settings are in force: a
    /// DEL that is about to take the node state away looks for files last.
    pub fn attach(&self, attachment: &Attachment) -> Result<Written, Error> {
        let name = attachment.key.file_name();
        let (text, own) = (attachment.to_json(), attachment.has_own_settings());
        let mut existed = false;
        if attachment.left_out {
            existed |= Self::remove(&self.path(&[PODS, &name]))?;
        }
        let had_own = if own {
            // A reconcile must find it as soon as it holds the node state.
            let had_own = self.path(&[OWN_SETTINGS, &name]).exists();
            self.write(OWN_SETTINGS, &name, &text)?;
            had_own
        } else {
            Self::remove(&self.path(&[OWN_SETTINGS, &name]))?
        };
        if !attachment.left_out {
            existed |= self.replace(PODS, &name, &text)?;
        }
        Ok(Written { has_own_settings: own || had_own, existed: existed || had_own })
    }

    /// Removes an attachment: whether it had settings of its own.
    pub fn detach(&self, key: &Key) -> Result<bool, Error> {
        let name = key.file_name();
        Self::remove(&self.path(&[PODS, &name]))?;
        Self::remove(&self.path(&[OWN_SETTINGS, &name]))
    }

    /// The attachment of this key, if there is one.
    pub fn attachment(&self, key: &Key) -> Result<Option<Attachment>, Error> {
        for folder in [PODS, OWN_SETTINGS] {
            let path = self.path(&[folder, &key.file_name()]);
            let found = Self::read(&path)?.and_then(|text| Attachment::from_json(&text));
            if let Some((attachment, _)) = found.filter(|(a, _)| a.key == *key) {
                return Ok(Some(attachment));
            }
        }
        Ok(None)
    }

    /// How many attachments hold the node state, readable or not.
    pub fn count(&self) -> Result<usize, Error> {
        Ok(self.list(PODS)?.len())
    }

    /// A few attachments that hold the node state, from a place on, and the place behind them. The
    /// places go round.
    pub fn some_attachments(
        &self,
        from: usize,
        most: usize,
    ) -> Result<(Vec<Attachment>, usize), Error> {
        let names = self.list(PODS)?;
        if names.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let (from, most) = (from % names.len(), most.min(names.len()));
        let mut found = Vec::new();
        for name in names.iter().cycle().skip(from).take(most) {
            let text = Self::read(&self.path(&[PODS, name]))?;
            let read = text.and_then(|text| Attachment::from_json(&text));
            found.extend(read.map(|(attachment, _)| attachment));
        }
        Ok((found, from + most))
    }

    /// All attachments. Takes longer the more there are.
    pub fn attachments(&self) -> Result<Attachments, Error> {
        let mut found = self.attachments_of(PODS)?;
        let own = self.attachments_of(OWN_SETTINGS)?;
        found.readable.extend(own.readable.into_iter().filter(|a| a.left_out));
        found.unreadable.extend(own.unreadable);
        Ok(found)
    }

    /// The attachments that have settings of their own.
    pub fn with_own_settings(&self) -> Result<Attachments, Error> {
        self.attachments_of(OWN_SETTINGS)
    }

    fn attachments_of(&self, folder: &str) -> Result<Attachments, Error> {
        let mut found = Attachments::default();
        for name in self.list(folder)? {
            let path = self.path(&[folder, &name]);
            match Self::read(&path)?.map(|text| Attachment::from_json(&text)) {
                Some(Some((attachment, _))) => found.readable.push(attachment),
                Some(None) => found.unreadable.push(path.display().to_string()),
                // Removed since the folder was listed.
                None => {}
            }
        }
        Ok(found)
    }

    /// Whether a network has an attachment.
    pub fn has_attachment_of(&self, network: &str) -> Result<bool, Error> {
        Ok(self.attachments()?.readable.iter().any(|a| a.key.network == network))
    }

    /// Removes these files, which can't be read as attachments.
    pub fn sweep(&self, unreadable: &[String]) -> Result<(), Error> {
        unreadable.iter().try_for_each(|path| Self::remove(path.as_ref()).map(drop))
    }

    /// Understands what an older release has left. Its attachments with settings of their own are
    /// marked as such, and those that it wrote without an ADD go, since no DEL would remove them.
    pub(crate) fn migrate(&self) -> Result<(), Error> {
        let is_old = |folder: &&&str| self.path(&[folder]).is_dir();
        let Some(_) = OLD_FOLDERS.iter().find(is_old) else { return Ok(()) };
        for name in self.list(PODS)? {
            let path = self.path(&[PODS, &name]);
            let read = Self::read(&path)?.and_then(|text| Attachment::from_json(&text));
            match read {
                Some((_, true)) => drop(Self::remove(&path)?),
                Some((attachment, _)) if attachment.hairpin => {
                    self.write(OWN_SETTINGS, &name, &attachment.to_json())?;
                }
                _ => {}
            }
        }
        for folder in OLD_FOLDERS {
            let path = self.path(&[folder]);
            let removed: io::Result<()> = fs::remove_dir_all(&path);
            absent_is_none(removed).map_err(Error::at("remove", &path))?;
        }
        Ok(())
    }
}
