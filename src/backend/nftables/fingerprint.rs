//! Fingerprints, by which reconcile recognises the rules that it wrote. It does not compare
//! expressions, because each kernel returns them in another form.
//!
//! A rule has its fingerprint in its user data, in a field that nft does not print. A rule that
//! another program changed or loaded from text has none. Then reconcile writes its chain again.

use super::rules::Rule;
use std::hash::Hasher as _;

use crate::hash::Fnv;

/// libnftnl's type of a rule's comment.
const COMMENT: u8 = 0;
/// symroute's own type, far from those that libnftnl may use later.
const FINGERPRINT: u8 = 0xf5;

/// The fingerprint of a rule with `body` as its encoded expressions.
pub(crate) fn of_rule(rule: &Rule, body: &[u8]) -> u64 {
    let mut all = rule.comment.unwrap_or("").as_bytes().to_vec();
    all.extend_from_slice(body);
    Fnv::of(&all).finish()
}

/// User data for a rule: its comment and its fingerprint, each as type u8, length u8, value.
pub(crate) fn userdata(rule: &Rule, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(comment) = rule.comment {
        // nft allows 128 bytes with the terminating zero.
        let comment = &comment.as_bytes()[..comment.len().min(127)];
        #[expect(clippy::cast_possible_truncation, reason = "at most 128")]
        out.extend_from_slice(&[COMMENT, (comment.len() + 1) as u8]);
        out.extend_from_slice(comment);
        out.push(0);
    }
    out.extend_from_slice(&[FINGERPRINT, 8]);
    out.extend_from_slice(&of_rule(rule, body).to_le_bytes());
    out
}

/// The fingerprint in a rule's user data, if it has one.
pub(crate) fn of_userdata(mut data: &[u8]) -> Option<u64> {
    while let [kind, len, rest @ ..] = data {
        let value = rest.get(..usize::from(*len))?;
        if *kind == FINGERPRINT {
            return value.try_into().ok().map(u64::from_le_bytes);
        }
        data = &rest[usize::from(*len)..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::rules::Expression;

    #[test]
    fn userdata_carries_the_fingerprint() {
        let rule = Rule { comment: Some("why"), expressions: vec![Expression::Return] };
        let data = userdata(&rule, b"body");
        assert_eq!(of_userdata(&data), Some(of_rule(&rule, b"body")));
        assert_ne!(of_rule(&rule, b"body"), of_rule(&rule, b"other"));
        assert_eq!(of_userdata(b"\x00\x04why\x00"), None);
        assert_eq!(of_userdata(b"\xf5\x08short"), None);
    }
}
