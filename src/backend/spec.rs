//! What both backends build their rules from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::{Family, Field};

/// Masquerade steering of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steering {
    /// Value and mask of the packet mark that says "will be masqueraded".
    pub mark: (u32, u32),
    /// Id of the uplink that owns the address used then.
    pub via: u32,
    /// Indexes of the uplinks that such packets must not leave by.
    pub away_from: BTreeSet<u32>,
}

/// One uplink, as rules name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its id.
    pub id: u32,
    /// Index of the interface.
    pub link: u32,
    /// Name of the interface.
    pub name: String,
}

/// What rules are built from.
#[derive(Debug, Clone)]
pub struct Spec<'a> {
    /// Our bits of the mark.
    pub field: Field,
    /// The uplinks in the order of their ids.
    pub uplinks: &'a [Uplink],
    /// Index and name of each interface that leads outside, uplink or not.
    pub outside: &'a [(u32, String)],
    /// Addresses that one uplink has and no other: index of the interface, address.
    pub own: &'a BTreeSet<(u32, IpAddr)>,
    /// Serve the node's own sockets and remote backends.
    pub host: bool,
    /// Accept a local pod's address as a source on an uplink.
    pub hairpin: bool,
    /// The node has IPVS, which routes forwarded packets again by their mark.
    pub ipvs: bool,
    /// Masquerade steering of IPv4 and IPv6, in the order of [`Family::ALL`].
    pub steering: [Option<Steering>; 2],
    /// Families in which main has no default route, so that a source without a route may come
    /// from outside.
    pub routeless: &'a [Family],
    /// Addresses of the pods that accept a local pod's address as a source.
    pub hairpins: &'a BTreeSet<IpAddr>,
    /// Addresses of the pods that are left out.
    pub left_out: &'a BTreeSet<IpAddr>,
    /// See [`crate::names::IN_FORCE`].
    pub fingerprint: u32,
    /// See [`crate::names::LAYOUT`]: priority and tables.
    pub layout: (u32, u32),
    /// See [`crate::names::RESTORE`].
    pub restore: &'a BTreeSet<u32>,
}

impl Spec<'_> {
    /// The conntrack mark of a connection that is bound to an uplink.
    #[must_use]
    pub fn bound(&self, id: u32) -> u32 {
        self.field.of(id)
    }

    /// The conntrack mark of one whose requests leave by the very uplink that they come in by, and
    /// the packet mark that sends a packet out by it all the same.
    #[must_use]
    pub fn turned(&self, id: u32) -> u32 {
        self.field.of(id) | self.field.d()
    }

    /// Whether a pod of this family has an address in the set.
    #[must_use]
    pub fn any(set: &BTreeSet<IpAddr>, family: Family) -> bool {
        set.iter().any(|&ip| Family::of(ip) == family)
    }
}
