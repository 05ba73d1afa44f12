//! Facts: the state of a node at one moment, as plain values.
//!
//! [`crate::node::observe`] reads them from the kernel. [`crate::plan`] makes the desired state
//! from them. Nothing here touches the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{FoundIpset, Mangle, MarkMatch, Table, Tooling, Variant};
use crate::netlink::uapi::{FR_ACT_PROHIBIT, IFF_NOARP, IFF_POINTOPOINT};

/// Length of a prefix that holds a single address of this family: 32 or 128.
pub(crate) fn host_length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// Whether the address is in `fe80::/10` or is IPv6 multicast. Every IPv6 interface has such
/// routes.
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
    /// Both families, in the order in which they are processed.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `AF_INET` or `AF_INET6`, as in rtnetlink headers.
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

    /// The prefix `0.0.0.0/0` or `::/0`.
    pub(crate) fn default_route(self) -> IpNetwork {
        let unspecified = match self {
            Self::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        // A prefix length of 0 is valid in both families.
        IpNetwork::new(unspecified, 0).unwrap_or(unspecified.into())
    }

    /// The prefix of this single address, `/32` or `/128`.
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
    /// `IFLA_INFO_KIND`: "veth", "vlan" and so on; `None` for a physical device.
    pub(crate) kind: Option<String>,
    /// `IFLA_INFO_SLAVE_KIND`: kind of the device that has this link as a port ("bridge", "vrf",
    /// "bond").
    pub(crate) port_of: Option<String>,
    /// `IFLA_LINK`: index of the lower interface of a `macvlan`, `ipvlan` or `vlan`. `None` if that
    /// interface is in another network namespace.
    pub(crate) parent: Option<u32>,
    /// Routing table of a VRF device.
    pub(crate) vrf_table: Option<u32>,
    /// `IFF_*`
    pub(crate) flags: u32,
    pub(crate) carrier: bool,
    /// `IFLA_MTU`, in bytes.
    pub(crate) mtu: u32,
}

/// Kinds of tunnels that have Ethernet headers (`IFLA_INFO_KIND`).
const TUNNELS: [&str; 5] = ["vxlan", "geneve", "gretap", "ip6gretap", "erspan"];

impl Link {
    /// Whether the interface encapsulates packets to another host, or does not resolve link-layer
    /// addresses.
    pub(crate) fn is_tunnel(&self) -> bool {
        self.flags & (IFF_POINTOPOINT | IFF_NOARP) != 0
            || self.kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind))
    }
}

/// An Ethernet hardware address.
pub(crate) type Mac = [u8; 6];

/// Hardware addresses of neighbours, by interface index and IP address.
pub(crate) type Neighbours = BTreeMap<(u32, IpAddr), Mac>;

/// Formats a hardware address as `ip link` prints it.
pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) link: u32,
    /// The address with the length of its prefix. On point-to-point links this is the peer's.
    pub(crate) net: IpNetwork,
    /// The node's own address.
    pub(crate) ip: IpAddr,
    /// `RT_SCOPE_*`: 0 is global.
    pub(crate) scope: u8,
}

/// A next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nexthop {
    pub(crate) link: u32,
    /// The router; `None` if the destination is on the link itself. The router may be of the other
    /// family (RFC 5549).
    pub(crate) gateway: Option<IpAddr>,
    /// `RTNH_F_ONLINK`: the kernel takes the router to be on the link, whatever other routes say.
    pub(crate) onlink: bool,
    /// `rtnh_hops`: weight in a multipath route, less one. 0 if the route has one next hop.
    pub(crate) weight: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) table: u32,
    pub(crate) dst: IpNetwork,
    /// `RTN_*`: 1 is unicast. [`Facts::routes`] holds no other kind.
    pub(crate) kind: u8,
    /// `RT_SCOPE_*` (IPv4; always 0 in IPv6).
    pub(crate) scope: u8,
    /// `RTPROT_*`: 2 is kernel.
    pub(crate) protocol: u8,
    /// Metric; lower wins. The kernel sets 1024 in IPv6 if a program sets none.
    pub(crate) metric: u32,
    /// The next hops; more than one for a multipath route.
    pub(crate) nexthops: Vec<Nexthop>,
    /// `RTA_METRICS` as the kernel gave them: MTU, window and so on.
    pub(crate) metrics: Vec<u8>,
    /// Whether the route is for some packets only (TOS, source prefix) or also encapsulates. The
    /// plan neither copies such a route nor takes a gateway from it.
    pub(crate) is_special: bool,
}

impl Route {
    /// The family of the destination.
    pub(crate) fn family(&self) -> Family {
        Family::of(self.dst.ip())
    }

    /// Whether the route matches every destination of every packet.
    pub(crate) fn is_default(&self) -> bool {
        self.dst.prefix() == 0 && !self.is_special
    }

    /// Whether the route is a default route, or one of the two half-length routes that VPNs use in
    /// place of one.
    pub(crate) fn is_wide(&self) -> bool {
        self.dst.prefix() <= 1
    }

    /// Whether no next hop has a router, so that the destinations are on the link itself.
    pub(crate) fn is_on_link(&self) -> bool {
        self.nexthops.iter().all(|hop| hop.gateway.is_none())
    }

    /// The next hops through an interface. A single one gets weight 0.
    pub(crate) fn hops_through(&self, link: u32) -> Vec<Nexthop> {
        let mut hops: Vec<_> = self.nexthops.iter().filter(|h| h.link == link).copied().collect();
        if let [only] = &mut hops[..] {
            only.weight = 0;
        }
        hops
    }
}

/// Action of a rule of the routing policy database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// Look the packet up in this table.
    Lookup(u32),
    /// Continue with the rule of this priority.
    Goto(u32),
    Nop,
    /// Any other action, by its `FR_ACT_*` number.
    Other(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) family: Family,
    /// Rule priority; the kernel tries lower ones first.
    pub(crate) priority: u32,
    pub(crate) action: Action,
    /// Packet mark to match; `None` for any mark.
    pub(crate) mark: Option<MarkMatch>,
    /// Incoming interface to match.
    pub(crate) iif: Option<String>,
    /// Source prefix to match. Set only if the rule has neither `to` nor `iif`, no inversion and no
    /// selector that is not read here; it may have a mark. Of symroute's rules, only those in a pod
    /// have one.
    pub(crate) from: Option<IpNetwork>,
    /// Destination prefix to match. Set only if the rule has neither `from` nor `iif`, no inversion
    /// and no selector that is not read here; it may have a mark.
    pub(crate) to: Option<IpNetwork>,
    /// `suppress_prefixlength`: the kernel ignores routes whose prefix is not longer than this.
    pub(crate) suppress: Option<u32>,
    /// Whether the rule is inverted, or has a selector that no rule of symroute has on a node:
    /// source, destination, ports and so on.
    pub(crate) other_selectors: bool,
    /// Whether the rule matches every mark except `mark`, and has no other selector (`not fwmark`).
    pub(crate) is_inverted: bool,
    /// `RTPROT_*`
    pub(crate) protocol: u8,
}

impl Rule {
    /// A rule that matches every packet. `protocol`: `RTPROT_*`.
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

/// Formats the rule as `ip rule` does, as far as symroute reads it.
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

/// A rule as the kernel dumped it, with the bytes that delete exactly this rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundRule {
    pub(crate) rule: Rule,
    /// Body of the kernel's message.
    pub(crate) message: Vec<u8>,
}

/// Kernel state that symroute made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ours {
    /// Routes in the uplinks' tables.
    pub(crate) routes: Vec<Route>,
    pub(crate) rules: Vec<FoundRule>,
    /// The table `inet symroute`; `None` if it does not exist.
    pub(crate) table: Option<Table>,
    /// The table `arp symroute`; `None` if it does not exist.
    pub(crate) arp: Option<Table>,
    pub(crate) ipsets: BTreeMap<String, FoundIpset>,
    /// The tables mangle that observe has read.
    pub(crate) mangle: BTreeMap<(Variant, Family), Mangle>,
}

impl Ours {
    /// Whether the table has a flowtable.
    pub(crate) fn offloads(&self) -> bool {
        self.table.as_ref().is_some_and(|table| !table.flowtables.is_empty())
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    /// Other programs' unicast routes, of all tables except `local`, as far as the plan needs them.
    pub(crate) routes: Vec<Route>,
    /// Prefixes that have a blackhole, unreachable or prohibit route in main.
    pub(crate) nowhere: BTreeSet<IpNetwork>,
    /// Other programs' rules of both families, in order.
    pub(crate) rules: Vec<FoundRule>,
    pub(crate) ours: Ours,
    pub(crate) tooling: Tooling,
    pub(crate) ipvs: bool,
    /// Hardware addresses of routers, where an uplink may have several.
    pub(crate) neighbours: Neighbours,
    /// `rp_filter` that the kernel applies to each interface with an IPv4 address, by index: the
    /// larger of the interface's own value and that of `all`.
    pub(crate) rp_filter: BTreeMap<u32, u32>,
    /// `src_valid_mark` of each interface, by index.
    pub(crate) src_valid_mark: BTreeMap<u32, u32>,
    /// Indexes of the interfaces whose `src_valid_mark` was 0 before symroute set it.
    pub(crate) restore: BTreeSet<u32>,
    /// Built-in chains that exist because symroute used iptables-nft.
    pub(crate) made_chains: BTreeSet<(Family, String)>,
    /// Addresses of the pods that accept a local pod's address as a source.
    pub(crate) hairpins: BTreeSet<IpAddr>,
    /// Addresses of the pods that an annotation leaves out.
    pub(crate) left_out: BTreeSet<IpAddr>,
    /// Set if these are the facts of a pod's network namespace.
    pub(crate) pod: Option<PodFacts>,
}

/// What a pod's attachments say about its interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PodFacts {
    /// Routers in the results of other plugins, by interface name.
    pub(crate) gateways: BTreeMap<String, Vec<IpAddr>>,
    /// Name of the interface whose DEL is running: another plugin removes it next.
    pub(crate) leaving: Option<String>,
    /// Whether the pod has no attachment left, so that its data plane has to be removed.
    pub(crate) is_ending: bool,
}

/// IPv4 reverse path filter of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RpFilter {
    /// `net.ipv4.conf.all.rp_filter`
    pub(crate) all: u32,
    /// `net.ipv4.conf.NAME.rp_filter`
    pub(crate) own: u32,
}

impl RpFilter {
    /// The value that the kernel applies (`IN_DEV_RPFILTER`, linux/inetdevice.h).
    pub(crate) fn in_force(self) -> u32 {
        self.all.max(self.own)
    }

    /// Whether the filter accepts a packet that arrives on `link` and whose way back leads to
    /// `back`. A loose filter accepts any way back.
    pub(crate) fn lets_in(self, link: u32, back: Option<u32>) -> bool {
        match self.in_force() {
            1 => back == Some(link),
            2 => back.is_some(),
            _ => true,
        }
    }

    /// Name of a filter that drops packets: "strict" or "loose".
    pub(crate) fn kind(self) -> &'static str {
        if self.in_force() == 1 { "strict" } else { "loose" }
    }
}

impl Facts {
    /// Other programs' rules of both families, in order.
    pub(crate) fn foreign_rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|found| &found.rule)
    }

    pub(crate) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    /// Name of an interface, or `#INDEX` if it no longer exists.
    pub(crate) fn link_name(&self, index: u32) -> String {
        self.link(index).map_or_else(|| format!("#{index}"), |l| l.name.clone())
    }
}
