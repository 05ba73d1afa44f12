//! The ledger of marks: which program does what to which bits of the packet mark and of the
//! connection mark, and which of it clashes with our bits.
//!
//! [`read`] asks the kernel. What it gets becomes [`Entry`] values by pure functions: [`effect`]
//! follows the registers of an nftables rule, [`xtables`] knows the extensions of iptables,
//! [`legacy`] reads the text of `iptables-legacy-save`. [`judge`] holds the entries against our
//! field, and [`words`] prints them.

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

/// Which of the two marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// The mark of the packet (`skb->mark`).
    Packet,
    /// The mark of the connection (`nf_conn->mark`).
    Connection,
}

/// What is done to bits of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Does {
    /// Writes some bits and keeps the others.
    Sets,
    /// Sets some bits to zero and keeps the others.
    Clears,
    /// Writes all bits, so that whatever was there is lost.
    Overwrites,
    /// Writes bits of the packet mark into the connection mark.
    Saves,
    /// Writes bits of the connection mark into the packet mark.
    Restores,
    /// Looks at some bits.
    ComparesMasked,
    /// Looks at the whole mark.
    ComparesWhole,
    /// Gives the mark to packets that the kernel sends as answers, or to sockets.
    Copies,
    /// Has the reverse path filter look the mark up.
    LooksUp,
    /// May do anything.
    Unknown,
}

/// One thing that is done to one mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    pub(crate) mark: Mark,
    pub(crate) does: Does,
    /// The bits that are written or looked at.
    pub(crate) bits: u32,
    /// The value that is written or compared with, where it is a constant.
    pub(crate) value: Option<u32>,
}

/// Where packets meet a chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hook {
    pub(crate) point: Point,
    /// Lower comes first.
    pub(crate) priority: i32,
    pub(crate) kind: ChainKind,
}

/// What kind of packets a chain gets, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChainKind {
    /// All packets.
    Filter,
    /// All packets. The kernel routes one again whose mark has changed here.
    Route,
    /// First packets of connections, as long as no other chain has translated them.
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
    /// Hooks of families arp and bridge, which no routed packet meets as such.
    Other(u32),
}

/// Where an entry stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A chain of nftables, or one of iptables-nft, which lies in a table of the same name.
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
    /// An ip rule; an inverted rule takes what the comparison does not hold for.
    Rule {
        family: Family,
        priority: u32,
        inverted: bool,
    },
    /// A device of `WireGuard`.
    WireGuard {
        device: String,
    },
    /// A policy or a state of `IPsec`.
    Xfrm {
        what: String,
    },
    /// A filter or an action of tc.
    Tc {
        device: String,
        what: String,
    },
    Sysctl {
        name: String,
    },
}

/// What a program does to marks in one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// The program, or the table or chain where no program is known.
    pub(crate) owner: String,
    /// Whether it is symroute's.
    pub(crate) ours: bool,
    pub(crate) place: Place,
    /// Where packets come to it; empty for a chain that no base chain leads to.
    pub(crate) hooks: Vec<Hook>,
    pub(crate) does: Use,
    /// The comment of the rule, or what else is worth knowing.
    pub(crate) comment: Option<String>,
}

/// What could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unseen {
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) remedy: String,
}

/// Everything that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) entries: Vec<Entry>,
    pub(crate) unseen: Vec<Unseen>,
}
