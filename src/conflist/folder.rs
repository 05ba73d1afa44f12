//! The files of the conf dir, and which of them the runtime takes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Network, Reason, Wanted};
use crate::config::unknown;
use crate::names;

/// File name extensions that runtimes read.
const SUFFIXES: [&str; 3] = [".conf", ".conflist", ".json"];
/// Extension that Cilium appends to the names of files that it sets aside.
const SET_ASIDE: &str = ".cilium_bak";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// The bytes, and the target's name if the file is a symbolic link inside the conf dir.
    Bytes(Vec<u8>, Option<String>),
    /// A symbolic link to a path outside the conf dir; whether our name occurs in the target.
    Elsewhere(PathBuf, bool),
    /// The error of an unreadable file.
    Unreadable(String),
}

/// The conf dir as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Folder {
    /// Path of the conf dir, for messages.
    pub(crate) path: PathBuf,
    pub(crate) exists: bool,
    /// The files that runtimes read, in the runtimes' order: by the bytes of the name.
    pub(crate) files: BTreeMap<String, Content>,
    /// Names of the files that Cilium has set aside.
    pub(crate) set_aside: Vec<String>,
    /// Setting that makes the runtime take other networks than the first: its file and its text.
    pub(crate) not_first: Option<(PathBuf, String)>,
    /// Name of the network that the runtime takes, if its configuration names one.
    pub(crate) network: Option<String>,
    /// The last wish that `add` has remembered.
    pub(crate) last_wanted: Wanted,
}

/// Whether runtimes read files with this name, judged by its extension (Go's `filepath.Ext`).
pub(super) fn is_read(name: &str) -> bool {
    name.rfind('.').is_some_and(|dot| SUFFIXES.contains(&&name[dot..]))
}

pub(super) fn is_set_aside(name: &str) -> bool {
    name.ends_with(SET_ASIDE)
}

/// Possible names of our own file.
const OWN: [&str; 2] = [names::OWN_CONFLIST, names::OWN_CONFLIST_FIRST];

/// Whether our own file may have this name.
pub(crate) fn is_own(file: &str) -> bool {
    OWN.contains(&file)
}

impl Folder {
    /// Parses a file as runtimes do. Error: why they don't read it.
    pub(crate) fn network(&self, file: &str) -> Result<Network<'_>, String> {
        match self.files.get(file) {
            None => Err("not there".into()),
            Some(Content::Bytes(bytes, _)) => Network::parse(file, bytes),
            Some(Content::Elsewhere(path, _)) => Err(format!("a link to {}", path.display())),
            Some(Content::Unreadable(why)) => Err(why.clone()),
        }
    }

    /// The file that the runtime takes: the first by name that has a network or, if the configuration names a
    /// network, that one. (If an unreadable file comes first, containerd takes none; CRI-O and podman go on.)
    pub(crate) fn taken_by_runtime(&self) -> Option<&str> {
        let wanted = |found: Network<'_>| self.network.as_ref().is_none_or(|n| *n == found.name);
        self.files.keys().map(String::as_str).find(|file| self.network(file).is_ok_and(wanted))
    }

    /// Unknown keys in our entries. A misspelt key sets nothing.
    pub(crate) fn unknown_keys(&self) -> impl Iterator<Item = Reason> {
        self.files.keys().flat_map(|file| {
            let network = self.network(file).ok();
            let settings =
                network.iter().flat_map(|n| n.ours().into_iter().map(|at| n.settings(at)));
            let keys: Vec<_> = settings.flat_map(|s| unknown(&s).collect::<Vec<_>>()).collect();
            let path = self.path.join(file);
            keys.into_iter().map(move |key| {
                Reason::new(
                    format!("{}: {key}", path.display()),
                    "it is ignored; put our entry right there, or by: symroutectl conflist add \
                     --config FILE",
                )
            })
        })
    }

    /// Names of all files except our own, in order.
    pub(super) fn others(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str).filter(|file| !is_own(file))
    }

    /// Our own files that exist, by name: at most one, unless its name has changed.
    pub(super) fn own(&self) -> impl Iterator<Item = (&'static str, &Content)> {
        OWN.into_iter().filter_map(|name| Some((name, self.files.get(name)?)))
    }

    /// Current names of our own files that Cilium has set aside.
    pub(super) fn own_set_aside(&self) -> impl Iterator<Item = String> {
        let aside = OWN.map(|name| format!("{name}{SET_ASIDE}"));
        aside.into_iter().filter(|name| self.set_aside.contains(name))
    }

    /// Multus's file, if it names this file. Multus starts no pod without the file that it names.
    pub(super) fn multus_that_names(&self, file: &str) -> Option<&str> {
        self.others().find(|other| self.network(other).is_ok_and(|n| n.is_multus_that_names(file)))
    }
}
