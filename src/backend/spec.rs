//! What both backends build their rules from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{Family, Field, Mac, MarkMatch};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Steering {
    /// The packet mark that says "will be masqueraded".
    pub(crate) mark: MarkMatch,
    /// Id of the uplink that owns the address used then.
    pub(crate) via: u32,
    /// Indexes of the uplinks that such packets must not leave by.
    pub(crate) away_from: BTreeSet<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) id: u32,
    pub(crate) link: u32,
    pub(crate) name: String,
    /// Bytes of the largest packet that it sends whole.
    pub(crate) mtu: u32,
    /// Families in which its table has a default route.
    pub(crate) ways: BTreeSet<Family>,
    /// Hardware address and id of each router of the uplink, if there are several.
    pub(crate) routers: Vec<(Mac, u32)>,
    /// Whether this is the uplink by one of these routers.
    pub(crate) router: bool,
}

/// What a flowtable takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offload {
    /// Names of the devices whose packets it takes.
    pub(crate) devices: BTreeSet<String>,
    /// Whether it takes connections over UDP, too.
    pub(crate) udp: bool,
}

/// What rules are built from.
#[derive(Debug, Clone)]
pub(crate) struct Spec<'a> {
    pub(crate) field: Field,
    /// The uplinks in the order of their ids, each followed by what it is by its routers.
    pub(crate) uplinks: &'a [Uplink],
    /// Index and name of each interface that leads outside, uplink or not.
    pub(crate) outside: &'a [(u32, String)],
    /// Index and name of each NIC that no address and no default route speaks for.
    pub(crate) silent: &'a [(u32, String)],
    /// Addresses that one uplink has and no other: index of the interface, address.
    pub(crate) own: &'a BTreeSet<(u32, IpAddr)>,
    /// Serve the node's own sockets and remote backends.
    pub(crate) host: bool,
    /// Accept a local pod's address as a source on an uplink.
    pub(crate) hairpin: bool,
    /// The mark of a pod's replies that are not bound: they go by the rules of others, since those by address are
    /// not for replies. None on a node.
    pub(crate) unbound: Option<u32>,
    /// The node has IPVS, which routes forwarded packets again by their mark.
    pub(crate) ipvs: bool,
    pub(crate) steering: BTreeMap<Family, Steering>,
    /// Families in which main has no default route, so that a source without a route may come
    /// from outside.
    pub(crate) routeless: &'a [Family],
    /// Addresses of the pods that accept a local pod's address as a source.
    pub(crate) hairpins: &'a BTreeSet<IpAddr>,
    pub(crate) left_out: &'a BTreeSet<IpAddr>,
    /// Connections to these destinations are never bound.
    pub(crate) exclude: &'a [IpNetwork],
    /// None for no flowtable.
    pub(crate) offload: Option<Offload>,
    /// See [`crate::names::IN_FORCE`].
    pub(crate) fingerprint: u32,
    /// See [`crate::names::LAYOUT`].
    pub(crate) priority: u32,
    pub(crate) table_base: u32,
    /// See [`crate::names::RESTORE`].
    pub(crate) restore: &'a BTreeSet<u32>,
}

impl Spec<'_> {
    /// The uplinks, each once.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &Uplink> {
        self.uplinks.iter().filter(|uplink| !uplink.router)
    }

    /// The conntrack mark of a connection that is bound to an uplink.
    pub(crate) fn bound(&self, id: u32) -> u32 {
        self.field.of(id)
    }

    /// The conntrack mark of one whose requests leave by the very uplink that they come in by, and
    /// the packet mark that sends a packet out by it all the same.
    pub(crate) fn turned(&self, id: u32) -> u32 {
        self.field.of(id) | self.field.d()
    }

    /// Whether a pod of this family has an address in the set.
    pub(crate) fn any(set: &BTreeSet<IpAddr>, family: Family) -> bool {
        set.iter().any(|&ip| Family::of(ip) == family)
    }
}
