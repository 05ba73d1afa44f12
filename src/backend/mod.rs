//! The two backends that mark packets on a node: a table of nftables, or chains of iptables with
//! ipsets.
//!
//! Both are built from one [`spec::Spec`].

pub(crate) mod counts;
pub(crate) mod iptables;
pub(crate) mod nftables;
pub(crate) mod spec;

use std::fmt;

use crate::model::Variant;

/// The backend that marks packets on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Marker {
    /// The table `inet symroute` of nftables.
    #[default]
    Nftables,
    /// Chains of this variant of iptables.
    Iptables(Variant),
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables => f.write_str("nftables"),
            Self::Iptables(variant) => variant.fmt(f),
        }
    }
}
