//! Reasons for a look at the node, and the place where they wait for the next turn.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Reason for the agent to look at the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    Start,
    /// The resync interval has passed.
    Resync,
    /// The last turn failed.
    Retry,
    /// The kernel dropped events, or a source of events was opened again.
    Lost,
    /// An interface was added, removed or changed.
    Links,
    /// An interface that may lead to a pod changed, and a flowtable takes the packets of pods.
    Pods,
    /// An address of an uplink or of a possible uplink changed.
    Addresses,
    /// A route of an uplink, a default route, or a route in one of symroute's tables changed.
    Routes,
    /// A rule of the routing policy database changed.
    Rules,
    /// Another program changed symroute's nftables table.
    Nftables,
    /// The rules of iptables changed, on a node where iptables marks.
    Iptables,
    /// The directory of conflists changed.
    Conflist,
    /// The plugin in the runtime's directory of plugins changed.
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

    /// Name of the cause in metrics and logs.
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

    /// Whether the cause is not an event. The turn then also does the periodic work.
    pub(crate) fn is_periodic(self) -> bool {
        matches!(self, Self::Start | Self::Resync | Self::Retry)
    }

    /// Whether a repair for this cause is no sign of damage by another program.
    pub(crate) fn is_no_damage(self) -> bool {
        self.is_periodic() || self == Self::Pods
    }

    /// Whether the kernel may now accept a route that it refused before.
    pub(crate) fn is_of_routing(self) -> bool {
        matches!(self, Self::Lost | Self::Links | Self::Addresses | Self::Routes)
    }

    /// Whether the cause asks for a look at the kernel's state.
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

/// Causes that wait for a turn. A set, so a storm of events needs no more memory than one event.
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

    /// Takes all causes that wait.
    pub(crate) fn take(&self) -> Causes {
        std::mem::take(&mut self.causes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for the next [`Self::add`] or [`Self::wake`]. Returns at once if one was called since
    /// the last wait.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }
}
