//! Facts: what a node looks like at one moment, as plain values.
//!
//! [`crate::node::observe`] fills them from the kernel, [`crate::plan`] turns them into the desired
//! state. Nothing here touches the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::netlink::uapi::FR_ACT_PROHIBIT;

/// Length of the prefix that holds just this address.
#[must_use]
pub fn whole(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// `fe80::/10` and multicast destinations, which every IPv6 interface has.
#[must_use]
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both, in the order in which they are worked on.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The number of the family in rtnetlink headers.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// The family with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::V4),
            10 => Some(Self::V6),
            _ => None,
        }
    }

    /// `0.0.0.0/0` or `::/0`.
    #[must_use]
    pub fn default_route(self) -> IpNetwork {
        let unspecified = match self {
            Self::V4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        // A prefix length of 0 is valid in both families.
        IpNetwork::new(unspecified, 0).unwrap_or(unspecified.into())
    }

    /// The prefix that holds just this address.
    #[must_use]
    pub fn host_route(ip: IpAddr) -> IpNetwork {
        ip.into()
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

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// `IFLA_INFO_KIND`: "veth", "vlan", …; none for a physical device.
    pub kind: Option<String>,
    /// `IFLA_INFO_SLAVE_KIND`: what it is a port of ("bridge", "vrf", "bond"), if anything.
    pub port_of: Option<String>,
    /// The table of a VRF device.
    pub vrf_table: Option<u32>,
    /// `IFF_*`
    pub flags: u32,
    /// Whether the link has carrier.
    pub carrier: bool,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub link: u32,
    /// The address with the length of its prefix. On point-to-point links the peer's prefix.
    pub net: IpNetwork,
    /// The node's own address.
    pub ip: IpAddr,
    /// `RT_SCOPE_*`: 0 is global.
    pub scope: u8,
}

/// One way a route goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nexthop {
    /// Index of the outgoing interface.
    pub link: u32,
    /// The router, if the destination is not on the link itself. It may be of the other family
    /// (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// `RTNH_F_ONLINK`: the router is taken to be on the link, whatever other routes say.
    pub onlink: bool,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The routing table.
    pub table: u32,
    /// Destination prefix.
    pub dst: IpNetwork,
    /// `RTN_*`: 1 is unicast. In [`Facts::routes`] there is nothing else.
    pub kind: u8,
    /// `RT_SCOPE_*` (IPv4; always 0 in IPv6).
    pub scope: u8,
    /// `RTPROT_*`: 2 is kernel.
    pub protocol: u8,
    /// Metric; lower wins. IPv6 has 1024 where nothing was set.
    pub metric: u32,
    /// Where it goes: one, or several for a multipath route.
    pub nexthops: Vec<Nexthop>,
    /// `RTA_METRICS` as the kernel gave them: MTU, window and so on.
    pub metrics: Vec<u8>,
    /// Whether it is for some packets only (TOS, source prefix) or does more than forward
    /// (encapsulation): such a route is neither copied nor asked for a gateway.
    pub special: bool,
}

impl Route {
    /// The family of the destination.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.dst.ip())
    }

    /// Whether it matches every destination of every packet.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.dst.prefix() == 0 && !self.special
    }

    /// Whether it leads to the wide world: a default route, or one of the two halves that VPNs
    /// put in its place.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.dst.prefix() <= 1
    }
}

/// What a rule of the routing policy database does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Look the packet up in this table.
    Lookup(u32),
    /// Go on with the rule of this priority.
    Goto(u32),
    /// Nothing.
    Nop,
    /// Anything else, by its `FR_ACT_*` number.
    Other(u8),
}

/// A rule of the routing policy database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Family whose packets it looks at.
    pub family: Family,
    /// Its place; lower comes first.
    pub priority: u32,
    /// What it does.
    pub action: Action,
    /// Packet mark and mask that it wants, if it asks for one.
    pub mark: Option<(u32, u32)>,
    /// Incoming interface that it wants.
    pub iif: Option<String>,
    /// Routes whose prefix is no longer than this do not count (`suppress_prefixlength`).
    pub suppress: Option<u32>,
    /// Whether it asks for something that the fields above don't tell (source, ports, …).
    pub other_selectors: bool,
    /// `RTPROT_*`
    pub protocol: u8,
}

/// In the words of `ip rule`, as far as we read it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.priority)?;
        if let Some((mark, mask)) = self.mark {
            write!(f, "fwmark {mark:#x}/{mask:#x} ")?;
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
pub struct FoundRule {
    /// What it says.
    pub rule: Rule,
    /// The body of the kernel's message.
    pub message: Vec<u8>,
}

/// What the nftables table of ours holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Whether it is switched off as a whole.
    pub dormant: bool,
    /// Sets and maps by name.
    pub sets: BTreeMap<String, FoundSet>,
    /// Chains by name.
    pub chains: BTreeMap<String, FoundChain>,
}

/// A set or map as found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundSet {
    /// `NFT_SET_*`
    pub flags: u32,
    /// Number of the key's type, as nft has it.
    pub key_type: u32,
    /// Number of the data's type, 0 for a set.
    pub data_type: u32,
    /// The most elements it holds, if that is limited.
    pub size: Option<u32>,
    /// Its elements.
    pub elements: BTreeSet<(Vec<u8>, ElementData)>,
}

/// What an element of a map stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementData {
    /// Nothing: the element of a set.
    None,
    /// A value.
    Value(Vec<u8>),
    /// `goto` this chain.
    Goto(String),
}

/// A chain as found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundChain {
    /// Type, hook number and priority of a base chain.
    pub hook: Option<(String, u32, i32)>,
    /// Fingerprint of each rule in order; `None` for a rule that does not carry one of ours.
    pub rules: Vec<Option<u64>>,
}

/// An ipset as found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundIpset {
    /// Its type: "hash:ip", "hash:net".
    pub kind: String,
    /// Number of its family.
    pub family: u8,
    /// How many rules refer to it.
    pub references: u32,
    /// Its members.
    pub members: BTreeSet<Member>,
}

/// A member of an ipset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The address, or the first of a prefix.
    pub address: IpAddr,
    /// Length of the prefix; that of the whole address in a set of addresses.
    pub prefix: u8,
    /// Whether it is an exception from a shorter prefix.
    pub nomatch: bool,
    /// What stands beside it.
    pub comment: Option<String>,
}

/// The two programs that call themselves iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// iptables on top of `nf_tables`.
    Nft,
    /// iptables on top of `ip_tables`.
    Legacy,
}

impl Variant {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        })
    }
}

/// Table mangle of one variant and family, as far as it concerns us. Rules are lines as
/// `iptables -S` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mangle {
    /// All rules of the built-in chains.
    pub builtin: BTreeMap<String, Vec<String>>,
    /// The rules of our chains.
    pub chains: BTreeMap<String, Vec<String>>,
    /// The built-in chains that exist; none where there is no table, or one without them that
    /// others use. iptables-nft makes table and chains when it is first used.
    pub existing: Option<BTreeSet<String>>,
}

/// How a variant of iptables is used on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VariantUse {
    /// Whether the kubelet's or kube-proxy's chains are in it.
    pub has_kubelet_chains: bool,
    /// How many rules other programs have in it.
    pub foreign_rules: usize,
}

/// What there is on a node to mark packets with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tooling {
    /// Whether the kernel has `nf_tables`.
    pub nftables: bool,
    /// The variants of iptables that are installed. Not looked for where it does not matter.
    pub iptables: BTreeMap<Variant, VariantUse>,
}

impl Default for Tooling {
    fn default() -> Self {
        Self { nftables: true, iptables: BTreeMap::new() }
    }
}

/// What is on the node because we made it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ours {
    /// Routes of the uplinks' tables.
    pub routes: Vec<Route>,
    /// Rules.
    pub rules: Vec<FoundRule>,
    /// The table `inet symroute`, if it is there.
    pub table: Option<Table>,
    /// The ipsets by name.
    pub ipsets: BTreeMap<String, FoundIpset>,
    /// The tables mangle that were looked at.
    pub mangle: BTreeMap<(Variant, Family), Mangle>,
}

/// Everything that reconcile looks at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// All interfaces.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// Unicast routes of others, of all tables but `local`.
    pub routes: Vec<Route>,
    /// Prefixes that main leads nowhere: blackhole, unreachable, prohibit.
    pub nowhere: BTreeSet<IpNetwork>,
    /// Rules of others of both families, in order.
    pub rules: Vec<FoundRule>,
    /// What we made before.
    pub ours: Ours,
    /// What there is to mark packets with.
    pub tooling: Tooling,
    /// Whether the node has IPVS.
    pub ipvs: bool,
    /// `src_valid_mark` of each interface, by index.
    pub src_valid_mark: BTreeMap<u32, u32>,
    /// Indexes of the interfaces whose `src_valid_mark` was set by us.
    pub restore: BTreeSet<u32>,
    /// Built-in chains of iptables-nft that came with us.
    pub made: BTreeSet<(Family, String)>,
    /// Addresses of the pods that accept a local pod's address as a source.
    pub hairpins: BTreeSet<IpAddr>,
    /// Addresses of the pods that are left out.
    pub left_out: BTreeSet<IpAddr>,
}

impl Facts {
    /// The interface with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    /// The name of an interface, or its number where it has gone.
    #[must_use]
    pub fn link_name(&self, index: u32) -> String {
        self.link(index).map_or_else(|| format!("#{index}"), |l| l.name.clone())
    }
}
