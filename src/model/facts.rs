//! Facts: what a node looks like at one moment, as plain values.
//!
//! [`crate::node::observe`] fills them from the kernel, [`crate::plan`] turns them into the desired
//! state. Nothing here touches the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{FoundIpset, Mangle, MarkMatch, Table, Tooling, Variant};
use crate::netlink::uapi::{FR_ACT_PROHIBIT, IFF_NOARP, IFF_POINTOPOINT};

/// Length of the prefix that holds just this address.
pub(crate) fn whole(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// `fe80::/10` and multicast destinations, which every IPv6 interface has.
pub(crate) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in the order in which they are worked on.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The number of the family in rtnetlink headers.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::V4),
            10 => Some(Self::V6),
            _ => None,
        }
    }

    /// `0.0.0.0/0` or `::/0`.
    pub(crate) fn default_route(self) -> IpNetwork {
        let unspecified = match self {
            Self::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        // A prefix length of 0 is valid in both families.
        IpNetwork::new(unspecified, 0).unwrap_or(unspecified.into())
    }

    /// The prefix that holds just this address.
    pub(crate) fn host_route(ip: IpAddr) -> IpNetwork {
        ip.into()
    }
}

/// A value for IPv4 and one for IPv6.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PerFamily<T>(pub(crate) T, pub(crate) T);

impl<T> PerFamily<T> {
    pub(crate) fn of(self, family: Family) -> T {
        match family {
            Family::V4 => self.0,
            Family::V6 => self.1,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// `IFLA_INFO_KIND`: "veth", "vlan", …; none for a physical device.
    pub(crate) kind: Option<String>,
    /// `IFLA_INFO_SLAVE_KIND`: what it is a port of ("bridge", "vrf", "bond"), if anything.
    pub(crate) port_of: Option<String>,
    /// `IFLA_LINK`: index of the interface that it lies on (`macvlan`, `ipvlan`, `vlan`).
    pub(crate) parent: Option<u32>,
    /// The table of a VRF device.
    pub(crate) vrf_table: Option<u32>,
    /// `IFF_*`
    pub(crate) flags: u32,
    pub(crate) carrier: bool,
    /// Bytes of the largest packet that it sends whole.
    pub(crate) mtu: u32,
}

/// Kinds of tunnels that look like Ethernet (`IFLA_INFO_KIND`).
const TUNNELS: [&str; 5] = ["vxlan", "geneve", "gretap", "ip6gretap", "erspan"];

impl Link {
    /// Whether what is sent arrives at another host inside packets of its own.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.flags & (IFF_POINTOPOINT | IFF_NOARP) != 0
            || self.kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind))
    }
}

/// A hardware address of Ethernet.
pub(crate) type Mac = [u8; 6];

/// Hardware addresses of neighbours, by interface and address.
pub(crate) type Neighbours = BTreeMap<(u32, IpAddr), Mac>;

/// A hardware address as `ip link` prints it.
pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    /// The address with the length of its prefix. On point-to-point links the peer's prefix.
    pub(crate) net: IpNetwork,
    /// The node's own address.
    pub(crate) ip: IpAddr,
    /// `RT_SCOPE_*`: 0 is global.
    pub(crate) scope: u8,
}

/// One way a route goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nexthop {
    pub(crate) link: u32,
    /// The router, if the destination is not on the link itself. It may be of the other family
    /// (RFC 5549).
    pub(crate) gateway: Option<IpAddr>,
    /// `RTNH_F_ONLINK`: the router is taken to be on the link, whatever other routes say.
    pub(crate) onlink: bool,
    /// `rtnh_hops`: its share of a multipath route, less one. 0 where there is one hop.
    pub(crate) weight: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) table: u32,
    pub(crate) dst: IpNetwork,
    /// `RTN_*`: 1 is unicast. In [`Facts::routes`] there is nothing else.
    pub(crate) kind: u8,
    /// `RT_SCOPE_*` (IPv4; always 0 in IPv6).
    pub(crate) scope: u8,
    /// `RTPROT_*`: 2 is kernel.
    pub(crate) protocol: u8,
    /// Metric; lower wins. IPv6 has 1024 where nothing was set.
    pub(crate) metric: u32,
    /// Where it goes: one, or several for a multipath route.
    pub(crate) nexthops: Vec<Nexthop>,
    /// `RTA_METRICS` as the kernel gave them: MTU, window and so on.
    pub(crate) metrics: Vec<u8>,
    /// Whether it is for some packets only (TOS, source prefix) or does more than forward
    /// (encapsulation): such a route is neither copied nor asked for a gateway.
    pub(crate) special: bool,
}

impl Route {
    /// The family of the destination.
    pub(crate) fn family(&self) -> Family {
        Family::of(self.dst.ip())
    }

    /// Whether it matches every destination of every packet.
    pub(crate) fn is_default(&self) -> bool {
        self.dst.prefix() == 0 && !self.special
    }

    /// Whether it leads to the wide world: a default route, or one of the two halves that VPNs
    /// put in its place.
    pub(crate) fn is_wide(&self) -> bool {
        self.dst.prefix() <= 1
    }

    /// Whether what it leads to is on the link itself.
    pub(crate) fn is_on_link(&self) -> bool {
        self.nexthops.iter().all(|hop| hop.gateway.is_none())
    }

    /// The hops through an interface, with their weights where there are several.
    pub(crate) fn hops_through(&self, link: u32) -> Vec<Nexthop> {
        let mut hops: Vec<_> = self.nexthops.iter().filter(|h| h.link == link).copied().collect();
        if let [only] = &mut hops[..] {
            only.weight = 0;
        }
        hops
    }
}

/// What a rule of the routing policy database does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// Look the packet up in this table.
    Lookup(u32),
    /// Go on with the rule of this priority.
    Goto(u32),
    Nop,
    /// Anything else, by its `FR_ACT_*` number.
    Other(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) family: Family,
    /// Its place; lower comes first.
    pub(crate) priority: u32,
    pub(crate) action: Action,
    /// Packet mark that it wants, if it asks for one.
    pub(crate) mark: Option<MarkMatch>,
    /// Incoming interface that it wants.
    pub(crate) iif: Option<String>,
    /// Sources that it wants, where it asks for nothing else of a packet; ours want none.
    pub(crate) from: Option<IpNetwork>,
    /// Destinations that it wants, likewise.
    pub(crate) to: Option<IpNetwork>,
    /// Routes whose prefix is no longer than this do not count (`suppress_prefixlength`).
    pub(crate) suppress: Option<u32>,
    /// Whether it asks for something that our rules never ask for (source, ports, …).
    pub(crate) other_selectors: bool,
    /// Whether it wants every mark but this one, and asks for nothing else (`not fwmark`).
    pub(crate) is_inverted: bool,
    /// `RTPROT_*`
    pub(crate) protocol: u8,
}

impl Rule {
    /// A rule that every packet meets. `protocol`: `RTPROT_*`.
    pub(crate) fn of_all(family: Family, priority: u32, action: Action, protocol: u8) -> Self {
        Self {
            family,
            priority,
            action,
            mark: None,
            iif: None,
            from: None,
            to: None,
            suppress: None,
            other_selectors: false,
            is_inverted: false,
            protocol,
        }
    }
}

/// In the words of `ip rule`, as far as we read it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.priority)?;
        if let Some(mark) = self.mark {
            write!(f, "{}fwmark {mark} ", if self.is_inverted { "not " } else { "" })?;
        }
        if let Some(from) = &self.from {
            write!(f, "from {from} ")?;
        }
        if let Some(to) = &self.to {
            write!(f, "to {to} ")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, "iif {iif} ")?;
        }
        match self.action {
            Action::Lookup(table) => write!(f, "lookup {table}")?,
            Action::Other(FR_ACT_PROHIBIT) => f.write_str("prohibit")?,
            Action::Goto(target) => write!(f, "goto {target}")?,
            Action::Nop => f.write_str("nop")?,
            Action::Other(number) => write!(f, "action {number}")?,
        }
        if let Some(length) = self.suppress {
            write!(f, " suppress_prefixlength {length}")?;
        }
        write!(f, " ({})", self.family)
    }
}

/// A rule as the kernel gave it, with the bytes that delete exactly it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundRule {
    pub(crate) rule: Rule,
    /// The body of the kernel's message.
    pub(crate) message: Vec<u8>,
}

/// What is on the node because we made it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ours {
    /// Routes of the uplinks' tables.
    pub(crate) routes: Vec<Route>,
    pub(crate) rules: Vec<FoundRule>,
    /// The table `inet symroute`, if it is there.
    pub(crate) table: Option<Table>,
    /// The table `arp symroute`, likewise.
    pub(crate) arp: Option<Table>,
    pub(crate) ipsets: BTreeMap<String, FoundIpset>,
    /// The tables mangle that were looked at.
    pub(crate) mangle: BTreeMap<(Variant, Family), Mangle>,
}

impl Ours {
    /// Whether a flowtable of ours is there.
    pub(crate) fn offloads(&self) -> bool {
        self.table.as_ref().is_some_and(|table| !table.flowtables.is_empty())
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    /// Unicast routes of others, of all tables but `local`.
    pub(crate) routes: Vec<Route>,
    /// Prefixes that main leads nowhere: blackhole, unreachable, prohibit.
    pub(crate) nowhere: BTreeSet<IpNetwork>,
    /// Rules of others of both families, in order.
    pub(crate) rules: Vec<FoundRule>,
    pub(crate) ours: Ours,
    pub(crate) tooling: Tooling,
    pub(crate) ipvs: bool,
    /// Hardware addresses of routers, where an uplink may have several: by interface and address.
    pub(crate) neighbours: Neighbours,
    /// `rp_filter` that the kernel applies to each interface with an IPv4 address, by index: the
    /// larger one of its own value and that of `all`.
    pub(crate) rp_filter: BTreeMap<u32, u32>,
    /// `src_valid_mark` of each interface, by index.
    pub(crate) src_valid_mark: BTreeMap<u32, u32>,
    /// Indexes of the interfaces whose `src_valid_mark` was set by us.
    pub(crate) restore: BTreeSet<u32>,
    /// Built-in chains of iptables-nft that came with us.
    pub(crate) made: BTreeSet<(Family, String)>,
    /// Addresses of the pods that accept a local pod's address as a source.
    pub(crate) hairpins: BTreeSet<IpAddr>,
    pub(crate) left_out: BTreeSet<IpAddr>,
    /// What is known of the pod where these are the facts of a pod's network namespace.
    pub(crate) pod: Option<PodFacts>,
}

/// What the attachments of a pod say of its interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PodFacts {
    /// Routers that the results of other plugins name, by the name of the interface.
    pub(crate) gateways: BTreeMap<String, Vec<IpAddr>>,
    /// The interface whose DEL is under way: another plugin removes it next.
    pub(crate) leaving: Option<String>,
    /// Whether no attachment is left: the pod's data plane ends.
    pub(crate) ends: bool,
}

/// The reverse path filter of an interface (IPv4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RpFilter {
    /// `net.ipv4.conf.all.rp_filter`
    pub(crate) all: u32,
    /// That of the interface.
    pub(crate) own: u32,
}

impl RpFilter {
    /// The value that the kernel applies (`IN_DEV_RPFILTER`, linux/inetdevice.h).
    pub(crate) fn in_force(self) -> u32 {
        self.all.max(self.own)
    }

    /// Whether it lets a packet in by this interface, with the way back by that one. A loose filter asks for
    /// any way back.
    pub(crate) fn lets_in(self, link: u32, back: Option<u32>) -> bool {
        match self.in_force() {
            1 => back == Some(link),
            2 => back.is_some(),
            _ => true,
        }
    }

    /// How a filter is called that drops packets.
    pub(crate) fn kind(self) -> &'static str {
        if self.in_force() == 1 { "strict" } else { "loose" }
    }
}

impl Facts {
    pub(crate) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    /// The name of an interface, or its number where it has gone.
    pub(crate) fn link_name(&self, index: u32) -> String {
        self.link(index).map_or_else(|| format!("#{index}"), |l| l.name.clone())
    }
}
