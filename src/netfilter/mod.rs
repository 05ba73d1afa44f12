//! The netfilter rules of other programs, and their effect on one packet: its marks, and its source and
//! destination after NAT.
//!
//! [`iptables`] parses the output of `iptables-save`, [`nftables`] asks the kernel for the rules of nftables,
//! and [`walk`] leads a packet through the chains of a hook (pure). Rules with a random choice (`statistic`,
//! `numgen`) lead to several outcomes. The packet skips a rule with a match that is not understood, and the
//! outcome names the match.

mod chain;
mod expressions;
pub(crate) mod iptables;
pub(crate) mod ipvs;
pub(crate) mod nftables;
mod reach;
pub(crate) mod read;
mod sets;
pub(crate) mod walk;

use std::collections::BTreeMap;
use std::net::IpAddr;

pub(crate) use iptables::protocol;

use ipnetwork::IpNetwork;

use crate::model::{Family, MarkMatch};

/// A hook of the kernel (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// An interface: its index and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface(pub(crate) u32, pub(crate) String);

/// The properties of a packet that rules can match or change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// The interface that the packet arrives on. `oif` is the one that it leaves through.
    pub(crate) iif: Option<Interface>,
    pub(crate) oif: Option<Interface>,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// `IPPROTO_*`; `None` if unknown.
    pub(crate) protocol: Option<u8>,
    /// The destination port; `None` without a protocol that has ports.
    pub(crate) port: Option<u16>,
    /// The packet mark. `connection` is the connection mark.
    pub(crate) mark: u32,
    /// The packet mark at the last routing decision. Matters only for packets that the node sends.
    pub(crate) routed: u32,
    pub(crate) connection: u32,
    /// Whether the packet is a reply; otherwise it is the first packet of its connection.
    pub(crate) is_reply: bool,
    /// Table and chain of the rule that keeps the packet from being tracked.
    pub(crate) untracked_by: Option<String>,
    /// The marks that symroute's rules set; `None` if they ignore the connection.
    pub(crate) bound: Option<Bound>,
}

/// The marks with which symroute binds a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The mask of symroute's bits.
    pub(crate) field: u32,
    /// Bits of the packet mark of a request.
    pub(crate) mark: u32,
    /// Bits of the connection mark, and so of the packet mark of each reply.
    pub(crate) connection: u32,
    /// Whether the connection is marked after routing, as with iptables; otherwise in prerouting.
    pub(crate) is_late: bool,
}

/// A value that nftables loads into a register, in the register's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Mark,
    Connection,
    /// The conntrack state (`NF_CT_STATE_BIT`).
    State,
    /// The conntrack direction, `IP_CT_DIR_*`.
    Direction,
    /// Index of the interface. `InName` and `OutName` are names, padded to 16 bytes.
    In,
    Out,
    InName,
    OutName,
    /// `NFPROTO_*`.
    Family,
    Protocol,
    From(Family),
    To(Family),
    Port,
    /// Type of the source address, `RTN_LOCAL` or `RTN_UNICAST`. `ToKind` is that of the destination.
    FromKind,
    ToKind,
}

/// A field after `& mask ^ xor`. An empty mask means no change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub(crate) field: Field,
    pub(crate) mask: Vec<u8>,
    pub(crate) xor: Vec<u8>,
}

/// The text of a match that looks up the interface of the route back to the source.
pub(crate) const SOURCE_CHECK: &str = "fib saddr . iif oif";

/// A match of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// The concatenated fields begin with these bytes.
    Bytes(Vec<Loaded>, Vec<u8>),
    /// The concatenated fields are an element of the set.
    Among(Vec<Loaded>, Set),
    /// The name of the input interface. A name that ends in `+` is a prefix.
    In(String),
    Out(String),
    From(IpNetwork),
    To(IpNetwork),
    Protocol(u8),
    /// The first and last destination port of a range.
    Port(u16, u16),
    /// Several ranges of destination ports.
    Ports(Vec<(u16, u16)>),
    /// The destination is an address of this node; with `is_of_iif`, an address of the input interface.
    ToNode {
        is_of_iif: bool,
    },
    FromNode,
    Mark(MarkMatch),
    Connection(MarkMatch),
    /// Whether the first packet of a connection matches, and whether a reply matches.
    State {
        new: bool,
        established: bool,
    },
    /// Some packets match, at random or in turn.
    Chance,
    /// A match that is not understood, as the program prints it.
    Unknown(String),
}

/// A match, and whether it is negated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) is: Match,
    pub(crate) inverted: bool,
}

/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`, `(IP_CT_NEW)` and `NF_CT_STATE_UNTRACKED_BIT`, from
/// `linux/netfilter/nf_conntrack_common.h`.
const ESTABLISHED: u32 = 2;
const NEW: u32 = 8;
const UNTRACKED: u32 = 64;

/// A new value for a mark: `(kept & keep) ^ (other & take) ^ xor`. `kept` is its old value, `other` is the mark
/// of the other kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mix {
    pub(crate) keep: u32,
    pub(crate) take: u32,
    pub(crate) xor: u32,
}

impl Mix {
    pub(crate) fn apply(self, kept: u32, other: u32) -> u32 {
        kept & self.keep ^ other & self.take ^ self.xor
    }
}

/// The elements of a set or map of nftables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// Keys and their targets. In a set, the target is [`Target::Nothing`].
    pub(crate) elements: Vec<(Key, Target)>,
    /// Whether each key starts a range that ends before the next key.
    pub(crate) has_ranges: bool,
    /// Whether some elements can't be read: ranges of concatenated fields, or a catch-all element.
    pub(crate) is_unread: bool,
}

/// The key of an element. With `is_end`, the first key after a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_end: bool,
}

/// What a rule does with a packet that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The packet continues with the next part.
    Nothing,
    Jump(String),
    Goto(String),
    Return,
    Accept,
    Drop,
    Dnat {
        to: IpAddr,
        port: Option<u16>,
    },
    Snat(IpAddr),
    Masquerade,
    Mark(Mix),
    Connection(Mix),
    /// conntrack ignores the packet, which continues.
    Untrack,
    /// symroute's rules see the packet, which continues.
    Symroute,
    /// The target that the map has for these fields.
    Map(Vec<Loaded>, Set),
    /// One of these targets, at random.
    Choice(Vec<Target>),
    /// A target that is not understood and may change the packet.
    Unknown(String),
}

/// A part of a rule. A packet passes the parts in order, up to the first condition that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    If(Condition),
    Do(Target),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule(pub(crate) Vec<Part>);

/// The properties of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    /// Whether only the first packet of a connection passes the chain.
    pub(crate) is_nat: bool,
    /// Whether the policy is to drop packets without a verdict.
    pub(crate) drops: bool,
    /// Whether the kernel routes a packet again if the chain changed its mark (`nf_route_table_hook4`,
    /// `ipt_mangle_out`).
    pub(crate) reroutes: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Rule>,
}

/// A table with its chains by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// The name in messages, for example "iptables nat" or "nftables inet kube-proxy".
    pub(crate) name: String,
    /// `None` for both families.
    pub(crate) family: Option<Family>,
    pub(crate) chains: BTreeMap<String, Chain>,
}

impl Table {
    /// A table that stands for symroute's rules at these hooks and priorities.
    pub(crate) fn of_symroute(hooks: &[(Hook, i32)]) -> Self {
        let chain = |&(hook, priority): &(Hook, i32)| {
            let reroutes = hook == Hook::Output;
            let base = Base { hook, priority, is_nat: false, drops: false, reroutes };
            let rules = vec![Rule(vec![Part::Do(Target::Symroute)])];
            (format!("{hook:?}"), Chain { base: Some(base), rules })
        };
        let chains = hooks.iter().map(chain).collect();
        Self { name: "symroute".into(), family: None, chains }
    }
}

/// All tables of a node, and the reasons why some could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    pub(crate) tables: Vec<Table>,
    /// Services of IPVS, which redirects packets for the node itself.
    pub(crate) services: Vec<ipvs::Service>,
    pub(crate) unread: Vec<String>,
}
