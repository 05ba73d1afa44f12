//! What may make a look at the node worth it, and where such causes wait for it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Why the agent looks at the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Start,
    /// It is time again.
    Resync,
    Retry,
    Lost,
    /// An interface came, went or changed.
    Links,
    /// An interface that may lead to a pod is new, where a flowtable takes the packets of pods.
    Pods,
    /// An address of an uplink, or of what may become one.
    Addresses,
    /// A route of an uplink, a default route, or one in our tables.
    Routes,
    /// A rule of the routing policy database.
    Rules,
    /// Somebody else changed our nftables table.
    Nftables,
    /// Rules of iptables, where those do the marking.
    Iptables,
    /// The folder of conflists.
    Conflist,
    /// The folder of plugins.
    Binary,
}

impl Cause {
    pub(crate) const ALL: [Self; 13] = [
        Self::Start,
        Self::Resync,
        Self::Retry,
        Self::Lost,
        Self::Links,
        Self::Pods,
        Self::Addresses,
        Self::Routes,
        Self::Rules,
        Self::Nftables,
        Self::Iptables,
        Self::Conflist,
        Self::Binary,
    ];

    /// Its name in metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Resync => "resync",
            Self::Retry => "retry",
            Self::Lost => "lost",
            Self::Links => "links",
            Self::Pods => "pods",
            Self::Addresses => "addresses",
            Self::Routes => "routes",
            Self::Rules => "rules",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Conflist => "conflist",
            Self::Binary => "binary",
        }
    }

    /// Whether everything is looked at, whatever it was that happened.
    pub(crate) fn is_general(self) -> bool {
        matches!(self, Self::Start | Self::Resync | Self::Retry)
    }

    /// Whether what has to be done then is no damage by another program.
    pub(crate) fn is_ordinary(self) -> bool {
        self.is_general() || self == Self::Pods
    }

    /// Whether it may change what the kernel takes for a route.
    pub(crate) fn is_of_routing(self) -> bool {
        matches!(self, Self::Lost | Self::Links | Self::Addresses | Self::Routes)
    }

    /// Whether it is about the kernel's state.
    pub(crate) fn is_of_kernel(self) -> bool {
        !matches!(self, Self::Conflist | Self::Binary)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

pub(crate) type Causes = BTreeSet<Cause>;

/// Causes that wait for a look. A storm of events takes no more room than one event.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    causes: Mutex<Causes>,
    added: Notify,
}

impl Pending {
    /// Adds a cause and wakes the agent.
    pub(crate) fn add(&self, cause: Cause) {
        self.causes.lock().unwrap_or_else(PoisonError::into_inner).insert(cause);
        self.added.notify_one();
    }

    /// Wakes the agent without a cause.
    pub(crate) fn wake(&self) {
        self.added.notify_one();
    }

    /// Takes what has come together.
    pub(crate) fn take(&self) -> Causes {
        std::mem::take(&mut self.causes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something was added since the last wait ended.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }
}
