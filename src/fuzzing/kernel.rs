//! A fake kernel with prepared answers: the other end of a [`Socket`].

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::netlink::Socket;
use crate::netlink::uapi::{NLMSG_DONE, NLMSG_ERROR};
use crate::netlink::wire::{HEADER, Writer, u16_at, u32_at};

/// Flag of `linux/netlink.h` for a message of a dump: more messages follow.
const NLM_F_MULTI: u16 = 2;
/// Maximum size of a request in bytes.
const REQUEST: usize = 128 * 1024;

/// The kernel's end of the socket pair.
#[derive(Debug)]
pub(super) struct Kernel(OwnedFd);

/// A socket, and a kernel without answers. Neither end blocks.
fn pair() -> (Socket, Kernel) {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .expect("a pair of sockets");
    (Socket::new(ours), Kernel(theirs))
}

/// Calls `ask` with a kernel that answers with these messages. Each request gets one datagram, up to the
/// message that ends a dump or is not part of one. The kernel sets the sequence numbers and changes nothing else.
pub(super) fn answered<T>(bytes: &[u8], ask: impl FnOnce(&mut Socket) -> T) -> T {
    let (mut socket, kernel) = pair();
    kernel.answer(bytes);
    ask(&mut socket)
}

/// The first datagram that the given function sends to a kernel that does not answer.
pub(super) fn told(tell: impl FnOnce(&mut Socket)) -> Vec<u8> {
    let (mut socket, kernel) = pair();
    tell(&mut socket);
    let mut buffer = vec![0; REQUEST];
    let length = recv(kernel.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap_or(0);
    buffer.truncate(length);
    buffer
}

/// Messages of this type with these bodies, as the answer to a dump.
pub(super) fn dump<'a>(kind: u16, bodies: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut writer = Writer::default();
    for body in bodies {
        writer.message(kind, NLM_F_MULTI, body);
    }
    writer.message(NLMSG_DONE, NLM_F_MULTI, &[0; 4]);
    writer.as_bytes().to_vec()
}

impl Kernel {
    fn answer(&self, bytes: &[u8]) {
        let (mut at, mut number, mut datagram) = (0, 1_u32, Vec::new());
        while let Some(length) = u32_at(bytes, at).map(|length| length as usize) {
            let is_whole = length >= HEADER && length <= bytes.len() - at;
            let end = if is_whole {
                (at + length).next_multiple_of(4).min(bytes.len())
            } else {
                bytes.len()
            };
            let from = datagram.len();
            datagram.extend_from_slice(&bytes[at..end]);
            if let Some(place) = datagram.get_mut(from + 8..from + 12) {
                place.copy_from_slice(&number.to_ne_bytes());
            }
            let kind = u16_at(bytes, at + 4).unwrap_or(0);
            let is_part = u16_at(bytes, at + 6).is_some_and(|flags| flags & NLM_F_MULTI != 0);
            if !is_part || [NLMSG_DONE, NLMSG_ERROR].contains(&kind) {
                self.send(&std::mem::take(&mut datagram));
                number = number.wrapping_add(1);
            }
            at = end;
        }
        if !datagram.is_empty() {
            self.send(&datagram);
        }
    }

    /// Sends a datagram. Drops it if the socket is full, as the kernel does.
    fn send(&self, datagram: &[u8]) {
        let _ = send(self.0.as_raw_fd(), datagram, MsgFlags::empty());
    }
}
