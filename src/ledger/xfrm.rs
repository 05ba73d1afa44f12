//! `IPsec` policies and states that compare or write marks.
//!
//! Layouts: `include/uapi/linux/xfrm.h`. The kernel's answers contain the keys of states, so the code extracts
//! only addresses and marks.

use std::net::IpAddr;

use super::{Action, Entry, Mark, Place, Use, xtables};
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, attrs, ip, u16_at, u32_at};
use crate::netlink::{Error, Socket};

/// Bytes of `struct xfrm_userpolicy_info`, and the offset of its direction.
const POLICY: usize = 168;
const DIRECTION: usize = 160;
/// Bytes of `struct xfrm_usersa_info`, and the offsets of its destination (`struct xfrm_id`) and family.
const STATE: usize = 224;
const STATE_DESTINATION: usize = 56;
const STATE_FAMILY: usize = 212;
/// Offsets in `struct xfrm_selector`: source, family, and the prefix lengths of destination and source.
const SELECTOR_SOURCE: usize = 16;
const SELECTOR_FAMILY: usize = 40;
const SELECTOR_PREFIXES: usize = 42;

/// Reads policies and states.
pub(crate) fn read(socket: &mut Socket) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for (kind, parse) in
        [(XFRM_MSG_GETPOLICY, policy as fn(&[u8]) -> Option<_>), (XFRM_MSG_GETSA, state)]
    {
        let mut request = Writer::with_capacity(32);
        request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, &[]);
        found.extend(socket.dump(&mut request, parse)?.into_iter().flatten());
    }
    Ok(found)
}

fn address(body: &[u8], at: usize, family: u16) -> Option<IpAddr> {
    let length = if family == u16::from(RTNL_FAMILY_IPV4) { 4 } else { 16 };
    ip(body.get(at..at + length)?)
}

fn policy(body: &[u8]) -> Option<Vec<Entry>> {
    let family = u16_at(body, SELECTOR_FAMILY)?;
    let [to, from] = [*body.get(SELECTOR_PREFIXES)?, *body.get(SELECTOR_PREFIXES + 1)?];
    let direction = match *body.get(DIRECTION)? {
        0 => "in",
        1 => "out",
        2 => "fwd",
        // A policy of one socket.
        _ => return None,
    };
    let (source, destination) =
        (address(body, SELECTOR_SOURCE, family)?, address(body, 0, family)?);
    let what = format!("policy {direction} {source}/{from} -> {destination}/{to}");
    Some(entries(&what, body.get(POLICY..)?))
}

fn state(body: &[u8]) -> Option<Vec<Entry>> {
    let to = address(body, STATE_DESTINATION, u16_at(body, STATE_FAMILY)?)?;
    Some(entries(&format!("state to {to}"), body.get(STATE..)?))
}

fn entries(what: &str, attributes: &[u8]) -> Vec<Entry> {
    let (mut uses, mut set) = (Vec::new(), None);
    let mut mask = u32::MAX;
    for (kind, payload) in attrs(attributes) {
        match kind {
            // `struct xfrm_mark`: value and mask.
            XFRMA_MARK => {
                let pair = u32_at(payload, 0).zip(u32_at(payload, 4));
                uses.extend(pair.and_then(|(v, m)| xtables::compared(Mark::Packet, v, m)));
            }
            XFRMA_SET_MARK => set = u32_at(payload, 0),
            XFRMA_SET_MARK_MASK => mask = u32_at(payload, 0).unwrap_or(mask),
            _ => {}
        }
    }
    // With mask 0 the kernel changes no bit (`xfrm_smark_get`, `include/net/xfrm.h`).
    let written = set.filter(|_| mask != 0).and_then(|v| xtables::written(Mark::Packet, v, mask));
    uses.extend(written.map(|written| match written.action {
        Action::Clears => Use { value: Some(0), ..written },
        _ => written,
    }));
    let entry = |usage| Entry {
        owner: "IPsec".into(),
        ours: false,
        place: Place::Xfrm { what: what.into() },
        hooks: Vec::new(),
        usage,
        comment: None,
    };
    uses.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_marks(mut body: Vec<u8>) -> Vec<u8> {
        let mut w = Writer::default();
        w.attr(XFRMA_MARK, &[1_u32.to_ne_bytes(), 0xff_u32.to_ne_bytes()].concat());
        w.u32(XFRMA_SET_MARK, 0x300);
        w.u32(XFRMA_SET_MARK_MASK, 0xf00);
        body.extend_from_slice(w.as_bytes());
        body
    }

    fn rows(entries: Option<Vec<Entry>>) -> Vec<(String, Action, u32)> {
        let row = |e: Entry| match e.place {
            Place::Xfrm { what } => (what, e.usage.action, e.usage.bits),
            other => panic!("{other:?}"),
        };
        entries.unwrap().into_iter().map(row).collect()
    }

    #[test]
    fn policies_and_states() {
        let mut body = vec![0; POLICY];
        body[0..4].copy_from_slice(&[10, 1, 0, 0]);
        body[16..20].copy_from_slice(&[10, 0, 0, 0]);
        body[SELECTOR_FAMILY] = 2;
        body[SELECTOR_PREFIXES..SELECTOR_PREFIXES + 2].copy_from_slice(&[16, 24]);
        body[DIRECTION] = 1;
        let what = "policy out 10.0.0.0/24 -> 10.1.0.0/16".to_string();
        let wanted = [(what.clone(), Action::ComparesMasked, 0xff), (what, Action::Sets, 0xf00)];
        assert_eq!(rows(policy(&with_marks(body))), wanted);
        let mut body = vec![0; STATE];
        body[STATE_DESTINATION..STATE_DESTINATION + 4].copy_from_slice(&[192, 0, 2, 1]);
        body[STATE_FAMILY] = 2;
        assert_eq!(rows(state(&with_marks(body))).len(), 2);
        assert_eq!((policy(&[0; 20]), state(&[])), (None, None));
    }
}
