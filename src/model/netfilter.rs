//! symroute's objects in nftables and iptables, and what a node's netfilter can do, as plain
//! values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// Content of symroute's nftables table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Table {
    /// Whether the table is dormant (`NFT_TABLE_F_DORMANT`): the kernel skips all its rules.
    pub(crate) dormant: bool,
    pub(crate) sets: BTreeMap<String, FoundSet>,
    pub(crate) chains: BTreeMap<String, FoundChain>,
    pub(crate) flowtables: BTreeMap<String, FoundFlowtable>,
}

/// A flowtable in the kernel. It forwards packets of its connections past all rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundFlowtable {
    /// Priority among the hooks of a device; lower runs first.
    pub(crate) priority: i32,
    /// `NFT_FLOWTABLE_*`
    pub(crate) flags: u32,
    /// Names of the devices whose packets the flowtable takes.
    pub(crate) devices: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundSet {
    /// `NFT_SET_*`
    pub(crate) flags: u32,
    /// nft's number of the key's type.
    pub(crate) key_type: u32,
    /// nft's number of the data's type; 0 for a set.
    pub(crate) data_type: u32,
    /// Maximum number of elements, if the set has one.
    pub(crate) size: Option<u32>,
    pub(crate) elements: Elements,
}

/// Keys of a set or map, each with its data.
pub(crate) type Elements = BTreeSet<(Vec<u8>, ElementData)>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ElementData {
    /// No data: the element is of a set.
    None,
    Value(Vec<u8>),
    /// A verdict: `goto` this chain.
    Goto(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundChain {
    /// Type, hook number and priority of a base chain.
    pub(crate) hook: Option<(String, u32, i32)>,
    /// Fingerprint of each rule in order; `None` for a rule without one.
    pub(crate) rules: Vec<Option<u64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundIpset {
    /// Type of the set: "hash:ip", "hash:net".
    pub(crate) kind: String,
    pub(crate) family: u8,
    /// Number of rules that refer to the set.
    pub(crate) references: u32,
    pub(crate) members: BTreeSet<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    /// The address, or the first address of a prefix.
    pub(crate) address: IpAddr,
    /// Length of the prefix; 32 or 128 in a set of addresses.
    pub(crate) prefix: u8,
    /// Whether the member is an exception from a shorter prefix.
    pub(crate) nomatch: bool,
    pub(crate) comment: Option<String>,
}

/// The two variants of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Variant {
    /// iptables on top of `nf_tables`.
    Nft,
    /// iptables on top of `ip_tables`.
    Legacy,
}

impl Variant {
    pub(crate) const ALL: [Self; 2] = [Self::Nft, Self::Legacy];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        })
    }
}

/// symroute's view of table mangle of one variant and family. Rules are lines as `iptables -S`
/// prints them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mangle {
    /// All rules of the built-in chains, by chain.
    pub(crate) builtin: BTreeMap<String, Vec<String>>,
    /// Rules of symroute's chains.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// The built-in chains that exist. `None` if there is no table, or one with chains of other
    /// programs only. iptables-nft makes table and chains when it is first used.
    pub(crate) existing: Option<BTreeSet<String>>,
}

/// How other programs use a variant of iptables on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VariantUse {
    /// Whether the kubelet or kube-proxy has chains in this variant.
    pub(crate) has_kubelet_chains: bool,
    /// Number of other programs' rules in this variant.
    pub(crate) foreign_rules: usize,
}

/// Whether symroute can use the kernel's flowtables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flowtables {
    Usable,
    /// The kernel has no flowtables.
    Missing,
    /// The kernel looks up the way of replies without the packet mark, so they would leave through
    /// another NIC (before Linux 5.19).
    WithoutMarks,
}

/// What a node offers to mark packets with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tooling {
    /// Whether the kernel has `nf_tables`.
    pub(crate) nftables: bool,
    /// Whether flowtables are usable. symroute probes them only if `offload` is set.
    pub(crate) flowtables: Flowtables,
    /// Whether conntrack keeps a UDP connection that leaves a flowtable. symroute reads this only
    /// if `offload` is set.
    pub(crate) keeps_udp: bool,
    /// The installed variants of iptables. Empty if symroute had no reason to look.
    pub(crate) iptables: BTreeMap<Variant, VariantUse>,
}

impl Default for Tooling {
    fn default() -> Self {
        Self {
            nftables: true,
            flowtables: Flowtables::Usable,
            keeps_udp: true,
            iptables: BTreeMap::new(),
        }
    }
}
