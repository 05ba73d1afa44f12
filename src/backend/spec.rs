//! The input from which both backends build their rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{Family, Field, Mac, MarkMatch};

/// Masquerade steering of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Steering {
    /// Packet mark of packets that another program will masquerade.
    pub(crate) mark: MarkMatch,
    /// Id of the uplink that owns the address that masquerading uses.
    pub(crate) via: u32,
    /// Indexes of the uplinks through which such packets must not leave.
    pub(crate) away_from: BTreeSet<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) id: u32,
    pub(crate) link: u32,
    pub(crate) name: String,
    /// MTU in bytes.
    pub(crate) mtu: u32,
    /// Families in which the uplink's table has a default route.
    pub(crate) default_route_in: BTreeSet<Family>,
    /// Hardware address and id of each router, if the uplink has several.
    pub(crate) routers: Vec<(Mac, u32)>,
    /// Whether this entry stands for one router of an uplink with several, with that router's id.
    pub(crate) is_router: bool,
}

/// Which connections the flowtable takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offload {
    /// Names of the devices whose packets the flowtable takes.
    pub(crate) devices: BTreeSet<String>,
    /// Whether the flowtable takes UDP connections, too.
    pub(crate) udp: bool,
}

/// Everything that the rules depend on.
#[derive(Debug, Clone)]
pub(crate) struct Spec<'a> {
    pub(crate) field: Field,
    /// The uplinks in the order of their ids. The entries of an uplink's routers follow it.
    pub(crate) uplinks: &'a [Uplink],
    /// Index and name of each interface that leads outside, uplink or not.
    pub(crate) outside: &'a [(u32, String)],
    /// Index and name of each NIC that has no address and no default route.
    pub(crate) silent: &'a [(u32, String)],
    /// Index of the interface and address. An address that two uplinks share is not in here.
    pub(crate) own: &'a BTreeSet<(u32, IpAddr)>,
    /// Whether to serve the node's own sockets and remote backends.
    pub(crate) host: bool,
    /// Whether to accept a local pod's address as a source on an uplink.
    pub(crate) hairpin: bool,
    /// Packet mark of a pod's replies that are not bound. They follow other programs' rules,
    /// because symroute's rules by address are not for replies. `None` on a node.
    pub(crate) unbound: Option<u32>,
    /// Whether the node has IPVS, which routes forwarded packets again by their mark.
    pub(crate) ipvs: bool,
    pub(crate) steering: BTreeMap<Family, Steering>,
    /// Families in which main has no default route, so that a source without a route may lie
    /// outside.
    pub(crate) routeless: &'a [Family],
    /// Addresses of the pods that accept a local pod's address as a source.
    pub(crate) hairpins: &'a BTreeSet<IpAddr>,
    /// Addresses of the pods that an annotation leaves out.
    pub(crate) left_out: &'a BTreeSet<IpAddr>,
    /// Destinations whose connections are never bound.
    pub(crate) exclude: &'a [IpNetwork],
    /// Which connections to offload; `None` if the settings want no flowtable or the kernel has
    /// none.
    pub(crate) offload: Option<Offload>,
    /// See [`crate::names::IN_FORCE`].
    pub(crate) fingerprint: u32,
    /// See [`crate::names::LAYOUT_PRIORITY`].
    pub(crate) priority: u32,
    /// See [`crate::names::LAYOUT_TABLES`].
    pub(crate) table_base: u32,
    /// See [`crate::names::RESTORE`].
    pub(crate) restore: &'a BTreeSet<u32>,
}

impl Spec<'_> {
    /// The uplinks without the entries of their routers.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = &Uplink> {
        self.uplinks.iter().filter(|uplink| !uplink.is_router)
    }

    /// The conntrack mark of a connection that is bound to an uplink.
    pub(crate) fn bound_mark(&self, id: u32) -> u32 {
        self.field.of(id)
    }

    /// The conntrack mark of a connection that turns round: its requests leave through the uplink
    /// on which they arrive. It is also the packet mark that sends such packets out.
    pub(crate) fn turned_mark(&self, id: u32) -> u32 {
        self.field.of(id) | self.field.d()
    }

    /// Whether the set has an address of this family.
    pub(crate) fn has_family(set: &BTreeSet<IpAddr>, family: Family) -> bool {
        set.iter().any(|&ip| Family::of(ip) == family)
    }
}
