//! The nftables table of a trace. Its rules set only `meta nftrace`. Its chains are the points that
//! a packet passes: the kernel sends a message at the end of each chain.
//!
//! The table has the flag "owner": the kernel removes it with the socket that created it, also
//! after SIGKILL (`nft_rcv_nl_event` of `net/netfilter/nf_tables_api.c`, Linux 5.12).

use std::fs;
use std::net::IpAddr;

use super::Flow;
use crate::backend::nftables::encode::{compare, meta, named, payload};
use crate::backend::nftables::rules::Side;
use crate::backend::nftables::table::{batch_edge, kind};
use crate::model::Family;
use crate::names::LEGACY_TABLES;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, find, string};
use crate::netlink::{Error, Socket};

/// Size of `struct nfgenmsg` in bytes.
const NFGENMSG: usize = 4;
/// `struct nfgenmsg` of a message about a table of family inet.
const INET: [u8; NFGENMSG] = [NFPROTO_INET, 0, 0, 0];

/// Point of the node that a packet passes: one chain of the trace's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    /// Before all other chains; its rules match packets with the flow's addresses.
    PreroutingFirst,
    /// After conntrack; its rule matches packets of the flow's connections.
    PreroutingTracked,
    /// After all DNAT and marks.
    PreroutingLast,
    /// After all input chains, for a packet to the node itself.
    InputLast,
    /// Before all forward chains, for a packet to another interface.
    Forward,
    OutputFirst,
    OutputTracked,
    OutputLast,
    /// After all chains, on the way to the interface.
    PostroutingLast,
}

/// All points: name of the chain, hook, priority. Conntrack is at -200 (`NF_IP_PRI_CONNTRACK`).
const POINTS: [(Point, &str, u32, i32); 9] = [
    (Point::PreroutingFirst, "prerouting-first", NF_INET_PRE_ROUTING, FIRST),
    (Point::PreroutingTracked, "prerouting-tracked", NF_INET_PRE_ROUTING, TRACKED),
    (Point::PreroutingLast, "prerouting-last", NF_INET_PRE_ROUTING, LAST),
    (Point::InputLast, "input-last", NF_INET_LOCAL_IN, LAST),
    (Point::Forward, "forward", NF_INET_FORWARD, FIRST),
    (Point::OutputFirst, "output-first", NF_INET_LOCAL_OUT, FIRST),
    (Point::OutputTracked, "output-tracked", NF_INET_LOCAL_OUT, TRACKED),
    (Point::OutputLast, "output-last", NF_INET_LOCAL_OUT, LAST),
    (Point::PostroutingLast, "postrouting-last", NF_INET_POST_ROUTING, LAST),
];
const FIRST: i32 = -1000;
const TRACKED: i32 = -199;
const LAST: i32 = 1000;

impl Point {
    /// The point of this chain of a trace's table.
    pub(crate) fn of(chain: &str) -> Option<Self> {
        POINTS.iter().find(|(_, name, ..)| *name == chain).map(|(point, ..)| *point)
    }

    /// Whether rules of this chain ask for the messages of a packet.
    pub(crate) fn asks(self) -> bool {
        self.is_first() || self.is_tracked()
    }

    pub(crate) fn is_prerouting(self) -> bool {
        matches!(self, Self::PreroutingFirst | Self::PreroutingTracked | Self::PreroutingLast)
    }

    fn is_first(self) -> bool {
        matches!(self, Self::PreroutingFirst | Self::OutputFirst)
    }

    fn is_tracked(self) -> bool {
        matches!(self, Self::PreroutingTracked | Self::OutputTracked)
    }
}

/// Creates the table. The kernel removes it when the socket closes.
pub(crate) fn install(socket: &mut Socket, table: &str, flow: &Flow) -> Result<(), Error> {
    let has_nat = has_nat(socket)?;
    socket.batch(&mut batch(table, flow, has_nat))
}

/// Whether NAT may happen in this network namespace. Only then the table has rules with `ct`,
/// because the kernel starts to track connections for such a rule.
fn has_nat(socket: &mut Socket) -> Result<bool, Error> {
    let mut request = Writer::with_capacity(32);
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.message(kind(NFT_MSG_GETCHAIN), flags, &[NFPROTO_UNSPEC, 0, 0, 0]);
    let nat = socket.dump(&mut request, |body| {
        let kind = find(body.get(NFGENMSG..)?, NFTA_CHAIN_TYPE).map(string)?;
        (kind == "nat").then_some(())
    })?;
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let of_legacy = [Family::V4, Family::V6]
        .iter()
        .any(|family| read(LEGACY_TABLES.of(*family)).lines().any(|table| table == "nat"));
    // IPVS does NAT without a nat chain, but tracks connections.
    let tracked = read("/proc/sys/net/netfilter/nf_conntrack_count");
    Ok(!nat.is_empty() || of_legacy || tracked.trim().parse().is_ok_and(|count: u64| count > 0))
}

fn batch(table: &str, flow: &Flow, has_nat: bool) -> Writer {
    let mut w = Writer::with_capacity(4096);
    batch_edge(&mut w, NFNL_MSG_BATCH_BEGIN);
    let create = NLM_F_REQUEST | NLM_F_CREATE;
    w.message(kind(NFT_MSG_NEWTABLE), create | NLM_F_EXCL, &INET);
    w.str(NFTA_TABLE_NAME, table);
    w.be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
    for (point, chain, hook, priority) in POINTS {
        if point.is_tracked() && !has_nat {
            continue;
        }
        w.message(kind(NFT_MSG_NEWCHAIN), create, &INET);
        w.str(NFTA_CHAIN_TABLE, table);
        w.str(NFTA_CHAIN_NAME, chain);
        w.nest(NFTA_CHAIN_HOOK, |w| {
            w.be32(NFTA_HOOK_HOOKNUM, hook);
            w.be_i32(NFTA_HOOK_PRIORITY, priority);
        });
        w.be_i32(NFTA_CHAIN_POLICY, NF_ACCEPT);
        w.str(NFTA_CHAIN_TYPE, "filter");
        let mut rule = |fill: &dyn Fn(&mut Writer)| {
            w.message(kind(NFT_MSG_NEWRULE), create | NLM_F_APPEND, &INET);
            w.str(NFTA_RULE_TABLE, table);
            w.str(NFTA_RULE_CHAIN, chain);
            w.nest(NFTA_RULE_EXPRESSIONS, |w| {
                fill(w);
                ask(w);
            });
        };
        if point.is_first() {
            rule(&|w| headers(w, flow, false));
            rule(&|w| headers(w, flow, true));
        } else if point.is_tracked() {
            rule(&|w| connection(w, flow));
        }
    }
    w.add_flags(NLM_F_ACK);
    batch_edge(&mut w, NFNL_MSG_BATCH_END);
    w
}

/// `meta nftrace set 1`
fn ask(w: &mut Writer) {
    named(w, "immediate", |w| {
        w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
        w.nest(NFTA_IMMEDIATE_DATA, |w| w.attr(NFTA_DATA_VALUE, &[1]));
    });
    named(w, "meta", |w| {
        w.be32(NFTA_META_KEY, NFT_META_NFTRACE);
        w.be32(NFTA_META_SREG, NFT_REG_1);
    });
}

fn equals(w: &mut Writer, bytes: &[u8]) {
    compare(w, NFT_CMP_EQ, bytes);
}

fn family(w: &mut Writer, family: Family) {
    meta(w, NFT_META_NFPROTO);
    equals(w, &[if family == Family::V4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]);
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Matches a packet with the flow's addresses and ports. `reply` swaps source and destination.
fn headers(w: &mut Writer, flow: &Flow, reply: bool) {
    let of = Family::of(flow.from);
    family(w, of);
    let ends = [(flow.from, flow.from_port), (flow.to, flow.to_port)];
    let [source, destination] = if reply { [ends[1], ends[0]] } else { ends };
    payload(w, of, Side::Source);
    equals(w, &octets(source.0));
    payload(w, of, Side::Destination);
    equals(w, &octets(destination.0));
    if let Some(protocol) = flow.protocol {
        meta(w, NFT_META_L4PROTO);
        equals(w, &[protocol]);
    }
    for (offset, port) in [(0, source.1), (2, destination.1)] {
        let Some(port) = port else { continue };
        named(w, "payload", |w| {
            w.be32(NFTA_PAYLOAD_DREG, NFT_REG_1);
            w.be32(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_TRANSPORT_HEADER);
            w.be32(NFTA_PAYLOAD_OFFSET, offset);
            w.be32(NFTA_PAYLOAD_LEN, 2);
        });
        equals(w, &port.to_be_bytes());
    }
}

/// Matches a packet whose connection began with the flow's addresses and ports.
fn connection(w: &mut Writer, flow: &Flow) {
    let of = Family::of(flow.from);
    family(w, of);
    let original = |w: &mut Writer, key: u32, bytes: &[u8]| {
        named(w, "ct", |w| {
            w.be32(NFTA_CT_DREG, NFT_REG_1);
            w.be32(NFTA_CT_KEY, key);
            w.attr(NFTA_CT_DIRECTION, &[IP_CT_DIR_ORIGINAL]);
        });
        equals(w, bytes);
    };
    let (source, destination) = match of {
        Family::V4 => (NFT_CT_SRC_IP, NFT_CT_DST_IP),
        Family::V6 => (NFT_CT_SRC_IP6, NFT_CT_DST_IP6),
    };
    original(w, source, &octets(flow.from));
    original(w, destination, &octets(flow.to));
    if let Some(protocol) = flow.protocol {
        original(w, NFT_CT_PROTOCOL, &[protocol]);
    }
    for (key, port) in [(NFT_CT_PROTO_SRC, flow.from_port), (NFT_CT_PROTO_DST, flow.to_port)] {
        if let Some(port) = port {
            original(w, key, &port.to_be_bytes());
        }
    }
}
