//! Encodes rules and sets as netlink attributes of `nf_tables`.

use super::rules::{Expression, Rule, Set, Side, Type};
use crate::model::Family;
use crate::netlink::uapi::*;
use crate::netlink::wire::Writer;

/// The numbers that describe a set to the kernel and to nft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetNumbers {
    /// `NFT_SET_*`
    pub(crate) flags: u32,
    /// nft's number of the key's type (`enum datatypes` of nftables).
    pub(crate) key_type: u32,
    /// Length of the key in bytes.
    pub(crate) key_len: u32,
    /// nft's number of the data's type and its length in bytes; `None` for a set.
    pub(crate) data: Option<(u32, u32)>,
}

/// nft's number of a type and its size in bytes.
fn type_numbers(kind: Type) -> (u32, u32) {
    match kind {
        Type::Ipv4 => (7, 4),
        Type::Ipv6 => (8, 16),
        Type::Mark => (19, 4),
        Type::Interface => (20, 4),
        // Each part of a concatenation takes six bits of the number.
        Type::InterfaceIpv4 => (20 << 6 | 7, 8),
        Type::InterfaceIpv6 => (20 << 6 | 8, 20),
        Type::InterfaceMac => (20 << 6 | 9, 12),
        Type::Verdict => (NFT_DATA_VERDICT, 16),
    }
}

/// The numbers that describe a set on the wire.
pub(crate) fn set_numbers(set: &Set) -> SetNumbers {
    let (key_type, key_len) = type_numbers(set.key);
    let data = set.data.map(type_numbers);
    SetNumbers { flags: if data.is_some() { NFT_SET_MAP } else { 0 }, key_type, key_len, data }
}

/// User data of a set: the byte orders of key and data, without which `nft list` prints the
/// elements wrong. A verdict has no byte order: nft 1.0.6 aborts on one. Nor has a concatenation,
/// whose parts have their own.
///
/// Format (libnftnl): type u8, length u8, value. The values are u32 in host byte order.
pub(crate) fn set_userdata(set: &Set) -> Vec<u8> {
    const KEY_BYTE_ORDER: u8 = 0;
    const DATA_BYTE_ORDER: u8 = 1;
    const HOST: u32 = 1;
    const NETWORK: u32 = 2;
    let order = |kind| match kind {
        Type::Ipv4 | Type::Ipv6 => Some(NETWORK),
        Type::Mark | Type::Interface => Some(HOST),
        Type::InterfaceIpv4 | Type::InterfaceIpv6 | Type::InterfaceMac | Type::Verdict => None,
    };
    let mut out = Vec::new();
    for (kind, order) in
        [(KEY_BYTE_ORDER, order(set.key)), (DATA_BYTE_ORDER, set.data.and_then(order))]
    {
        if let Some(order) = order {
            out.extend_from_slice(&[kind, 4]);
            out.extend_from_slice(&order.to_ne_bytes());
        }
    }
    out
}

/// Encodes the expressions of a rule as the attribute `NFTA_RULE_EXPRESSIONS`.
pub(crate) fn rule_body(rule: &Rule) -> Writer {
    let mut w = Writer::with_capacity(512);
    w.nest(NFTA_RULE_EXPRESSIONS, |w| {
        for expression in &rule.expressions {
            write_expression(w, expression);
        }
    });
    w
}

/// Writes an expression of this name, with the attributes that `fill` writes.
pub(crate) fn named(w: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
    w.nest(NFTA_LIST_ELEM, |w| {
        w.str(NFTA_EXPR_NAME, name);
        w.nest(NFTA_EXPR_DATA, fill);
    });
}

fn write_expression(w: &mut Writer, expression: &Expression) {
    match expression {
        Expression::Iif => meta(w, NFT_META_IIF),
        Expression::Oif => meta(w, NFT_META_OIF),
        // After the destination in `struct ethhdr`. A device without such a header ends the rule.
        Expression::SourceMac => behind_interface(w, NFT_PAYLOAD_LL_HEADER, 6, 6),
        Expression::PacketMark => meta(w, NFT_META_MARK),
        Expression::ConntrackMark => ct(w, NFT_CT_MARK),
        Expression::ConntrackStatus => ct(w, NFT_CT_STATUS),
        Expression::DirectionIs { reply } => {
            ct(w, NFT_CT_DIRECTION);
            compare(w, NFT_CMP_EQ, &[if *reply { IP_CT_DIR_REPLY } else { IP_CT_DIR_ORIGINAL }]);
        }
        Expression::ProtocolIs(protocol) => {
            meta(w, NFT_META_L4PROTO);
            compare(w, NFT_CMP_EQ, &[*protocol]);
        }
        Expression::IcmpOf(family) => {
            let protocol = if *family == Family::V4 { IPPROTO_ICMP } else { IPPROTO_ICMPV6 };
            meta(w, NFT_META_L4PROTO);
            compare(w, NFT_CMP_EQ, &[protocol]);
        }
        Expression::Related => compare_state(w, NF_CT_STATE_RELATED, NFT_CMP_NEQ),
        Expression::NotRelated => compare_state(w, NF_CT_STATE_RELATED, NFT_CMP_EQ),
        Expression::NoConnection => compare_state(w, NF_CT_STATE_NONE, NFT_CMP_NEQ),
        Expression::FamilyIs(family) => {
            let number = if *family == Family::V4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
            meta(w, NFT_META_NFPROTO);
            compare(w, NFT_CMP_EQ, &[number]);
        }
        Expression::LoadAddress(family, side) => payload(w, *family, *side),
        Expression::ConntrackAddress { family, reply } => {
            conntrack_address(w, NFT_REG32_01, *family, *reply);
        }
        Expression::CalledAddress(family) => conntrack_address(w, NFT_REG_1, *family, false),
        // After the fixed part, two Ethernet addresses and one IPv4 address (`arp_process`,
        // `net/ipv4/arp.c`).
        Expression::ArpTarget => behind_interface(w, NFT_PAYLOAD_NETWORK_HEADER, 24, 4),
        Expression::FibInterface(side) => fib(w, *side, NFT_FIB_RESULT_OIF, 0),
        Expression::FibInterfaceByMark(side) => {
            fib(w, *side, NFT_FIB_RESULT_OIF, NFTA_FIB_F_MARK);
        }
        Expression::FibMissing { side, by_mark } => {
            let mark = if *by_mark { NFTA_FIB_F_MARK } else { 0 };
            fib(w, *side, NFT_FIB_RESULT_OIF, NFTA_FIB_F_PRESENT | mark);
            compare(w, NFT_CMP_EQ, &[0; 4]);
        }
        Expression::FibType { side, is_local } => {
            let comparison = if *is_local { NFT_CMP_EQ } else { NFT_CMP_NEQ };
            fib(w, *side, NFT_FIB_RESULT_ADDRTYPE, 0);
            compare(w, comparison, &u32::from(RTN_LOCAL).to_ne_bytes());
        }
        Expression::Bits { mask, xor } => {
            bitwise(w, &mask.to_ne_bytes(), &xor.to_ne_bytes());
        }
        Expression::AddressBits(mask) => bitwise(w, mask, &vec![0; mask.len()]),
        Expression::Equals(bytes) => compare(w, NFT_CMP_EQ, bytes),
        Expression::Differs(bytes) => compare(w, NFT_CMP_NEQ, bytes),
        Expression::InSet { set, not } => lookup(w, set, *not, false),
        Expression::VerdictMap(map) => lookup(w, map, false, true),
        Expression::Number(number) => named(w, "immediate", |w| {
            w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
            w.nest(NFTA_IMMEDIATE_DATA, |w| w.attr(NFTA_DATA_VALUE, &number.to_ne_bytes()));
        }),
        Expression::SetPacketMark => named(w, "meta", |w| {
            w.be32(NFTA_META_KEY, NFT_META_MARK);
            w.be32(NFTA_META_SREG, NFT_REG_1);
        }),
        Expression::SetConntrackMark => named(w, "ct", |w| {
            w.be32(NFTA_CT_KEY, NFT_CT_MARK);
            w.be32(NFTA_CT_SREG, NFT_REG_1);
        }),
        // Without numbers the counter starts at zero.
        Expression::Counter => named(w, "counter", |_| {}),
        Expression::OneIn(number) => {
            meta(w, NFT_META_PRANDOM);
            // Big endian, as nft reads the random number.
            bitwise(w, &(number - 1).to_be_bytes(), &[0; 4]);
            compare(w, NFT_CMP_EQ, &[0; 4]);
        }
        Expression::Offload(flowtable) => {
            named(w, "flow_offload", |w| w.str(NFTA_FLOW_TABLE_NAME, flowtable));
        }
        Expression::Goto(chain) => immediate(w, |w| write_goto(w, chain)),
        Expression::Return => immediate(w, |w| write_verdict(w, NFT_RETURN)),
        Expression::Accept => immediate(w, |w| write_verdict(w, NF_ACCEPT)),
    }
}

fn write_verdict(w: &mut Writer, code: i32) {
    w.nest(NFTA_DATA_VERDICT, |w| w.be_i32(NFTA_VERDICT_CODE, code));
}

/// Writes a verdict that goes to a chain, for a rule or a map element.
pub(crate) fn write_goto(w: &mut Writer, chain: &str) {
    w.nest(NFTA_DATA_VERDICT, |w| {
        w.be_i32(NFTA_VERDICT_CODE, NFT_GOTO);
        w.str(NFTA_VERDICT_CHAIN, chain);
    });
}

/// Loads a fact about the packet (`NFT_META_*`) into register 1.
pub(crate) fn meta(w: &mut Writer, key: u32) {
    named(w, "meta", |w| {
        w.be32(NFTA_META_DREG, NFT_REG_1);
        w.be32(NFTA_META_KEY, key);
    });
}

fn ct(w: &mut Writer, key: u32) {
    named(w, "ct", |w| {
        w.be32(NFTA_CT_DREG, NFT_REG_1);
        w.be32(NFTA_CT_KEY, key);
    });
}

/// Loads the destination of a direction of the connection. `register`: [`NFT_REG32_01`] if an
/// interface is before it in the same key.
fn conntrack_address(w: &mut Writer, register: u32, family: Family, reply: bool) {
    let key = if family == Family::V4 { NFT_CT_DST_IP } else { NFT_CT_DST_IP6 };
    named(w, "ct", |w| {
        w.be32(NFTA_CT_DREG, register);
        w.be32(NFTA_CT_KEY, key);
        w.attr(NFTA_CT_DIRECTION, &[if reply { IP_CT_DIR_REPLY } else { IP_CT_DIR_ORIGINAL }]);
    });
}

/// Compares these bits of the connection's state with 0.
fn compare_state(w: &mut Writer, bits: u32, comparison: u32) {
    ct(w, NFT_CT_STATE);
    bitwise(w, &bits.to_ne_bytes(), &[0; 4]);
    compare(w, comparison, &[0; 4]);
}

/// Continues the rule if register 1 holds these bytes (`NFT_CMP_EQ`), or others (`NFT_CMP_NEQ`).
pub(crate) fn compare(w: &mut Writer, op: u32, bytes: &[u8]) {
    named(w, "cmp", |w| {
        w.be32(NFTA_CMP_SREG, NFT_REG_1);
        w.be32(NFTA_CMP_OP, op);
        w.nest(NFTA_CMP_DATA, |w| w.attr(NFTA_DATA_VALUE, bytes));
    });
}

fn bitwise(w: &mut Writer, mask: &[u8], xor: &[u8]) {
    named(w, "bitwise", |w| {
        w.be32(NFTA_BITWISE_SREG, NFT_REG_1);
        w.be32(NFTA_BITWISE_DREG, NFT_REG_1);
        w.be32(NFTA_BITWISE_LEN, if mask.len() == 16 { 16 } else { 4 });
        w.nest(NFTA_BITWISE_MASK, |w| w.attr(NFTA_DATA_VALUE, mask));
        w.nest(NFTA_BITWISE_XOR, |w| w.attr(NFTA_DATA_VALUE, xor));
    });
}

fn lookup(w: &mut Writer, set: &str, not: bool, verdict: bool) {
    named(w, "lookup", |w| {
        w.str(NFTA_LOOKUP_SET, set);
        w.be32(NFTA_LOOKUP_SREG, NFT_REG_1);
        if verdict {
            w.be32(NFTA_LOOKUP_DREG, NFT_REG_VERDICT);
        }
        if not {
            w.be32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
        }
    });
}

/// Loads an address of the packet into register 1. Offsets: `struct iphdr`, `struct ipv6hdr`.
pub(crate) fn payload(w: &mut Writer, family: Family, side: Side) {
    let (offset, len) = match (family, side) {
        (Family::V4, Side::Source) => (12, 4),
        (Family::V4, Side::Destination) => (16, 4),
        (Family::V6, Side::Source) => (8, 16),
        (Family::V6, Side::Destination) => (24, 16),
    };
    named(w, "payload", |w| {
        w.be32(NFTA_PAYLOAD_DREG, NFT_REG_1);
        w.be32(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
        w.be32(NFTA_PAYLOAD_OFFSET, offset);
        w.be32(NFTA_PAYLOAD_LEN, len);
    });
}

/// Loads bytes of the packet into the register after that of an interface, so that both form one
/// key.
fn behind_interface(w: &mut Writer, base: u32, offset: u32, len: u32) {
    named(w, "payload", |w| {
        w.be32(NFTA_PAYLOAD_DREG, NFT_REG32_01);
        w.be32(NFTA_PAYLOAD_BASE, base);
        w.be32(NFTA_PAYLOAD_OFFSET, offset);
        w.be32(NFTA_PAYLOAD_LEN, len);
    });
}

fn fib(w: &mut Writer, side: Side, result: u32, flags: u32) {
    let side = if side == Side::Source { NFTA_FIB_F_SADDR } else { NFTA_FIB_F_DADDR };
    named(w, "fib", |w| {
        w.be32(NFTA_FIB_DREG, NFT_REG_1);
        w.be32(NFTA_FIB_RESULT, result);
        w.be32(NFTA_FIB_FLAGS, side | flags);
    });
}

fn immediate(w: &mut Writer, verdict: impl FnOnce(&mut Writer)) {
    named(w, "immediate", |w| {
        w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
        w.nest(NFTA_IMMEDIATE_DATA, verdict);
    });
}
