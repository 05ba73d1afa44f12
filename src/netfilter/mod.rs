//! The rules that other programs have in netfilter, and what becomes of one packet that meets them: its marks,
//! and its destination and source after NAT.
//!
//! [`iptables`] reads what `iptables-save` prints, [`nftables`] what the kernel has of nftables, and [`walk`]
//! leads a packet through the chains of a hook (pure). Rules that choose by chance (`statistic`, `numgen`) lead
//! to several outcomes. A rule with a match that is not understood is passed over, and the outcome names it.

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

/// Where chains are called from (`NF_INET_*`).
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

/// A packet as its rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// The interfaces that it comes in by and leaves by.
    pub(crate) iif: Option<Interface>,
    pub(crate) oif: Option<Interface>,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// `IPPROTO_*`; none where it is not known.
    pub(crate) protocol: Option<u8>,
    /// The port that it is sent to, where the protocol has ports.
    pub(crate) port: Option<u16>,
    /// The packet mark, and the mark of its connection.
    pub(crate) mark: u32,
    /// The mark that the kernel has chosen its route by, of what the node sends.
    pub(crate) routed: u32,
    pub(crate) connection: u32,
    /// Whether it is an answer, and not the first packet of its connection.
    pub(crate) is_reply: bool,
    /// Table and chain of the rule that keeps it from being tracked.
    pub(crate) untracked_by: Option<String>,
    /// What symroute's rules give it; none where they leave its connection alone.
    pub(crate) bound: Option<Bound>,
}

/// How symroute binds a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The bits that are symroute's.
    pub(crate) field: u32,
    /// What a request gets.
    pub(crate) mark: u32,
    /// What its connection gets, and so each answer.
    pub(crate) connection: u32,
    /// Whether the connection gets it behind routing, as with iptables. Otherwise it does in prerouting.
    pub(crate) is_late: bool,
}

/// What nftables loads into a register, in the byte order that it has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Mark,
    Connection,
    /// `NF_CT_STATE_BIT` of what conntrack says of the packet.
    State,
    /// `IP_CT_DIR_*`
    Direction,
    /// Index and name of an interface. A name has 16 bytes.
    In,
    Out,
    InName,
    OutName,
    /// `NFPROTO_*` of the packet.
    Family,
    Protocol,
    From(Family),
    To(Family),
    Port,
    /// `RTN_*` of the address that the packet has: local or unicast.
    FromKind,
    ToKind,
}

/// A field after `& mask ^ xor`. An empty mask leaves it as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub(crate) field: Field,
    pub(crate) mask: Vec<u8>,
    pub(crate) xor: Vec<u8>,
}

/// How a rule is called that asks by which interface the way back to the source leads.
pub(crate) const SOURCE_CHECK: &str = "fib saddr . iif oif";

/// What a rule asks of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// These fields, one behind the other, begin with these bytes.
    Bytes(Vec<Loaded>, Vec<u8>),
    /// They are an element of a set.
    Among(Vec<Loaded>, Set),
    /// The interface's name, or with `+` behind it how the name begins.
    In(String),
    Out(String),
    From(IpNetwork),
    To(IpNetwork),
    Protocol(u8),
    /// The port that the packet is sent to, first and last.
    Port(u16, u16),
    /// The same, one of several ranges.
    Ports(Vec<(u16, u16)>),
    /// The packet is for an address of this node; with `here`, of the interface that it came in by.
    ToNode {
        here: bool,
    },
    FromNode,
    Mark(MarkMatch),
    Connection(MarkMatch),
    /// The first packet of a connection, an answer, or neither of them.
    State {
        new: bool,
        established: bool,
    },
    /// Some packets, by chance or by number.
    Chance,
    /// A match that is not understood, in the words of the program that prints it.
    Unknown(String),
}

/// A match, and whether the rule wants it or its contrary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) is: Match,
    pub(crate) inverted: bool,
}

/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`, `(IP_CT_NEW)` and `NF_CT_STATE_UNTRACKED_BIT` of
/// `linux/netfilter/nf_conntrack_common.h`.
const ESTABLISHED: u32 = 2;
const NEW: u32 = 8;
const UNTRACKED: u32 = 64;

/// How a mark is made: `(kept & keep) ^ (other & take) ^ xor`. `other` is the mark of the other kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mix {
    pub(crate) keep: u32,
    pub(crate) take: u32,
    pub(crate) xor: u32,
}

impl Mix {
    pub(crate) fn of(self, kept: u32, other: u32) -> u32 {
        kept & self.keep ^ other & self.take ^ self.xor
    }
}

/// The elements of a set or map of nftables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// Keys, with what they stand for: nothing in a set.
    pub(crate) elements: Vec<(Key, Target)>,
    /// Whether each key begins a range that ends before the next one.
    pub(crate) has_ranges: bool,
    /// Whether it has elements of a kind that is not read: ranges of several fields, or one for all the rest.
    pub(crate) is_unread: bool,
}

/// A key, or the first one behind a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) bytes: Vec<u8>,
    pub(crate) is_end: bool,
}

/// What a rule does with the packets that fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Goes on with the next rule.
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
    /// Goes on, and conntrack leaves the packet alone.
    Untrack,
    /// Goes on, and symroute's rules see the packet.
    Symroute,
    /// What the map has for these fields.
    Map(Vec<Loaded>, Set),
    /// One of these, by chance.
    Choice(Vec<Target>),
    /// One that is not understood and may change the packet.
    Unknown(String),
}

/// A part of a rule. They are met in order, up to the first condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    If(Condition),
    Do(Target),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule(pub(crate) Vec<Part>);

/// What a base chain hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    /// Whether only the first packet of a connection meets it.
    pub(crate) is_nat: bool,
    /// Whether it drops what no rule decides about.
    pub(crate) drops: bool,
    /// Whether a packet that has another mark behind it is routed again (`nf_route_table_hook4`,
    /// `ipt_mangle_out`).
    pub(crate) reroutes: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Rule>,
}

/// A table: its name, and its chains by theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// As a person names it: "iptables nat", "nftables inet kube-proxy".
    pub(crate) name: String,
    /// None: both.
    pub(crate) family: Option<Family>,
    pub(crate) chains: BTreeMap<String, Chain>,
}

impl Table {
    /// What symroute would have in these hooks, by priority.
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

/// All tables of a node, and what of them could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    pub(crate) tables: Vec<Table>,
    /// Those of IPVS, which act on packets for the node itself.
    pub(crate) services: Vec<ipvs::Service>,
    pub(crate) unread: Vec<String>,
}
