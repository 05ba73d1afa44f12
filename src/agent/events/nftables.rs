//! Events of `nf_tables`: who changed our table.
//!
//! The kernel tells each change of a transaction, and then, by `NFT_MSG_NEWGEN`, which program
//! made it. So what an ADD or a DEL of ours does is told from what somebody else does without a
//! look at the node. Few of these messages are about us: only their headers are read.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::names;
use crate::netlink::uapi::{
    NFNL_SUBSYS_NFTABLES, NFPROTO_INET, NFT_MSG_NEWGEN, NFTA_GEN_PROC_NAME,
};
use crate::netlink::wire::{Message, attrs, find, messages, string};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h, as a bit.
const GROUP: u32 = 1 << (7 - 1);
/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Room for events in the kernel: a whole ruleset of iptables comes at once.
const BUFFER: usize = 1 << 20;
/// Room for one datagram.
const DATAGRAM: usize = 32 * 1024;

/// What a transaction means for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody else changed our table.
    Foreign,
    /// The kernel had to drop events.
    Lost,
}

/// Hands every event to `take` until the socket fails; see [`super::route::watch`].
///
/// # Errors
/// The socket can't be opened or read.
pub async fn watch(ready: impl FnOnce(), mut take: impl FnMut(Event)) -> Result<(), String> {
    let fail = |error: io::Error| format!("listen to nf_tables: {error}");
    let socket = open().map_err(|errno| fail(errno.into()))?;
    // SAFETY: the socket owns its open descriptor, which stays the same until it is dropped.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
        .map_err(|error| fail(error.into()))?;
    ready();
    let (mut buffer, mut transaction) = (vec![0; DATAGRAM], Transaction::default());
    loop {
        let read = socket.async_io(Interest::READABLE, |fd| {
            Ok(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?)
        });
        match read.await {
            Ok(len) => {
                for message in messages(&buffer[..len]) {
                    if transaction.take(message) {
                        take(Event::Foreign);
                    }
                }
            }
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => take(Event::Lost),
            Err(error) => return Err(fail(error)),
        }
        // One task of several: a flood must not starve the others.
        tokio::task::yield_now().await;
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkNetFilter;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    // A smaller buffer loses events earlier, and a loss is noticed.
    let _ = setsockopt(&fd, sockopt::RcvBufForce, &BUFFER);
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
    Ok(fd)
}

/// The transaction whose changes are being told.
#[derive(Debug, Default)]
struct Transaction {
    of_ours: bool,
}

impl Transaction {
    /// Takes a message; whether it ends a transaction in which somebody else changed our table.
    fn take(&mut self, message: Message<'_>) -> bool {
        let Some(attributes) = message.body.get(NFGENMSG..) else { return false };
        if message.kind >> 8 != NFNL_SUBSYS_NFTABLES {
            return false;
        }
        if message.kind & 0xff == NFT_MSG_NEWGEN {
            let by_us =
                find(attributes, NFTA_GEN_PROC_NAME).map(string).as_deref() == Some(names::PROGRAM);
            return std::mem::take(&mut self.of_ours) && !by_us;
        }
        // The first attribute of every message is the name of the table.
        let table = attrs(attributes).next().filter(|(kind, _)| *kind == 1).map(|(_, name)| name);
        let name = table.map(|name| name.strip_suffix(&[0]).unwrap_or(name));
        self.of_ours |= message.body[0] == NFPROTO_INET && name == Some(names::TABLE.as_bytes());
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::uapi::{NFNL_SUBSYS_NFTABLES, NFT_MSG_DELTABLE, NFTA_TABLE_NAME};
    use crate::netlink::wire::Writer;

    fn foreign(family: u8, table: &str, program: &str) -> bool {
        let kind = |kind: u16| NFNL_SUBSYS_NFTABLES << 8 | kind;
        let mut writer = Writer::default();
        writer.message(kind(NFT_MSG_DELTABLE), 0, &[family, 0, 0, 0]);
        writer.str(NFTA_TABLE_NAME, table);
        writer.message(kind(NFT_MSG_NEWGEN), 0, &[0, 0, 0, 0]);
        writer.str(NFTA_GEN_PROC_NAME, program);
        let mut transaction = Transaction::default();
        let told = messages(writer.as_bytes()).filter(|m| transaction.take(*m)).count();
        assert!(told <= 1 && !transaction.of_ours);
        told == 1
    }

    #[test]
    fn only_changes_of_our_table_by_others_count() {
        assert!(foreign(NFPROTO_INET, "symroute", "nft"));
        assert!(!foreign(NFPROTO_INET, "symroute", "symroute"));
        assert!(!foreign(NFPROTO_INET, "kube-proxy", "nft"));
        assert!(!foreign(2, "symroute", "nft"));
        assert!(!foreign(NFPROTO_INET, "symroute2", "nft"));
    }
}
