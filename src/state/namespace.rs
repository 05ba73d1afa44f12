//! The state of a pod that has a data plane of its own: a folder for each container id. The folder has the
//! files of a node's state, and one for the pod's network namespace.

use std::hash::Hasher as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Error, State};
use crate::hash::Fnv;
use crate::names;

/// File that identifies the pod's namespace.
pub(super) const FILE: &str = "namespace";
/// Number of characters of the container id in a folder's name.
const SHOWN: usize = 64;

/// The network namespace of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespace {
    /// Path that the runtime gave. The path may lead elsewhere later.
    pub(crate) path: String,
    #[serde(flatten)]
    pub(crate) identity: Identity,
}

/// Values that distinguish a namespace from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    /// The kernel may reuse the number when the namespace has gone.
    pub(crate) inode: u64,
    /// `SO_NETNS_COOKIE`, which the kernel never reuses; none before kernel 5.14.
    pub(crate) cookie: Option<u64>,
}

impl State {
    /// The state of the pod with this container id, which need not exist yet.
    pub(crate) fn of_pod(&self, container: &str) -> Self {
        let shown: String = container.chars().take(SHOWN).collect();
        let name = format!("{shown}-{:016x}", Fnv::of(container.as_bytes()).finish());
        Self::new(self.path(&[names::PODS_DIR, &name]))
    }

    /// Whether a pod has or had a data plane of its own.
    pub(crate) fn has_pods(&self) -> bool {
        self.path(&[names::PODS_DIR]).is_dir()
    }

    /// The states of all pods with a data plane of their own.
    pub(crate) fn pods(&self) -> Result<Vec<Self>, Error> {
        let folders = self.list(names::PODS_DIR)?.into_iter().filter(|path| path.is_dir());
        Ok(folders.map(Self::new).collect())
    }

    /// Removes the folder of a pod without state, and the folder of all pods if that is empty.
    pub(crate) fn remove_pod(&self, pod: &Self) {
        pod.remove_folder();
        self.remove_pods();
    }

    /// Removes the folder of all pods, if it is empty.
    pub(crate) fn remove_pods(&self) {
        Self::new(self.path(&[names::PODS_DIR])).remove_folder();
    }

    /// Whether the state has nothing except the folder of pods with a data plane of their own.
    pub(crate) fn is_for_pods_alone(&self) -> bool {
        let others = |path: &PathBuf| !path.ends_with(names::PODS_DIR);
        self.has_pods() && self.files("").is_ok_and(|all| !all.iter().any(others))
    }

    /// The namespace of this pod; none if the file is missing or damaged.
    pub(crate) fn namespace(&self) -> Result<Option<Namespace>, Error> {
        let text = Self::read(&self.path(&[FILE]))?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    pub(crate) fn set_namespace(&self, namespace: &Namespace) -> Result<(), Error> {
        #[expect(clippy::unwrap_used, reason = "text and numbers can all be written")]
        let text = serde_json::to_string(namespace).unwrap();
        self.write("", FILE, &text)
    }

    /// Removes all attachments and other state of a pod whose namespace has gone.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        for path in self.list(super::attachment::PODS)? {
            Self::remove(&path)?;
        }
        self.clear()
    }
}
