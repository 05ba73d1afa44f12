//! The counters of the rules, for both backends.

use std::collections::BTreeMap;

/// What a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Connections that symroute bound to the uplink with this id.
    Bound(u32),
    /// Packets that symroute sent out through the uplink with this id.
    Steered(u32),
    /// Packets from which symroute removed a mark that was evidence only.
    Cleared,
    /// Packets of new connections from outside that arrive on the NIC with this index, which is no
    /// uplink.
    Silent(u32),
}

/// Sums of the counters since symroute wrote the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Bound connections, by the id of the uplink.
    pub(crate) bound: BTreeMap<u32, u64>,
    /// Packets that symroute sent out through an uplink, by its id.
    pub(crate) steered: BTreeMap<u32, u64>,
    /// Packets from which symroute removed a mark that was evidence only.
    pub(crate) cleared: u64,
    /// Packets of new connections from outside that arrive on NICs that are no uplinks, by index
    /// (nftables).
    pub(crate) silent: BTreeMap<u32, u64>,
}

impl Extend<(Counted, u64)> for Counts {
    fn extend<T: IntoIterator<Item = (Counted, u64)>>(&mut self, counts: T) {
        for (counted, number) in counts {
            match counted {
                Counted::Bound(id) => *self.bound.entry(id).or_default() += number,
                Counted::Steered(id) => *self.steered.entry(id).or_default() += number,
                Counted::Cleared => self.cleared += number,
                Counted::Silent(link) => *self.silent.entry(link).or_default() += number,
            }
        }
    }
}
