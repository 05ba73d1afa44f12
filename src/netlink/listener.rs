//! A socket for multicast messages of netfilter.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

use super::uapi::{NETLINK_ADD_MEMBERSHIP, SOL_NETLINK};
use super::wire::Writer;

/// Maximum size of a datagram in bytes.
const DATAGRAM: usize = 32 * 1024;

/// Result of reading from a [`Listener`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    Datagram(&'a [u8]),
    /// The kernel dropped messages because the socket's buffer was full.
    Lost,
    /// No datagram is waiting.
    Nothing,
}

/// A listening socket in the network namespace of the thread that opened it. Never blocks.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Listener {
    /// Opens a socket that has joined no group yet. `room`: bytes that the kernel buffers.
    pub(crate) fn netfilter(room: usize) -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        // Without CAP_NET_ADMIN the buffer stays small and overflows earlier, but the reader
        // notices a loss.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &room);
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, buffer: vec![0; DATAGRAM] })
    }

    /// Joins a multicast group (`NFNLGRP_*`).
    pub(crate) fn join(&self, group: u32) -> Result<(), Errno> {
        #[expect(clippy::cast_possible_truncation, reason = "four")]
        let len = size_of_val(&group) as libc::socklen_t;
        // SAFETY: the pointer and the length describe `group`, which outlives the call; the
        // descriptor is open for as long as `self` lives.
        let rc = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                SOL_NETLINK,
                NETLINK_ADD_MEMBERSHIP,
                (&raw const group).cast(),
                len,
            )
        };
        Errno::result(rc).map(drop)
    }

    /// Sends a request. The kernel answers at once; read the answer with [`Self::hear`].
    pub(crate) fn ask(&self, request: &Writer) -> Result<(), Errno> {
        send(self.fd.as_raw_fd(), request.as_bytes(), MsgFlags::empty()).map(drop)
    }

    /// Reads one datagram, if one is waiting.
    pub(crate) fn hear(&mut self) -> Result<Heard<'_>, Errno> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Heard::Nothing),
                Err(Errno::ENOBUFS) => return Ok(Heard::Lost),
                Err(errno) => return Err(errno),
                Ok(len) => return Ok(Heard::Datagram(&self.buffer[..len])),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
