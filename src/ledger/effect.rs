//! What the expressions of an nftables rule do to marks: a small interpreter that tracks the contents of
//! registers.
//!
//! Layouts: `include/uapi/linux/netfilter/nf_tables.h`.

use std::collections::BTreeMap;

use super::{Action, Mark, Use, xtables};
use crate::netlink::uapi::*;
use crate::netlink::wire::{attrs, be_i32_at, be32_at, find, string, u32_at};

/// Bytes of one 32-bit register.
const WORD: usize = 4;

/// Where each bit of a 32-bit value comes from. A bit may have several sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Value {
    /// Bits of the packet mark.
    packet: u32,
    /// Bits of the connection mark.
    connection: u32,
    /// Bits that a constant sets or inverts.
    constant: u32,
    /// Bits from any other source.
    unknown: u32,
}

impl Value {
    const UNKNOWN: Self = Self { packet: 0, connection: 0, constant: 0, unknown: u32::MAX };

    fn of(mark: Mark) -> Self {
        match mark {
            Mark::Packet => Self { packet: u32::MAX, ..Self::default() },
            Mark::Connection => Self { connection: u32::MAX, ..Self::default() },
        }
    }

    fn constant(constant: u32) -> Self {
        Self { constant, ..Self::default() }
    }

    fn masked(self, mask: u32) -> Self {
        Self {
            packet: self.packet & mask,
            connection: self.connection & mask,
            constant: self.constant & mask,
            unknown: self.unknown & mask,
        }
    }

    /// Bits that may be 1.
    fn any(self) -> u32 {
        self.packet | self.connection | self.constant | self.unknown
    }

    fn xor(self, other: Self) -> Self {
        Self {
            packet: self.packet | other.packet,
            connection: self.connection | other.connection,
            constant: self.constant ^ other.constant,
            unknown: self.unknown | other.unknown,
        }
    }

    fn or(self, other: Self) -> Self {
        Self { constant: self.constant | other.constant, ..self.xor(other) }
    }

    fn and(self, other: Self) -> Self {
        let both = self.any() & other.any();
        let constant = self.constant & other.constant;
        Self { constant, ..self.or(other).masked(both) }
    }

    /// The effect of writing this value into a mark; empty if the mark keeps its value.
    fn written_to(self, mark: Mark) -> Vec<Use> {
        let (own, other) = match mark {
            Mark::Packet => (self.packet, self.connection),
            Mark::Connection => (self.connection, self.packet),
        };
        let bits = !(own & !(other | self.constant | self.unknown));
        let constant = (self.unknown == 0).then_some(self.constant);
        xtables::merged(mark, bits, other, constant)
    }

    /// The effect of comparing this value; `None` if no bit of it comes from a mark.
    fn compared(self, with: Option<u32>) -> Option<Use> {
        let (mark, bits) = match (self.packet, self.connection) {
            (0, 0) => return None,
            (bits @ 1.., _) => (Mark::Packet, bits),
            (_, bits) => (Mark::Connection, bits),
        };
        let action = if bits == u32::MAX { Action::ComparesWhole } else { Action::ComparesMasked };
        Some(Use { mark, action, bits, value: with })
    }
}

/// Uses of marks by a rule, and the chains that the rule leads to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Effect {
    pub(crate) uses: Vec<Use>,
    /// Chains that the rule jumps or goes to.
    pub(crate) chains: Vec<String>,
    /// Verdict maps that choose further chains.
    pub(crate) maps: Vec<String>,
    /// The text of the iptables match `comment`.
    pub(crate) comment: Option<String>,
}

/// Interprets the expressions of a rule, the payload of `NFTA_RULE_EXPRESSIONS`.
pub(crate) fn of_rule(expressions: &[u8]) -> Effect {
    let mut machine = Machine::default();
    for (_, expression) in attrs(expressions) {
        let name = find(expression, NFTA_EXPR_NAME).map(string).unwrap_or_default();
        let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
        // An expression that can't be parsed counts as one without marks.
        let _ = machine.step(&name, data);
    }
    machine.effect
}

#[derive(Debug, Default)]
struct Machine {
    /// The value in each 32-bit word of the registers; an absent word has no bits of a mark.
    words: BTreeMap<u32, Value>,
    effect: Effect,
}

/// The first 32-bit word of a register. Each of the four 16-byte registers overlaps four 4-byte registers.
fn word(register: u32) -> u32 {
    if register < NFT_REG32_01 - 1 {
        register.saturating_sub(1) * 4
    } else {
        register - (NFT_REG32_01 - 1)
    }
}

impl Machine {
    fn load(&mut self, register: u32, value: Value) {
        self.words.insert(word(register), value);
    }

    fn held(&self, register: u32) -> Value {
        self.words.get(&word(register)).copied().unwrap_or(Value::UNKNOWN)
    }

    fn note(&mut self, what: impl IntoIterator<Item = Use>) {
        self.effect.uses.extend(what);
    }

    fn step(&mut self, name: &str, data: &[u8]) -> Option<()> {
        let number = |attr| find(data, attr).and_then(|payload| be32_at(payload, 0));
        match name {
            "meta" => {
                let is_mark = number(NFTA_META_KEY)? == NFT_META_MARK;
                let (to, from) = (number(NFTA_META_DREG), number(NFTA_META_SREG));
                self.load_or_write(is_mark.then_some(Mark::Packet), to, from);
            }
            "ct" => {
                let is_mark = number(NFTA_CT_KEY)? == NFT_CT_MARK;
                let (to, from) = (number(NFTA_CT_DREG), number(NFTA_CT_SREG));
                self.load_or_write(is_mark.then_some(Mark::Connection), to, from);
            }
            "bitwise" => self.bitwise(data)?,
            "cmp" => {
                let bytes = find(find(data, NFTA_CMP_DATA)?, NFTA_DATA_VALUE)?;
                let equals = [NFT_CMP_EQ, NFT_CMP_NEQ].contains(&number(NFTA_CMP_OP)?);
                let with = u32_at(bytes, 0).filter(|_| equals);
                self.note(self.held(number(NFTA_CMP_SREG)?).compared(with));
            }
            "range" => self.note(self.held(number(NFTA_RANGE_SREG)?).compared(None)),
            "lookup" => {
                self.note(self.held(number(NFTA_LOOKUP_SREG)?).compared(None));
                match number(NFTA_LOOKUP_DREG) {
                    Some(NFT_REG_VERDICT) => {
                        self.effect.maps.push(find(data, NFTA_LOOKUP_SET).map(string)?);
                    }
                    Some(register) => self.load(register, Value::UNKNOWN),
                    None => {}
                }
            }
            "immediate" => self.immediate(data)?,
            "target" | "match" => self.extension(name, data)?,
            _ => self.load(number(destination(name))?, Value::UNKNOWN),
        }
        Some(())
    }

    /// Loads a key into register `to`, or writes register `from` into a mark.
    fn load_or_write(&mut self, mark: Option<Mark>, to: Option<u32>, from: Option<u32>) {
        match (to, from, mark) {
            (Some(register), _, mark) => {
                self.load(register, mark.map_or(Value::UNKNOWN, Value::of));
            }
            (None, Some(register), Some(mark)) => self.note(self.held(register).written_to(mark)),
            _ => {}
        }
    }

    fn bitwise(&mut self, data: &[u8]) -> Option<()> {
        let number = |attr| find(data, attr).and_then(|payload| be32_at(payload, 0));
        let bytes = |attr| u32_at(find(find(data, attr)?, NFTA_DATA_VALUE)?, 0);
        let left = self.held(number(NFTA_BITWISE_SREG)?);
        let right = || match number(NFTA_BITWISE_SREG2) {
            Some(register) => self.held(register),
            None => bytes(NFTA_BITWISE_DATA).map_or(Value::UNKNOWN, Value::constant),
        };
        let result = match number(NFTA_BITWISE_OP).unwrap_or(NFT_BITWISE_MASK_XOR) {
            NFT_BITWISE_MASK_XOR => {
                let (mask, xor) = (bytes(NFTA_BITWISE_MASK)?, bytes(NFTA_BITWISE_XOR)?);
                left.masked(mask).xor(Value::constant(xor))
            }
            NFT_BITWISE_AND => left.and(right()),
            NFT_BITWISE_OR => left.or(right()),
            NFT_BITWISE_XOR => left.xor(right()),
            // A shift moves bits to other places, and the uses of a mark are counted by place.
            _ => Value::UNKNOWN,
        };
        self.load(number(NFTA_BITWISE_DREG)?, result);
        Some(())
    }

    fn immediate(&mut self, data: &[u8]) -> Option<()> {
        let register = be32_at(find(data, NFTA_IMMEDIATE_DREG)?, 0)?;
        let payload = find(data, NFTA_IMMEDIATE_DATA)?;
        if register == NFT_REG_VERDICT {
            self.effect.chains.extend(chain_of(find(payload, NFTA_DATA_VERDICT)?));
        } else {
            let bytes = find(payload, NFTA_DATA_VALUE)?;
            let value = u32_at(bytes, 0).filter(|_| bytes.len() == WORD);
            self.load(register, value.map_or(Value::UNKNOWN, Value::constant));
        }
        Some(())
    }

    /// Interprets a target or match of iptables.
    fn extension(&mut self, kind: &str, data: &[u8]) -> Option<()> {
        let [name, revision, info] = if kind == "target" {
            [NFTA_TARGET_NAME, NFTA_TARGET_REV, NFTA_TARGET_INFO]
        } else {
            [NFTA_MATCH_NAME, NFTA_MATCH_REV, NFTA_MATCH_INFO]
        };
        let name = find(data, name).map(string)?;
        let revision = be32_at(find(data, revision)?, 0)?;
        let info = find(data, info)?;
        if kind == "match" && name == "comment" {
            self.effect.comment = Some(string(info));
        } else if kind == "match" {
            self.note(xtables::of_match(&name, revision, info));
        } else {
            self.note(xtables::of_target(&name, revision, info));
        }
        Some(())
    }
}

/// The chain of a jump or goto verdict; `None` for other verdicts.
pub(crate) fn chain_of(verdict: &[u8]) -> Option<String> {
    let code = be_i32_at(find(verdict, NFTA_VERDICT_CODE)?, 0)?;
    [NFT_JUMP, NFT_GOTO].contains(&code).then(|| find(verdict, NFTA_VERDICT_CHAIN).map(string))?
}

/// The attribute of an expression that holds its destination register.
fn destination(name: &str) -> u16 {
    match name {
        // These have a source or key as attribute 1: `NFTA_BYTEORDER_DREG`, `NFTA_HASH_DREG`, `NFTA_SOCKET_DREG`,
        // `NFTA_TUNNEL_DREG`.
        "byteorder" | "hash" | "socket" | "tunnel" => 2,
        // payload, exthdr, fib, numgen, rt, osf, xfrm.
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire::Writer;

    /// An expression's name, and a function that writes its attributes.
    type Named<'a> = (&'a str, &'a dyn Fn(&mut Writer));

    /// Expressions in the format of a kernel dump.
    fn expressions(list: &[Named<'_>]) -> Vec<u8> {
        let mut w = Writer::default();
        for (name, fill) in list {
            w.nest(NFTA_LIST_ELEM, |w| {
                w.str(NFTA_EXPR_NAME, name);
                w.nest(NFTA_EXPR_DATA, fill);
            });
        }
        w.as_bytes().to_vec()
    }

    fn load(w: &mut Writer) {
        w.be32(NFTA_META_DREG, 1);
        w.be32(NFTA_META_KEY, NFT_META_MARK);
    }

    fn load_connection(w: &mut Writer) {
        w.be32(NFTA_CT_DREG, 9);
        w.be32(NFTA_CT_KEY, NFT_CT_MARK);
    }

    fn store(w: &mut Writer) {
        w.be32(NFTA_META_KEY, NFT_META_MARK);
        w.be32(NFTA_META_SREG, 1);
    }

    fn store_connection(w: &mut Writer) {
        w.be32(NFTA_CT_KEY, NFT_CT_MARK);
        w.be32(NFTA_CT_SREG, 1);
    }

    fn bits(mask: u32, xor: u32) -> impl Fn(&mut Writer) {
        move |w| {
            w.be32(NFTA_BITWISE_SREG, 1);
            w.be32(NFTA_BITWISE_DREG, 1);
            w.be32(NFTA_BITWISE_LEN, 4);
            w.nest(NFTA_BITWISE_MASK, |w| w.attr(NFTA_DATA_VALUE, &mask.to_ne_bytes()));
            w.nest(NFTA_BITWISE_XOR, |w| w.attr(NFTA_DATA_VALUE, &xor.to_ne_bytes()));
        }
    }

    fn number(value: u32) -> impl Fn(&mut Writer) {
        move |w| {
            w.be32(NFTA_IMMEDIATE_DREG, 8);
            w.nest(NFTA_IMMEDIATE_DATA, |w| w.attr(NFTA_DATA_VALUE, &value.to_ne_bytes()));
        }
    }

    fn equals(value: u32) -> impl Fn(&mut Writer) {
        move |w| {
            w.be32(NFTA_CMP_SREG, 1);
            w.be32(NFTA_CMP_OP, NFT_CMP_EQ);
            w.nest(NFTA_CMP_DATA, |w| w.attr(NFTA_DATA_VALUE, &value.to_ne_bytes()));
        }
    }

    fn uses(list: &[Named<'_>]) -> Vec<(Mark, Action, u32, Option<u32>)> {
        let uses = of_rule(&expressions(list)).uses;
        uses.into_iter().map(|u| (u.mark, u.action, u.bits, u.value)).collect()
    }

    #[test]
    fn writers_of_the_packet_mark() {
        use Action::*;
        // meta mark set 0x1bd00: register 8 is the first word of register 1.
        let whole = uses(&[("immediate", &number(0x1_bd00)), ("meta", &store)]);
        assert_eq!(whole, [(Mark::Packet, Overwrites, u32::MAX, Some(0x1_bd00))]);
        for (mask, xor, wanted) in [
            // mark or 0x4000, mark xor 0x4000, mark & ~0x4000 ^ 0x4000.
            (!0x4000, 0x4000, (Mark::Packet, Sets, 0x4000, Some(0x4000))),
            (!0, 0x4000, (Mark::Packet, Sets, 0x4000, Some(0x4000))),
            (!0x1f00, 0, (Mark::Packet, Clears, 0x1f00, Some(0))),
            (!0x1f00, 0x0200, (Mark::Packet, Sets, 0x1f00, Some(0x200))),
        ] {
            let found = uses(&[("meta", &load), ("bitwise", &bits(mask, xor)), ("meta", &store)]);
            assert_eq!(found, [wanted]);
        }
        // The rule writes the mark back unchanged.
        assert_eq!(uses(&[("meta", &load), ("meta", &store)]), []);
        // The register was never loaded.
        assert_eq!(uses(&[("meta", &store)]), [(Mark::Packet, Overwrites, u32::MAX, None)]);
    }

    #[test]
    fn between_the_two_marks() {
        let saves = uses(&[("meta", &load), ("ct", &store_connection)]);
        assert_eq!(saves, [(Mark::Connection, Action::Saves, u32::MAX, None)]);
        let loaded = |w: &mut Writer| {
            w.be32(NFTA_CT_DREG, 1);
            w.be32(NFTA_CT_KEY, NFT_CT_MARK);
        };
        let restores = uses(&[("ct", &loaded), ("meta", &store)]);
        assert_eq!(restores, [(Mark::Packet, Action::Restores, u32::MAX, None)]);
        // ct mark & 0x80 | meta mark & ~0x80, as an operation on two registers.
        let masked = |w: &mut Writer| {
            w.be32(NFTA_BITWISE_SREG, 9);
            w.be32(NFTA_BITWISE_DREG, 9);
            w.nest(NFTA_BITWISE_MASK, |w| w.attr(NFTA_DATA_VALUE, &0x80_u32.to_ne_bytes()));
            w.nest(NFTA_BITWISE_XOR, |w| w.attr(NFTA_DATA_VALUE, &[0; 4]));
        };
        let merge = |w: &mut Writer| {
            w.be32(NFTA_BITWISE_SREG, 1);
            w.be32(NFTA_BITWISE_SREG2, 9);
            w.be32(NFTA_BITWISE_DREG, 1);
            w.be32(NFTA_BITWISE_OP, NFT_BITWISE_OR);
        };
        let found = uses(&[
            ("ct", &load_connection),
            ("bitwise", &masked),
            ("meta", &load),
            ("bitwise", &bits(!0x80, 0)),
            ("bitwise", &merge),
            ("meta", &store),
        ]);
        assert_eq!(found, [(Mark::Packet, Action::Restores, 0x80, None)]);
        // AWS VPC CNI 1.23: meta mark set ct mark & 0x80.
        let found = uses(&[("ct", &loaded), ("bitwise", &bits(0x80, 0)), ("meta", &store)]);
        let restores = (Mark::Packet, Action::Restores, 0x80, None);
        assert_eq!(found, [restores, (Mark::Packet, Action::Overwrites, u32::MAX, None)]);
    }

    #[test]
    fn comparers() {
        let whole = uses(&[("meta", &load), ("cmp", &equals(0x1234))]);
        assert_eq!(whole, [(Mark::Packet, Action::ComparesWhole, u32::MAX, Some(0x1234))]);
        let masked = uses(&[("meta", &load), ("bitwise", &bits(0xff, 0)), ("cmp", &equals(1))]);
        assert_eq!(masked, [(Mark::Packet, Action::ComparesMasked, 0xff, Some(1))]);
        let iif = |w: &mut Writer| {
            w.be32(NFTA_META_DREG, 1);
            w.be32(NFTA_META_KEY, NFT_META_IIF);
        };
        assert_eq!(uses(&[("meta", &load), ("meta", &iif), ("cmp", &equals(1))]), []);
    }

    #[test]
    fn chains_and_maps_that_a_rule_leads_to() {
        let jump = |w: &mut Writer| {
            w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            w.nest(NFTA_IMMEDIATE_DATA, |w| {
                w.nest(NFTA_DATA_VERDICT, |w| {
                    w.be_i32(NFTA_VERDICT_CODE, NFT_JUMP);
                    w.str(NFTA_VERDICT_CHAIN, "services");
                });
            });
        };
        let map = |w: &mut Writer| {
            w.str(NFTA_LOOKUP_SET, "__map0");
            w.be32(NFTA_LOOKUP_SREG, 1);
            w.be32(NFTA_LOOKUP_DREG, NFT_REG_VERDICT);
        };
        let effect = of_rule(&expressions(&[("immediate", &jump), ("lookup", &map)]));
        assert_eq!((effect.chains, effect.maps), (vec!["services".into()], vec!["__map0".into()]));
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_no_trouble(bytes: Vec<u8>) {
            let _ = of_rule(&bytes);
        }
    }
}
