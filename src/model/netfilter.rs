//! What nftables and iptables of a node have of ours, and what they can do, as plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// What the nftables table of ours holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Table {
    /// Whether it is switched off as a whole.
    pub(crate) dormant: bool,
    pub(crate) sets: BTreeMap<String, FoundSet>,
    pub(crate) chains: BTreeMap<String, FoundChain>,
    pub(crate) flowtables: BTreeMap<String, FoundFlowtable>,
}

/// A flowtable: it takes packets of connections around all rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundFlowtable {
    /// Its place among the hooks of a device; lower comes first.
    pub(crate) priority: i32,
    /// `NFT_FLOWTABLE_*`
    pub(crate) flags: u32,
    /// Names of the devices whose packets it takes.
    pub(crate) devices: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundSet {
    /// `NFT_SET_*`
    pub(crate) flags: u32,
    /// Number of the key's type, as nft has it.
    pub(crate) key_type: u32,
    /// Number of the data's type, 0 for a set.
    pub(crate) data_type: u32,
    /// The most elements it holds, if that is limited.
    pub(crate) size: Option<u32>,
    pub(crate) elements: Elements,
}

/// Keys, and what they stand for.
pub(crate) type Elements = BTreeSet<(Vec<u8>, ElementData)>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ElementData {
    /// Nothing: the element of a set.
    None,
    Value(Vec<u8>),
    /// `goto` this chain.
    Goto(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundChain {
    /// Type, hook number and priority of a base chain.
    pub(crate) hook: Option<(String, u32, i32)>,
    /// Fingerprint of each rule in order; `None` for a rule that does not carry one of ours.
    pub(crate) rules: Vec<Option<u64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FoundIpset {
    /// Its type: "hash:ip", "hash:net".
    pub(crate) kind: String,
    pub(crate) family: u8,
    /// How many rules refer to it.
    pub(crate) references: u32,
    pub(crate) members: BTreeSet<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member {
    /// The address, or the first of a prefix.
    pub(crate) address: IpAddr,
    /// Length of the prefix; that of the whole address in a set of addresses.
    pub(crate) prefix: u8,
    /// Whether it is an exception from a shorter prefix.
    pub(crate) nomatch: bool,
    /// What stands beside it.
    pub(crate) comment: Option<String>,
}

/// The two programs that call themselves iptables.
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

/// Table mangle of one variant and family, as far as it concerns us. Rules are lines as
/// `iptables -S` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mangle {
    /// All rules of the built-in chains.
    pub(crate) builtin: BTreeMap<String, Vec<String>>,
    /// The rules of our chains.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// The built-in chains that exist; none where there is no table, or one without them that
    /// others use. iptables-nft makes table and chains when it is first used.
    pub(crate) existing: Option<BTreeSet<String>>,
}

/// How a variant of iptables is used on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VariantUse {
    /// Whether the kubelet's or kube-proxy's chains are in it.
    pub(crate) has_kubelet_chains: bool,
    /// How many rules other programs have in it.
    pub(crate) foreign_rules: usize,
}

/// What a kernel's flowtables are good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flowtables {
    Usable,
    /// It has none.
    Missing,
    /// It looks the way of the replies up without the packet mark, so they would leave by another NIC.
    WithoutMarks,
}

/// What there is on a node to mark packets with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tooling {
    /// Whether the kernel has `nf_tables`.
    pub(crate) nftables: bool,
    /// Its flowtables. Asked only where the settings want one.
    pub(crate) flowtables: Flowtables,
    /// Whether conntrack keeps a UDP connection that leaves a flowtable. Likewise.
    pub(crate) keeps_udp: bool,
    /// The variants of iptables that are installed. Not looked for where it does not matter.
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
