//! The ledger of marks: which program uses which bits of the packet mark and of the connection mark, and how.
//!
//! [`read`] asks the kernel. Pure functions turn the answers into [`Entry`] values: [`effect`] interprets the
//! expressions of nftables rules, [`xtables`] knows the extensions of iptables, [`legacy`] parses the output of
//! `iptables-legacy-save`. [`judge`] finds clashes with symroute's bits, and [`words`] prints the ledger.

pub(crate) mod effect;
pub(crate) mod judge;
pub(crate) mod legacy;
pub(crate) mod nftables;
pub(crate) mod owners;
pub(crate) mod read;
pub(crate) mod sysctls;
pub(crate) mod tc;
pub(crate) mod wireguard;
pub(crate) mod words;
pub(crate) mod xfrm;
pub(crate) mod xtables;

use crate::model::Family;

/// One of the two kinds of marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// The packet mark (`skb->mark`).
    Packet,
    /// The connection mark (`nf_conn->mark`).
    Connection,
}

/// What a program does to the bits of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// Writes some bits and keeps the others.
    Sets,
    /// Sets some bits to zero and keeps the others.
    Clears,
    /// Writes all bits, so that the old value is lost.
    Overwrites,
    /// Writes bits of the packet mark into the connection mark.
    Saves,
    /// Writes bits of the connection mark into the packet mark.
    Restores,
    /// Compares some bits.
    ComparesMasked,
    /// Compares the whole mark.
    ComparesWhole,
    /// Copies the mark to the kernel's own answers, or to sockets.
    Copies,
    /// Makes the reverse path filter look up routes with the mark.
    LooksUp,
    /// A BPF program, which may do anything to the mark.
    Unknown,
}

/// One use of one mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    pub(crate) mark: Mark,
    pub(crate) action: Action,
    /// The bits that are written or compared.
    pub(crate) bits: u32,
    /// The value that is written or compared with, if it is a constant.
    pub(crate) value: Option<u32>,
}

/// Where a base chain gets packets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hook {
    pub(crate) point: Point,
    /// Chains with lower priorities run first.
    pub(crate) priority: i32,
    pub(crate) kind: ChainKind,
}

/// The type of a base chain: which packets it gets, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChainKind {
    /// All packets.
    Filter,
    /// All packets. The kernel routes a packet again if the chain changed its mark.
    Route,
    /// Only the first packet of a connection, until a chain has translated the connection.
    Nat,
}

/// A point on a packet's way through the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Egress,
    /// Hooks of the families arp and bridge, which routed packets do not pass.
    Other(u32),
}

/// Where an entry was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A chain of nftables, or a chain of iptables-nft, whose table has the same name in nftables.
    Nftables {
        family: &'static str,
        table: String,
        chain: String,
    },
    /// A chain of iptables-legacy.
    Legacy {
        family: Family,
        table: String,
        chain: String,
    },
    /// An ip rule. An inverted rule matches packets that fail the comparison.
    Rule {
        family: Family,
        priority: u32,
        inverted: bool,
    },
    /// A `WireGuard` device.
    WireGuard {
        device: String,
    },
    /// An `IPsec` policy or state.
    Xfrm {
        what: String,
    },
    /// A filter or action of tc.
    Tc {
        device: String,
        what: String,
    },
    Sysctl {
        name: String,
    },
}

/// One use of a mark by a program, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// The program; the table or chain if the program is unknown.
    pub(crate) owner: String,
    /// Whether symroute created it.
    pub(crate) ours: bool,
    pub(crate) place: Place,
    /// Hooks through which packets reach it; empty for a chain that no base chain leads to, and for places
    /// without hooks.
    pub(crate) hooks: Vec<Hook>,
    pub(crate) usage: Use,
    /// The comment of the rule, or other useful text.
    pub(crate) comment: Option<String>,
}

/// A part of the node that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unseen {
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) remedy: String,
}

/// All uses of marks, and the parts that could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) entries: Vec<Entry>,
    pub(crate) unseen: Vec<Unseen>,
}
