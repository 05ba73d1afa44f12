//! Types of an nftables table: sets, chains, rules and the few expressions that rules consist of.
//!
//! Each expression is encoded as nft itself compiles it, with one register. So `nft list` prints
//! the rules as text that `nft -f` accepts.

use std::collections::BTreeSet;
use std::fmt;

use crate::model::{Elements, Family};
use crate::netlink::uapi::{NFPROTO_ARP, NFPROTO_INET};

/// Netfilter families in which symroute has a table. The name of each is [`crate::names::TABLE`].
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
    /// Chains, each after the chains that it goes to.
    pub(crate) chains: Vec<Chain>,
    /// The flowtable, if the table has one.
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
    /// Interface index: 4 bytes, host byte order.
    Interface,
    /// Interface index and IPv4 address.
    InterfaceIpv4,
    /// Interface index and IPv6 address.
    InterfaceIpv6,
    /// Interface index and hardware address.
    InterfaceMac,
    /// A verdict that goes to a chain.
    Verdict,
}

/// A set, a map or a verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    /// Type of the keys.
    pub(crate) key: Type,
    /// Type of the data; `None` for a set.
    pub(crate) data: Option<Type>,
    /// Maximum number of elements; `None` for no limit. The kernel looks elements up faster if it
    /// knows the size.
    pub(crate) size: Option<u32>,
    pub(crate) elements: Elements,
}

/// Hook of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    /// "filter" or "route".
    pub(crate) kind: &'static str,
    /// `NF_INET_*`, or `NF_ARP_*`
    pub(crate) number: u32,
    /// Priority among the chains of this hook; lower runs first.
    pub(crate) priority: i32,
}

/// A flowtable. It forwards packets of its connections past all rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flowtable {
    pub(crate) name: &'static str,
    /// Priority among the hooks of a device; lower runs first.
    pub(crate) priority: i32,
    /// Names of the devices whose packets the flowtable takes.
    pub(crate) devices: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    /// `None` for a chain that is not a base chain.
    pub(crate) hook: Option<Hook>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Purpose of the rule, shown by `nft list`.
    pub(crate) comment: Option<&'static str>,
    pub(crate) expressions: Vec<Expression>,
}

/// Source or destination address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// One step of a rule. A step that compares ends the rule if the comparison fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Incoming interface -> register.
    Iif,
    /// Outgoing interface -> register.
    Oif,
    /// Source hardware address -> the register after that of an interface.
    SourceMac,
    /// Packet mark -> register.
    PacketMark,
    /// Conntrack mark -> register.
    ConntrackMark,
    /// Conntrack status bits -> register.
    ConntrackStatus,
    /// The packet goes in the connection's reply direction, or in the original one.
    DirectionIs {
        /// `true` for the reply direction.
        reply: bool,
    },
    /// The packet is of this protocol (`IPPROTO_*`).
    ProtocolIs(u8),
    /// The packet is ICMP (IPv4) or ICMPv6 (IPv6).
    IcmpOf(Family),
    /// The packet is an error message about a connection (`NF_CT_STATE_RELATED`), or the first of a
    /// connection that another one announced.
    Related,
    /// The packet is not [`Expression::Related`].
    NotRelated,
    /// The packet belongs to no connection: conntrack does not track it, or finds it invalid.
    NoConnection,
    FamilyIs(Family),
    /// Address -> register; test [`Expression::FamilyIs`] first.
    LoadAddress(Family, Side),
    /// Destination of the connection's original or reply direction -> the register after that of an
    /// interface; test [`Expression::FamilyIs`] first.
    ConntrackAddress {
        family: Family,
        /// `true` for the reply direction.
        reply: bool,
    },
    /// Destination that the client called, before any DNAT -> register; test
    /// [`Expression::FamilyIs`] first.
    CalledAddress(Family),
    /// The address that an ARP request asks for -> the register after that of an interface.
    ArpTarget,
    /// Outgoing interface of a route look-up for this address -> register; 0 if there is no route.
    FibInterface(Side),
    /// Outgoing interface of a route look-up for this address with the packet's mark -> register; 0
    /// if there is no route.
    FibInterfaceByMark(Side),
    /// The node has no route for this address.
    FibMissing {
        side: Side,
        /// Whether the look-up uses the packet's mark.
        by_mark: bool,
    },
    /// The address is one of the node's own, or is not.
    FibType {
        side: Side,
        /// Whether the address has to be the node's own.
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
        /// Whether the element has to be absent.
        not: bool,
    },
    /// Go to the chain that the verdict map has for the register. Without an element, continue with
    /// the next rule.
    VerdictMap(&'static str),
    /// A number in host byte order -> register.
    Number(u32),
    /// register -> packet mark.
    SetPacketMark,
    /// register -> conntrack mark.
    SetConntrackMark,
    Counter,
    /// Matches one packet in this number, by chance. The number is a power of two.
    OneIn(u32),
    /// Put the connection into this flowtable. If the kernel does not accept it, the rule ends.
    Offload(&'static str),
    /// Go to a chain and do not return.
    Goto(String),
    Return,
    /// Continue with the next base chain.
    Accept,
}
