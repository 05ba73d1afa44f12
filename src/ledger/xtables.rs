//! What the extensions of iptables do to marks, from their binary form.
//!
//! Layouts: `xt_mark.h`, `xt_connmark.h`, `xt_TPROXY.h` and `xt_socket.h` of
//! `include/uapi/linux/netfilter`; the arithmetic: `net/netfilter/xt_{mark,connmark,TPROXY}.c`.

use super::{Action, Mark, Use};
use crate::netlink::wire::u32_at;

/// `XT_CONNMARK_SET`, `_SAVE` and `_RESTORE`.
const SET: u8 = 0;
const SAVE: u8 = 1;
const RESTORE: u8 = 2;
/// `XT_SOCKET_RESTORESKMARK`.
const RESTORE_SOCKET_MARK: u8 = 1 << 2;

/// The shift of a copied mark (CONNMARK revision 2).
#[derive(Default)]
struct Shift {
    /// `D_SHIFT_RIGHT`
    right: bool,
    by: u8,
}

impl Shift {
    fn moved(&self, bits: u32) -> u32 {
        let by = u32::from(self.by);
        if self.right { bits.checked_shr(by) } else { bits.checked_shl(by) }.unwrap_or(0)
    }
}

/// The use `mark = (mark & ~mask) ^ value`: writes the bits of `mask`, and inverts bits of `value` outside of
/// `mask`. `None` if no bit changes.
pub(crate) fn written(of: Mark, value: u32, mask: u32) -> Option<Use> {
    let bits = mask | value;
    let action = match (bits, value) {
        (0, _) => return None,
        (u32::MAX, _) => Action::Overwrites,
        (_, 0) => Action::Clears,
        _ => Action::Sets,
    };
    Some(Use { mark: of, action, bits, value: Some(value) })
}

/// The uses when a rule writes the bits `bits` of a mark: it copies the bits `other` from the other mark, and
/// sets the rest to `constant`, if known.
pub(crate) fn merged(of: Mark, bits: u32, other: u32, constant: Option<u32>) -> Vec<Use> {
    let copy = match of {
        Mark::Packet => Action::Restores,
        Mark::Connection => Action::Saves,
    };
    let copied = Use { mark: of, action: copy, bits: other, value: None };
    // If a whole mark is partly copied, its value counts as known only if it is not 0.
    let value = constant.filter(|&constant| other == 0 || constant != 0);
    let rest = bits & !other;
    let action = match (bits, rest, constant) {
        (_, 0, _) => None,
        (u32::MAX, ..) => Some((Action::Overwrites, u32::MAX)),
        (.., Some(0)) => Some((Action::Clears, rest)),
        _ => Some((Action::Sets, rest)),
    };
    let written = action.map(|(action, bits)| Use { mark: of, action, bits, value });
    (other != 0).then_some(copied).into_iter().chain(written).collect()
}

/// The uses of `--save-mark` and `--restore-mark`: they copy the bits `from` of one mark to the bits `to` of
/// the other.
pub(crate) fn copied(action: Action, from: u32, to: u32) -> Vec<Use> {
    let mark = if action == Action::Saves { Mark::Connection } else { Mark::Packet };
    merged(mark, from | to, from, Some(0))
}

/// The use `(mark & mask) == value`; `None` if `mask` is 0.
pub(crate) fn compared(of: Mark, value: u32, mask: u32) -> Option<Use> {
    let action = if mask == u32::MAX { Action::ComparesWhole } else { Action::ComparesMasked };
    (mask != 0).then_some(Use { mark: of, action, bits: mask, value: Some(value) })
}

/// The uses of marks by a target of iptables.
pub(crate) fn of_target(name: &str, revision: u32, info: &[u8]) -> Vec<Use> {
    // A target that is truncated or unknown counts as one without marks.
    parse_target(name, revision, info).unwrap_or_default()
}

fn parse_target(name: &str, revision: u32, info: &[u8]) -> Option<Vec<Use>> {
    let (first, second) = (u32_at(info, 0)?, u32_at(info, 4)?);
    let found = match (name, revision) {
        ("MARK", 2) => written(Mark::Packet, first, second).into_iter().collect(),
        ("CONNMARK", 1 | 2) => {
            let packet = u32_at(info, 8)?;
            let (shift, mode) = if revision == 1 {
                (Shift::default(), *info.get(12)?)
            } else {
                (Shift { right: *info.get(12)? != 0, by: *info.get(13)? }, *info.get(14)?)
            };
            match mode {
                SET => written(Mark::Connection, first, second).into_iter().collect(),
                SAVE => copied(Action::Saves, shift.moved(packet), second),
                RESTORE => copied(Action::Restores, shift.moved(second), packet),
                _ => return None,
            }
        }
        // TPROXY has the mask first.
        ("TPROXY", 0 | 1) => written(Mark::Packet, second, first).into_iter().collect(),
        ("HMARK", _) => {
            let (mark, action) = (Mark::Packet, Action::Overwrites);
            vec![Use { mark, action, bits: u32::MAX, value: None }]
        }
        _ => return None,
    };
    Some(found)
}

/// The use of a mark by a match of iptables.
pub(crate) fn of_match(name: &str, revision: u32, info: &[u8]) -> Option<Use> {
    let mark = match (name, revision) {
        ("mark", 1) => Mark::Packet,
        ("connmark", 1) => Mark::Connection,
        ("socket", 3) if info.first()? & RESTORE_SOCKET_MARK != 0 => {
            let (mark, action) = (Mark::Packet, Action::Overwrites);
            return Some(Use { mark, action, bits: u32::MAX, value: None });
        }
        _ => return None,
    };
    compared(mark, u32_at(info, 0)?, u32_at(info, 4)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(words: &[u32], rest: &[u8]) -> Vec<u8> {
        let words = words.iter().flat_map(|word| word.to_ne_bytes());
        words.chain(rest.iter().copied()).collect()
    }

    #[test]
    fn targets() {
        let first_use = |name, revision, info: &[u8]| {
            let uses = of_target(name, revision, info);
            assert!(uses.len() <= 1, "{uses:?}");
            uses.first().map(|u| (u.mark, u.action, u.bits))
        };
        let set = Some((Mark::Packet, Action::Sets, 0x4000));
        assert_eq!(first_use("MARK", 2, &info(&[0x4000, 0x4000], &[])), set);
        // --xor-mark
        assert_eq!(first_use("MARK", 2, &info(&[0x4000, 0], &[])), set);
        let whole = Some((Mark::Packet, Action::Overwrites, u32::MAX));
        assert_eq!(first_use("MARK", 2, &info(&[7, u32::MAX], &[])), whole);
        let cleared = Some((Mark::Packet, Action::Clears, 0x300));
        assert_eq!(first_use("MARK", 2, &info(&[0, 0x300], &[])), cleared);
        let connmark = |mode| info(&[0x80, 0x80, 0x80], &[mode, 0, 0, 0]);
        for (mode, mark, kind) in [
            (SET, Mark::Connection, Action::Sets),
            (SAVE, Mark::Connection, Action::Saves),
            (RESTORE, Mark::Packet, Action::Restores),
        ] {
            assert_eq!(first_use("CONNMARK", 1, &connmark(mode)), Some((mark, kind, 0x80)));
        }
        // --left-shift-mark 8
        let shifted = info(&[0, 0xff00, 0xff], &[0, 8, SAVE, 0]);
        let saved = Some((Mark::Connection, Action::Saves, 0xff00));
        assert_eq!(first_use("CONNMARK", 2, &shifted), saved);
        let proxy = info(&[0xff, 0x1, 0, 0, 0, 0], &[]);
        assert_eq!(first_use("TPROXY", 1, &proxy), Some((Mark::Packet, Action::Sets, 0xff)));
        // --restore-mark --nfmask 0xffff --ctmask 0xff
        let partly = of_target("CONNMARK", 1, &info(&[0, 0xff, 0xffff], &[RESTORE, 0, 0, 0]));
        let partly: Vec<_> = partly.iter().map(|u| (u.action, u.bits)).collect();
        assert_eq!(partly, [(Action::Restores, 0xff), (Action::Clears, 0xff00)]);
        assert_eq!(first_use("MARK", 2, &[1, 2]), None);
        assert_eq!(first_use("DNAT", 2, &info(&[7, 7, 7], &[])), None);
    }

    #[test]
    fn matches() {
        let masked = of_match("mark", 1, &info(&[0x4000, 0x4000, 0], &[])).unwrap();
        assert_eq!((masked.action, masked.bits), (Action::ComparesMasked, 0x4000));
        let whole = of_match("connmark", 1, &info(&[1, u32::MAX, 1], &[])).unwrap();
        assert_eq!((whole.mark, whole.action), (Mark::Connection, Action::ComparesWhole));
        assert_eq!(of_match("mark", 1, &[0; 3]), None);
        assert_eq!(of_match("tcp", 0, &[0; 12]), None);
    }
}
