//! The netlink wire format: writes and reads messages and attributes.
//!
//! Layout: `struct nlmsghdr` and `struct nlattr` of `include/uapi/linux/netlink.h`. All header
//! fields are in host byte order. Messages and attributes are aligned to four bytes.

use std::net::IpAddr;

use super::uapi::{NLA_F_NESTED, NLA_TYPE_MASK};

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Bytes of `struct nlattr`.
const ATTR_HEADER: usize = 4;

const fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// A buffer with netlink messages under construction, or with attributes only.
#[derive(Debug, Default, Clone)]
pub(crate) struct Writer {
    buf: Vec<u8>,
    /// Offset of the current message; `None` before the first.
    start: Option<usize>,
}

impl Writer {
    /// An empty buffer with room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { buf: Vec::with_capacity(capacity), start: None }
    }

    /// Starts a message with its header and `body`, the fixed header of the netlink family.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, body: &[u8]) {
        self.start = Some(self.buf.len());
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 8]);
        self.bytes(body);
    }

    /// Appends raw bytes, padded to a multiple of four.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.buf.resize(align(self.buf.len()), 0);
        if let Some(start) = self.start {
            #[expect(clippy::cast_possible_truncation, reason = "elements are sent in chunks")]
            let len = (self.buf.len() - start) as u32;
            self.buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        }
    }

    pub(crate) fn attr(&mut self, kind: u16, payload: &[u8]) {
        debug_assert!(payload.len() <= usize::from(u16::MAX) - ATTR_HEADER);
        #[expect(clippy::cast_possible_truncation, reason = "callers split lists below 64 KiB")]
        let len = (ATTR_HEADER + payload.len()) as u16;
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.bytes(payload);
    }

    /// Writes an attribute with a number in host byte order.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Writes an attribute with a number in network byte order, as nfnetlink requires.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Writes an attribute with a signed number in network byte order.
    pub(crate) fn be_i32(&mut self, kind: u16, value: i32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Writes an attribute with a string and its terminating zero.
    pub(crate) fn str(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// Writes an attribute with an address of 4 or 16 bytes in network byte order.
    pub(crate) fn ip(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.attr(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attr(kind, &ip.octets()),
        }
    }

    /// Writes an attribute whose payload `fill` writes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.buf.len();
        self.attr(kind | NLA_F_NESTED, &[]);
        fill(self);
        #[expect(clippy::cast_possible_truncation, reason = "callers split lists below 64 KiB")]
        let len = (self.buf.len() - at) as u16;
        self.buf[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// Sets flags in the header of the last message.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        let Some(at) = self.start.map(|start| start + 6) else { return };
        let old = u16::from_ne_bytes([self.buf[at], self.buf[at + 1]]);
        self.buf[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// Writes the sequence numbers `first`, `first + 1` and so on into the messages, and returns
    /// the last one.
    pub(crate) fn number_messages(&mut self, first: u32) -> u32 {
        let (mut at, mut next) = (0, first);
        while at + HEADER <= self.buf.len() {
            self.buf[at + 8..at + 12].copy_from_slice(&next.to_ne_bytes());
            next = next.wrapping_add(1);
            at += align(u32_at(&self.buf, at).unwrap_or(0) as usize).max(HEADER);
        }
        next.wrapping_sub(1)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.buf
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`
    pub(crate) kind: u16,
    /// `nlmsg_flags`
    pub(crate) flags: u16,
    /// `nlmsg_seq`
    pub(crate) seq: u32,
    /// Everything after the message's header.
    pub(crate) body: &'a [u8],
}

/// The messages of one datagram. Stops at the first malformed message.
pub(crate) fn messages(mut buf: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(buf, 0)? as usize;
        let body = buf.get(HEADER..len)?;
        let message =
            Message { kind: u16_at(buf, 4)?, flags: u16_at(buf, 6)?, seq: u32_at(buf, 8)?, body };
        buf = buf.get(align(len)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes of `buf`, each as its type without flags and its payload. Stops at the first
/// malformed attribute.
pub(crate) fn attrs(mut buf: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(buf, 0)?);
        let kind = u16_at(buf, 2)? & NLA_TYPE_MASK;
        let payload = buf.get(ATTR_HEADER..len)?;
        buf = buf.get(align(len)..).unwrap_or(&[]);
        Some((kind, payload))
    })
}

/// The payload of the first attribute of this type.
pub(crate) fn find(buf: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(buf).find_map(|(k, payload)| (k == kind).then_some(payload))
}

/// Reads two bytes in host byte order.
pub(crate) fn u16_at(buf: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(buf.get(at..at + 2)?.try_into().ok()?))
}

/// Reads four bytes in host byte order.
pub(crate) fn u32_at(buf: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(buf.get(at..at + 4)?.try_into().ok()?))
}

/// Reads four bytes in network byte order.
pub(crate) fn be32_at(buf: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(buf.get(at..at + 4)?.try_into().ok()?))
}

/// Reads four bytes in network byte order, as a signed number.
pub(crate) fn be_i32_at(buf: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_be_bytes(buf.get(at..at + 4)?.try_into().ok()?))
}

/// Reads a string attribute up to its terminating zero.
pub(crate) fn string(payload: &[u8]) -> String {
    let end = payload.iter().position(|&b| b == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

/// Reads an address attribute of 4 or 16 bytes.
pub(crate) fn ip(payload: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(payload) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(payload).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::default();
        w.message(26, 1, &[9; 12]);
        w.u32(4, 7);
        w.nest(8, |w| w.str(1, "eth0"));
        w.message(16, 0, &[]);
        assert_eq!(w.number_messages(5), 6);
        let got: Vec<_> = messages(w.as_bytes()).collect();
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].kind, got[0].flags, got[0].seq), (26, 1, 5));
        assert_eq!((got[1].kind, got[1].seq), (16, 6));
        let list: Vec<_> = attrs(&got[0].body[12..]).collect();
        assert_eq!(list[0], (4, &7u32.to_ne_bytes()[..]));
        assert_eq!(string(find(list[1].1, 1).unwrap()), "eth0");
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_never_read_past_its_end(bytes: Vec<u8>) {
            for m in messages(&bytes) {
                for (_, payload) in attrs(m.body) {
                    let _ = (ip(payload), string(payload), attrs(payload).count());
                }
            }
        }
    }
}
