//! The files of the conf dir, and which of them the runtime takes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Network, Reason, Wanted};
use crate::config::unknown;
use crate::names;

/// What the names of files end in that runtimes read.
const SUFFIXES: [&str; 3] = [".conf", ".conflist", ".json"];
/// What Cilium puts behind the names of files that it sets aside.
const SET_ASIDE: &str = ".cilium_bak";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Its bytes, and the file itself where the name is a symbolic link to one beside it.
    Bytes(Vec<u8>, Option<String>),
    /// It is a symbolic link to somewhere else; whether our name occurs there.
    Elsewhere(PathBuf, bool),
    /// It could not be read; why.
    Unreadable(String),
}

/// The conf dir as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Folder {
    /// Its path, for messages.
    pub(crate) path: PathBuf,
    pub(crate) exists: bool,
    /// The files that runtimes read, in the order in which they do: by the bytes of the name.
    pub(crate) files: BTreeMap<String, Content>,
    pub(crate) set_aside: Vec<String>,
    /// What in the runtime's own configuration makes it take other networks than the first: the
    /// file and the setting.
    pub(crate) not_first: Option<(PathBuf, String)>,
    /// The name of the one network that the runtime takes, where its configuration has one.
    pub(crate) network: Option<String>,
    /// What was wanted last.
    pub(crate) last: Wanted,
}

/// Whether runtimes read files of this name: by what Go calls the name's extension.
pub(super) fn is_read(name: &str) -> bool {
    name.rfind('.').is_some_and(|dot| SUFFIXES.contains(&&name[dot..]))
}

pub(super) fn is_set_aside(name: &str) -> bool {
    name.ends_with(SET_ASIDE)
}

/// Names that our own file may have.
const OWN: [&str; 2] = [names::OWN_CONFLIST, names::OWN_CONFLIST_FIRST];

/// Whether this is a name of our own file.
pub(crate) fn is_own(file: &str) -> bool {
    OWN.contains(&file)
}

impl Folder {
    /// A file as runtimes read it; or why they don't.
    pub(crate) fn network(&self, file: &str) -> Result<Network<'_>, String> {
        match self.files.get(file) {
            None => Err("not there".into()),
            Some(Content::Bytes(bytes, _)) => Network::parse(file, bytes),
            Some(Content::Elsewhere(path, _)) => Err(format!("a link to {}", path.display())),
            Some(Content::Unreadable(why)) => Err(why.clone()),
        }
    }

    /// The file that the runtime takes: the first by name that describes a network, or the network
    /// that it is to take. (containerd takes none when one that it can't read comes first, CRI-O and
    /// podman go on to the next.)
    pub(crate) fn in_force(&self) -> Option<&str> {
        let wanted = |found: Network<'_>| self.network.as_ref().is_none_or(|n| *n == found.name);
        self.files.keys().map(String::as_str).find(|file| self.network(file).is_ok_and(wanted))
    }

    /// Keys in entries of ours that nothing knows: what a slip was to set is not set.
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

    /// The files of others, in order.
    pub(super) fn others(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str).filter(|file| !is_own(file))
    }

    /// Our own files that are there, by name. There is one, unless its name has changed.
    pub(super) fn own(&self) -> impl Iterator<Item = (&'static str, &Content)> {
        OWN.into_iter().filter_map(|name| Some((name, self.files.get(name)?)))
    }

    /// Our own files that Cilium has set aside, by the names that they have now.
    pub(super) fn own_set_aside(&self) -> impl Iterator<Item = String> {
        let aside = OWN.map(|name| format!("{name}{SET_ASIDE}"));
        aside.into_iter().filter(|name| self.set_aside.contains(name))
    }

    /// The file of a Multus that names this file: without it no pod starts.
    pub(super) fn multus_that_names(&self, file: &str) -> Option<&str> {
        self.others().find(|other| self.network(other).is_ok_and(|n| n.is_multus_that_names(file)))
    }
}
