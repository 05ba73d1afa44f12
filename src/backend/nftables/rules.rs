//! The shape of an nftables table: sets, chains, rules and the few expressions they are made of.
//!
//! Expressions are written the way nft itself compiles them, with one register, so that
//! `nft list` reads them back as text that `nft -f` accepts.

use std::collections::BTreeSet;
use std::fmt;

use crate::model::{Elements, Family};
use crate::netlink::uapi::{NFPROTO_ARP, NFPROTO_INET};

/// Families of the kernel in which we have a table, each of the name [`crate::names::TABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableFamily {
    /// IPv4 and IPv6.
    Inet,
    Arp,
}

impl TableFamily {
    /// `NFPROTO_*`
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => NFPROTO_INET,
            Self::Arp => NFPROTO_ARP,
        }
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Arp => "arp",
        })
    }
}

/// The desired content of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// Sets and maps. Chains refer to them by name.
    pub(crate) sets: Vec<Set>,
    /// Chains, those that others `goto` first.
    pub(crate) chains: Vec<Chain>,
    /// The flowtable, if there is one.
    pub(crate) flowtable: Option<Flowtable>,
}

impl Ruleset {
    pub(crate) fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|s| s.name == name)
    }

    pub(crate) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|c| c.name == name)
    }
}

/// The type of a set's key or of a map's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    /// 4 bytes, network byte order.
    Ipv4,
    /// 16 bytes, network byte order.
    Ipv6,
    /// 4 bytes, host byte order.
    Mark,
    /// Interface index; 4 bytes, host byte order.
    Interface,
    InterfaceIpv4,
    InterfaceIpv6,
    /// Interface and hardware address.
    InterfaceMac,
    /// Where to go on.
    Verdict,
}

/// A set, a map or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    /// What its elements are.
    pub(crate) key: Type,
    /// What they stand for; none for a set.
    pub(crate) data: Option<Type>,
    /// The most elements it holds; none for no limit. The kernel looks things up faster where it
    /// knows the size.
    pub(crate) size: Option<u32>,
    pub(crate) elements: Elements,
}

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    /// "filter" or "route".
    pub(crate) kind: &'static str,
    /// `NF_INET_*`, or `NF_ARP_*`
    pub(crate) number: u32,
    /// Place among the chains of this hook; lower comes first.
    pub(crate) priority: i32,
}

/// A flowtable: it takes packets of connections around all rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flowtable {
    pub(crate) name: &'static str,
    /// Its place among the hooks of a device; lower comes first.
    pub(crate) priority: i32,
    /// Names of the devices whose packets it takes.
    pub(crate) devices: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    /// Set for a base chain.
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// What it is for, shown by `nft list`.
    pub(crate) comment: Option<&'static str>,
    pub(crate) expressions: Vec<Expression>,
}

/// Source or destination address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// One step of a rule. A step that compares ends the rule where it does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Incoming interface -> register.
    Iif,
    /// Outgoing interface -> register.
    Oif,
    /// Source hardware address -> the register behind an interface.
    SourceMac,
    /// Packet mark -> register.
    PacketMark,
    /// Conntrack mark -> register.
    ConntrackMark,
    /// Conntrack status bits -> register.
    ConntrackStatus,
    /// The connection's direction of this packet is `reply` or not.
    DirectionIs {
        /// `true` for the reply direction.
        reply: bool,
    },
    /// The packet is of this protocol (`IPPROTO_*`).
    ProtocolIs(u8),
    /// The packet is of this family's ICMP.
    IcmpOf(Family),
    /// The packet is of no connection of its own but about one.
    Related,
    /// The packet belongs to the connection itself: the opposite of [`Expression::Related`].
    NotRelated,
    /// The packet is of no connection: it is not tracked, or conntrack makes nothing of it.
    NoConnection,
    FamilyIs(Family),
    /// Address -> register; ask [`Expression::FamilyIs`] first.
    LoadAddress(Family, Side),
    /// Destination of the connection's original or reply direction -> the register behind an
    /// interface; ask [`Expression::FamilyIs`] first.
    ConntrackAddress {
        family: Family,
        /// `true` for the reply direction.
        reply: bool,
    },
    /// Destination of the connection's first packet, before any DNAT -> register; ask
    /// [`Expression::FamilyIs`] first.
    CalledAddress(Family),
    /// The address that an ARP request asks for -> the register behind an interface.
    ArpTarget,
    /// Outgoing interface that a route look-up for this address gives -> register; 0 for none.
    FibInterface(Side),
    /// The same by a look-up with the packet's mark.
    FibInterfaceByMark(Side),
    /// No route for this address.
    FibMissing {
        side: Side,
        /// Look up with the packet's mark.
        by_mark: bool,
    },
    /// The address is one of the node's own, or is not.
    FibType {
        side: Side,
        /// Whether it has to be the node's own.
        is_local: bool,
    },
    /// register = register & mask ^ xor, on four bytes in host byte order.
    Bits {
        /// Bits to keep.
        mask: u32,
        /// Bits to flip afterwards.
        xor: u32,
    },
    /// register = register & mask, on the bytes of an address.
    AddressBits(Vec<u8>),
    /// The register holds these bytes.
    Equals(Vec<u8>),
    /// The register does not hold these bytes.
    Differs(Vec<u8>),
    /// The register is an element of the set, or is not.
    InSet {
        set: &'static str,
        /// Whether it has to be absent.
        not: bool,
    },
    /// Go where the verdict map says for the register; on with the next rule where it says nothing.
    VerdictMap(&'static str),
    /// A number in host byte order -> register.
    Number(u32),
    /// register -> packet mark.
    SetPacketMark,
    /// register -> conntrack mark.
    SetConntrackMark,
    Counter,
    /// One packet in so many, by chance. A power of two.
    OneIn(u32),
    /// Put the connection into this flowtable. The rule ends where the kernel does not take it.
    Offload(&'static str),
    /// Go to a chain and don't come back.
    Goto(String),
    Return,
    /// On with the next base chain.
    Accept,
}
