//! Turns the expressions of an nftables rule, from a kernel dump, into conditions and targets.
//!
//! Layouts: `enum nft_*_attributes` of `linux/netfilter/nf_tables.h`. Registers are numbered in words of four
//! bytes (`nft_parse_register`, `nf_tables_api.c`).

use std::collections::BTreeMap;

use super::{Condition, Field, Loaded, Match, Mix, Part, Rule, SOURCE_CHECK, Set, Target};
use crate::model::Family;
use crate::netlink::uapi::*;
use crate::netlink::wire::{attrs, be_i32_at, be32_at, find, ip, string, u16_at, u32_at};

/// The content of a register.
#[derive(Debug, Clone)]
enum Value {
    Of(Loaded),
    Constant(Vec<u8>),
    /// A random number, or one of a sequence (`numgen`).
    Chance,
    /// Not understood; holds the name of the expression.
    Unknown(String),
}

/// Content of the registers, and its length in words, by first word.
type Registers = BTreeMap<u32, (Value, u32)>;

/// Reads a rule from its expressions (`NFTA_RULE_EXPRESSIONS`). `sets`: the sets of its table.
pub(super) fn rule(expressions: &[u8], sets: &BTreeMap<String, Set>) -> Rule {
    let mut reader = Reader { sets, registers: Registers::new(), rule: Rule::default() };
    for (_, expression) in attrs(expressions) {
        let name = find(expression, NFTA_EXPR_NAME).map(string).unwrap_or_default();
        let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
        if reader.read(&name, data).is_none() {
            reader.pass_over(name, data);
        }
    }
    reader.rule
}

struct Reader<'a> {
    sets: &'a BTreeMap<String, Set>,
    registers: Registers,
    rule: Rule,
}

/// A 32-bit number in the byte order of nfnetlink.
fn number(data: &[u8], attribute: u16) -> Option<u32> {
    be32_at(find(data, attribute)?, 0)
}

/// The first word of a register.
fn word(register: u32) -> Option<u32> {
    match register {
        1..=4 => Some((register - 1) * 4),
        8..=23 => Some(register - 8),
        _ => None,
    }
}

/// A constant that is a value and not a verdict.
fn constant(data: &[u8], attribute: u16) -> Option<Vec<u8>> {
    Some(find(find(data, attribute)?, NFTA_DATA_VALUE)?.to_vec())
}

/// The target of a verdict (`NFTA_DATA_VERDICT`).
pub(super) fn verdict(verdict: &[u8]) -> Option<Target> {
    let chain = || find(verdict, NFTA_VERDICT_CHAIN).map(string);
    Some(match be_i32_at(find(verdict, NFTA_VERDICT_CODE)?, 0)? {
        NF_DROP => Target::Drop,
        NF_ACCEPT => Target::Accept,
        NFT_JUMP => Target::Jump(chain()?),
        NFT_GOTO => Target::Goto(chain()?),
        NFT_RETURN => Target::Return,
        _ => Target::Nothing,
    })
}

impl Reader<'_> {
    fn add_match(&mut self, is: Match, inverted: bool) {
        self.rule.0.push(Part::If(Condition { is, inverted }));
    }

    fn put(&mut self, target: Target) {
        self.rule.0.push(Part::Do(target));
    }

    /// Records an expression that is not understood, as an action or as a match.
    fn pass_over(&mut self, name: String, data: &[u8]) {
        let acts = match name.as_str() {
            "target" | "reject" | "queue" | "dup" | "fwd" | "synproxy" | "nat" | "immediate" => {
                true
            }
            "meta" => find(data, NFTA_META_SREG).is_some(),
            "ct" => find(data, NFTA_CT_SREG).is_some(),
            "lookup" => number(data, NFTA_LOOKUP_DREG) == Some(NFT_REG_VERDICT),
            _ => false,
        };
        if acts {
            self.put(Target::Unknown(name));
        } else {
            self.add_match(Match::Unknown(name), false);
        }
    }

    fn load(&mut self, data: &[u8], attribute: u16, value: Value, bytes: u32) -> Option<()> {
        let at = word(number(data, attribute)?)?;
        self.registers.insert(at, (value, bytes.div_ceil(4)));
        Some(())
    }

    fn loaded(&self, register: u32) -> Option<&Value> {
        self.registers.get(&word(register)?).map(|(value, _)| value)
    }

    /// Reads one expression. `None` if it is not understood: the packet skips the rest of the rule.
    fn read(&mut self, name: &str, data: &[u8]) -> Option<()> {
        match name {
            "meta" => self.meta(data),
            "ct" => self.ct(data),
            "payload" => self.payload(data),
            "fib" => self.fib(data),
            "immediate" => self.immediate(data),
            "bitwise" => self.bitwise(data),
            "cmp" => self.compare(data),
            "lookup" => self.look_up(data),
            "numgen" => self.load(data, NFTA_NG_DREG, Value::Chance, 4),
            "nat" => self.nat(data),
            "masq" => {
                self.put(Target::Masquerade);
                Some(())
            }
            "redir" | "tproxy" => {
                self.put(Target::Unknown(name.into()));
                Some(())
            }
            "notrack" => {
                self.put(Target::Untrack);
                Some(())
            }
            "target" if is_notrack(data) => {
                self.put(Target::Untrack);
                Some(())
            }
            // These change neither the packet nor its way through the rules.
            "counter" | "log" | "last" | "objref" | "ct_timeout" => Some(()),
            // Without an expression of its own, `dynset` only records the packet and matches every packet.
            "dynset"
                if find(data, NFTA_DYNSET_EXPR)
                    .or(find(data, NFTA_DYNSET_EXPRESSIONS))
                    .is_none() =>
            {
                Some(())
            }
            // A comment of iptables-nft.
            "match" if find(data, NFTA_MATCH_NAME).map(string).as_deref() == Some("comment") => {
                Some(())
            }
            // This includes `limit`: a rule for packets above a limit must not count for every packet.
            _ => None,
        }
    }

    fn meta(&mut self, data: &[u8]) -> Option<()> {
        let key = number(data, NFTA_META_KEY)?;
        if let Some(register) = number(data, NFTA_META_SREG) {
            return if key == NFT_META_MARK { self.set(register, Field::Mark) } else { Some(()) };
        }
        let (field, bytes) = match key {
            NFT_META_MARK => (Field::Mark, 4),
            NFT_META_IIF => (Field::In, 4),
            NFT_META_OIF => (Field::Out, 4),
            NFT_META_IIFNAME => (Field::InName, 16),
            NFT_META_OIFNAME => (Field::OutName, 16),
            NFT_META_NFPROTO => (Field::Family, 1),
            NFT_META_L4PROTO => (Field::Protocol, 1),
            _ => return self.load(data, NFTA_META_DREG, Value::Unknown("meta".into()), 16),
        };
        self.load(data, NFTA_META_DREG, unmasked(field), bytes)
    }

    fn ct(&mut self, data: &[u8]) -> Option<()> {
        let key = number(data, NFTA_CT_KEY)?;
        if let Some(register) = number(data, NFTA_CT_SREG) {
            let is_mark = key == NFT_CT_MARK;
            return if is_mark { self.set(register, Field::Connection) } else { Some(()) };
        }
        let (value, bytes) = match key {
            NFT_CT_MARK => (unmasked(Field::Connection), 4),
            NFT_CT_STATE => (unmasked(Field::State), 4),
            NFT_CT_DIRECTION => (unmasked(Field::Direction), 1),
            _ => (Value::Unknown("ct".into()), 16),
        };
        self.load(data, NFTA_CT_DREG, value, bytes)
    }

    /// Reads `meta mark set` or `ct mark set`.
    fn set(&mut self, register: u32, own: Field) -> Option<()> {
        let mix = match self.loaded(register)? {
            Value::Constant(bytes) => Mix { keep: 0, take: 0, xor: u32_at(bytes, 0)? },
            Value::Of(Loaded { field, mask, xor }) => {
                let mask = if mask.is_empty() { u32::MAX } else { u32_at(mask, 0)? };
                let xor = if xor.is_empty() { 0 } else { u32_at(xor, 0)? };
                match field {
                    field if *field == own => Mix { keep: mask, take: 0, xor },
                    Field::Mark | Field::Connection => Mix { keep: 0, take: mask, xor },
                    _ => return None,
                }
            }
            Value::Chance | Value::Unknown(_) => return None,
        };
        self.put(match own {
            Field::Mark => Target::Mark(mix),
            _ => Target::Connection(mix),
        });
        Some(())
    }

    fn payload(&mut self, data: &[u8]) -> Option<()> {
        let (base, offset, length) = (
            number(data, NFTA_PAYLOAD_BASE)?,
            number(data, NFTA_PAYLOAD_OFFSET)?,
            number(data, NFTA_PAYLOAD_LEN)?,
        );
        // Offsets of the addresses in `struct iphdr` and `struct ipv6hdr`. A prefix loads fewer bytes.
        let field = match (base, offset, length) {
            (NFT_PAYLOAD_NETWORK_HEADER, 12, 1..=4) => Field::From(Family::V4),
            (NFT_PAYLOAD_NETWORK_HEADER, 16, 1..=4) => Field::To(Family::V4),
            (NFT_PAYLOAD_NETWORK_HEADER, 8, 1..=16) => Field::From(Family::V6),
            (NFT_PAYLOAD_NETWORK_HEADER, 24, 1..=16) => Field::To(Family::V6),
            (NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2) => Field::Port,
            _ => {
                let unknown = Value::Unknown("payload".into());
                return self.load(data, NFTA_PAYLOAD_DREG, unknown, length);
            }
        };
        self.load(data, NFTA_PAYLOAD_DREG, unmasked(field), length)
    }

    fn fib(&mut self, data: &[u8]) -> Option<()> {
        const CHECK: u32 = NFTA_FIB_F_SADDR | NFTA_FIB_F_IIF;
        let is_kind = number(data, NFTA_FIB_RESULT)? == NFT_FIB_RESULT_ADDRTYPE;
        let value = match number(data, NFTA_FIB_FLAGS)? {
            NFTA_FIB_F_DADDR if is_kind => unmasked(Field::ToKind),
            NFTA_FIB_F_SADDR if is_kind => unmasked(Field::FromKind),
            flags if !is_kind && flags & CHECK == CHECK => Value::Unknown(SOURCE_CHECK.into()),
            _ => Value::Unknown("fib".into()),
        };
        self.load(data, NFTA_FIB_DREG, value, 4)
    }

    fn immediate(&mut self, data: &[u8]) -> Option<()> {
        let given = find(data, NFTA_IMMEDIATE_DATA)?;
        if let Some(code) = find(given, NFTA_DATA_VERDICT) {
            self.put(verdict(code)?);
            return Some(());
        }
        let bytes = constant(data, NFTA_IMMEDIATE_DATA)?;
        let length = u32::try_from(bytes.len()).ok()?;
        self.load(data, NFTA_IMMEDIATE_DREG, Value::Constant(bytes), length)
    }

    fn bitwise(&mut self, data: &[u8]) -> Option<()> {
        let from = self.loaded(number(data, NFTA_BITWISE_SREG)?)?.clone();
        let length = number(data, NFTA_BITWISE_LEN)?;
        // Shifts, and operations on two registers, have other operation numbers.
        let is_plain = number(data, NFTA_BITWISE_OP).is_none_or(|operation| operation == 0);
        let changed = match from {
            Value::Of(loaded) if is_plain => {
                let mask = constant(data, NFTA_BITWISE_MASK)?;
                let xor = constant(data, NFTA_BITWISE_XOR)?;
                Value::Of(loaded.mask_again(&mask, &xor))
            }
            _ => Value::Unknown("bitwise".into()),
        };
        self.load(data, NFTA_BITWISE_DREG, changed, length)
    }

    fn compare(&mut self, data: &[u8]) -> Option<()> {
        let inverted = match number(data, NFTA_CMP_OP)? {
            NFT_CMP_EQ => false,
            NFT_CMP_NEQ => true,
            _ => return None,
        };
        let wanted = constant(data, NFTA_CMP_DATA)?;
        let is = match self.loaded(number(data, NFTA_CMP_SREG)?)? {
            Value::Of(loaded) => Match::Bytes(vec![loaded.clone()], wanted),
            Value::Chance => Match::Chance,
            Value::Unknown(name) => Match::Unknown(name.clone()),
            Value::Constant(_) => return None,
        };
        self.add_match(is, inverted);
        Some(())
    }

    fn look_up(&mut self, data: &[u8]) -> Option<()> {
        let name = find(data, NFTA_LOOKUP_SET).map(string)?;
        let set = self.sets.get(&name).filter(|set| !set.is_unread)?.clone();
        let register = number(data, NFTA_LOOKUP_SREG)?;
        let target = number(data, NFTA_LOOKUP_DREG);
        if matches!(self.loaded(register)?, Value::Chance) {
            // A verdict map that is indexed by a random number.
            let all = set.elements.into_iter().map(|(_, target)| target).collect();
            if target? != NFT_REG_VERDICT {
                return None;
            }
            self.put(Target::Choice(all));
            return Some(());
        }
        let fields = self.fields(word(register)?, &set)?;
        match target {
            Some(NFT_REG_VERDICT) => self.put(Target::Map(fields, set)),
            Some(_) => {
                return self.load(data, NFTA_LOOKUP_DREG, Value::Unknown("map".into()), 16);
            }
            None => {
                let flags = number(data, NFTA_LOOKUP_FLAGS).unwrap_or(0);
                self.add_match(Match::Among(fields, set), flags & NFT_LOOKUP_F_INV != 0);
            }
        }
        Some(())
    }

    /// The fields of a set's key, from this word on.
    fn fields(&self, mut at: u32, set: &Set) -> Option<Vec<Loaded>> {
        let length = set.elements.first().map_or(0, |(key, _)| key.bytes.len());
        let mut left = u32::try_from(length.div_ceil(4)).ok()?;
        let mut fields = Vec::new();
        loop {
            let (Value::Of(loaded), words) = self.registers.get(&at)? else { return None };
            fields.push(loaded.clone());
            at += words;
            left = left.saturating_sub(*words);
            if left == 0 {
                return Some(fields);
            }
        }
    }

    fn nat(&mut self, data: &[u8]) -> Option<()> {
        let constant = |attribute| match self.loaded(number(data, attribute)?)? {
            Value::Constant(bytes) => Some(bytes.clone()),
            _ => None,
        };
        let address = constant(NFTA_NAT_REG_ADDR_MIN).and_then(|bytes| ip(&bytes));
        let port = constant(NFTA_NAT_REG_PROTO_MIN)
            .and_then(|bytes| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?)));
        let target = match (number(data, NFTA_NAT_TYPE)?, address) {
            (NFT_NAT_DNAT, Some(to)) => Target::Dnat { to, port },
            (NFT_NAT_SNAT, Some(from)) => Target::Snat(from),
            (NFT_NAT_DNAT, None) => Target::Unknown("dnat to a map".into()),
            _ => Target::Unknown("snat to a map".into()),
        };
        self.put(target);
        Some(())
    }
}

/// Whether this is `-j CT --notrack` of iptables-nft, or the old `-j NOTRACK` (`struct xt_ct_target_info`,
/// `linux/netfilter/xt_CT.h`).
fn is_notrack(data: &[u8]) -> bool {
    let flags = || find(data, NFTA_TARGET_INFO).and_then(|info| u16_at(info, 0));
    match find(data, NFTA_TARGET_NAME).map(string).as_deref() {
        Some("CT") => flags().is_some_and(|flags| flags & XT_CT_NOTRACK != 0),
        Some("NOTRACK") => true,
        _ => false,
    }
}

fn unmasked(field: Field) -> Value {
    Value::Of(Loaded { field, mask: Vec::new(), xor: Vec::new() })
}

impl Loaded {
    /// The loaded field after another `& mask ^ xor`.
    fn mask_again(self, mask: &[u8], xor: &[u8]) -> Self {
        if self.mask.is_empty() {
            return Self { mask: mask.to_vec(), xor: xor.to_vec(), ..self };
        }
        let both = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a & b).collect::<Vec<_>>();
        let kept = both(&self.xor, mask);
        let xor = kept.iter().zip(xor).map(|(a, b)| a ^ b).collect();
        Self { mask: both(&self.mask, mask), xor, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_is_masked_twice() {
        let first = Loaded { field: Field::Mark, mask: vec![0xff; 4], xor: vec![0x0f; 4] };
        let twice = first.mask_again(&[0xf0, 0, 0, 0], &[1, 0, 0, 0]);
        assert_eq!((twice.mask[0], twice.xor[0]), (0xf0, 1));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>) {
            let _ = rule(&bytes, &BTreeMap::new());
            let _ = verdict(&bytes);
        }
    }
}
