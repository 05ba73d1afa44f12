//! The state of a pod that has a data plane of its own: a folder for each container id, which has the
//! files of a node's state and the name of the pod's network namespace.

use std::hash::Hasher as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Error, State};
use crate::hash::Fnv;
use crate::names;

/// The file that says which namespace it is.
pub(super) const FILE: &str = "namespace";
/// Characters of the container id that a folder's name shows.
const SHOWN: usize = 64;

/// The network namespace that a pod's state is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespace {
    /// Where the runtime said that it is. The path may lead elsewhere one day.
    pub(crate) path: String,
    #[serde(flatten)]
    pub(crate) identity: Identity,
}

/// What distinguishes a namespace from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    /// The kernel uses the number again when the namespace has gone.
    pub(crate) inode: u64,
    /// `SO_NETNS_COOKIE`, which it never uses again; none before kernel 5.14.
    pub(crate) cookie: Option<u64>,
}

impl State {
    /// The state of the pod with this container id; it need not exist yet.
    pub(crate) fn of_pod(&self, container: &str) -> Self {
        let shown: String = container.chars().take(SHOWN).collect();
        let name = format!("{shown}-{:016x}", Fnv::of(container.as_bytes()).finish());
        Self::new(self.path(&[names::PODS_DIR, &name]))
    }

    /// Whether a pod has a data plane of its own, or had one.
    pub(crate) fn has_pods(&self) -> bool {
        self.path(&[names::PODS_DIR]).is_dir()
    }

    /// The states of all such pods.
    pub(crate) fn pods(&self) -> Result<Vec<Self>, Error> {
        let folders = self.list(names::PODS_DIR)?.into_iter().filter(|path| path.is_dir());
        Ok(folders.map(Self::new).collect())
    }

    /// Removes the folder of a pod that has no state any more, and the folder of all with the last one.
    pub(crate) fn remove_pod(&self, pod: &Self) {
        pod.remove_folder();
        self.remove_pods();
    }

    /// Removes the folder of all pods, if it is empty.
    pub(crate) fn remove_pods(&self) {
        Self::new(self.path(&[names::PODS_DIR])).remove_folder();
    }

    /// Whether nothing is here but the folder of pods with a data plane of their own.
    pub(crate) fn is_for_pods_alone(&self) -> bool {
        let others = |path: &PathBuf| !path.ends_with(names::PODS_DIR);
        self.has_pods() && self.files("").is_ok_and(|all| !all.iter().any(others))
    }

    /// The namespace that a pod's state is about; none where the file is missing or damaged.
    pub(crate) fn namespace(&self) -> Result<Option<Namespace>, Error> {
        let text = Self::read(&self.path(&[FILE]))?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    pub(crate) fn set_namespace(&self, namespace: &Namespace) -> Result<(), Error> {
        #[expect(clippy::unwrap_used, reason = "text and numbers can all be written")]
        let text = serde_json::to_string(namespace).unwrap();
        self.write("", FILE, &text)
    }

    /// Forgets all attachments and all else of a pod: its namespace has gone.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        for path in self.list(super::attachment::PODS)? {
            Self::remove(&path)?;
        }
        self.clear()
    }
}
