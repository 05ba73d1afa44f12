//! Attachments: which addresses an ADD has enrolled.

use std::fs;
use std::io;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Error, State, absent_is_none, readable};
use crate::ruleset::fingerprint::fnv;

/// Raised when the content of an attachment's file changes so that older releases misread it.
const VERSION: u64 = 1;
/// Characters of the container id that a file's name shows.
const SHOWN: usize = 64;

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

/// An attachment and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Whose.
    pub key: Key,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether a local pod's address is accepted as a source for this pod.
    pub hairpin: bool,
    /// Whether the agent enrolled it from the runtime's cache: its DEL does not call us, so the
    /// agent takes it out again. Older releases do not look at it.
    pub adopted: bool,
}

impl Attachment {
    fn to_json(&self) -> String {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let mut object = json!({
            "version": VERSION,
            "network": self.key.network,
            "container": self.key.container,
            "ifname": self.key.ifname,
            "addresses": addresses,
            "hairpin": self.hairpin,
        });
        if self.adopted {
            object["adopted"] = json!(true);
        }
        object.to_string()
    }

    /// None for what is empty or no attachment: a file cut short by a full disk, say.
    pub(super) fn from_json(text: &str) -> Option<Self> {
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
        Some(Self { key, addresses, hairpin: flag("hairpin"), adopted: flag("adopted") })
    }
}

impl State {
    /// Writes an attachment and makes it the owner of its addresses. To be done before the kernel
    /// is touched, so that no element is there without a file that names it.
    pub fn enroll(&self, attachment: &Attachment) -> Result<(), Error> {
        let name = attachment.key.file_name();
        self.write("pods", &name, &attachment.to_json())?;
        for &address in &attachment.addresses {
            self.own(address, &name)?;
        }
        Ok(())
    }

    /// The attachment of this key, if it is enrolled.
    pub fn attachment(&self, key: &Key) -> Result<Option<Attachment>, Error> {
        let path = self.path(&["pods", &key.file_name()]);
        let text = Self::read(&path)?;
        Ok(text.and_then(|text| Attachment::from_json(&text)).filter(|a| a.key == *key))
    }

    /// Marks an attachment as being removed and gives it, or none if there is none of this key.
    /// A removal that was cut short is given again.
    pub fn begin_removal(&self, key: &Key) -> Result<Option<Attachment>, Error> {
        let name = key.file_name();
        let (from, to) = (self.path(&["pods", &name]), self.path(&["gone", &name]));
        let mut moved = fs::rename(&from, &to);
        if is_absent(&moved) && from.exists() {
            let folder = self.path(&["gone"]);
            fs::create_dir_all(&folder).map_err(Error::at("make", &folder))?;
            moved = fs::rename(&from, &to);
        }
        absent_is_none(moved).map_err(Error::at("move", &from))?;
        Ok(Self::read(&to)?.and_then(|text| Attachment::from_json(&text)))
    }

    /// Ends a removal, and clears what a killed call for this attachment may have left.
    pub fn end_removal(&self, key: &Key) -> Result<(), Error> {
        let name = key.file_name();
        for folder in ["pods", "owners"] {
            Self::remove(&self.path(&[folder, &format!(".{name}")]))?;
        }
        Self::remove(&self.path(&["gone", &name]))
    }

    /// How many attachments are enrolled, readable or not.
    pub fn count(&self) -> Result<usize, Error> {
        Ok(self.list("pods")?.len())
    }

    /// All enrolled attachments, and the names of files that can't be read as one.
    pub fn attachments(&self) -> Result<(Vec<Attachment>, Vec<String>), Error> {
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        for name in self.list("pods")? {
            let path = self.path(&["pods", &name]);
            match Self::read(&path)?.map(|text| Attachment::from_json(&text)) {
                Some(Some(attachment)) => found.push(attachment),
                Some(None) => unreadable.push(path.display().to_string()),
                // Removed since the folder was listed.
                None => {}
            }
        }
        Ok((found, unreadable))
    }

    /// Forgets removals that were cut short, unreadable attachments, and owners that are no
    /// more. Under the lock, and when the kernel has none of their addresses left.
    pub fn sweep(&self, unreadable: &[String]) -> Result<(), Error> {
        for path in unreadable {
            Self::remove(path.as_ref())?;
        }
        for name in self.list("gone")? {
            Self::remove(&self.path(&["gone", &name]))?;
        }
        self.sweep_owners()
    }
}

fn is_absent<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}
