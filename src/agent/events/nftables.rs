//! Events of `nf_tables`: who changed our table.
//!
//! The kernel tells each change of a transaction, and then, by `NFT_MSG_NEWGEN`, which program
//! made it. So what an ADD or a DEL of ours does is told from what somebody else does without a
//! look at the node. Few of these messages are about us: only their first attributes are read.
//!
//! Where iptables-nft does the marking, our rules stand in its tables mangle. Our own changes are
//! made by iptables-nft-restore there, as others' are, so each costs one more look.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::names::{self, HOOKS};
use crate::netlink::uapi::*;
use crate::netlink::wire::{Message, attrs, find, messages, string};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h, as a bit.
const GROUP: u32 = 1 << (7 - 1);
/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// Room for events in the kernel: a whole ruleset of iptables comes at once.
const BUFFER: usize = 1 << 20;
/// Room for one datagram.
const DATAGRAM: usize = 32 * 1024;

/// The kernel tells these names of a change of ours.
const OUR_PROGRAMS: [&str; 2] = [names::PROGRAM, names::TOOL];

/// What a transaction means for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody else changed our table.
    Foreign,
    /// Somebody changed what may be ours in a table mangle of iptables-nft.
    Mangle,
    Lost,
}

/// Hands every event to `take` until the socket fails; see [`super::route::watch`].
pub(crate) async fn watch(ready: impl FnOnce(), mut take: impl FnMut(Event)) -> Result<(), String> {
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
                    transaction.take(message).into_iter().for_each(&mut take);
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
pub(crate) struct Transaction {
    of_ours: bool,
    of_mangle: bool,
}

impl Transaction {
    /// Takes a message; what it says of a transaction that it ends.
    pub(crate) fn take(&mut self, message: Message<'_>) -> Vec<Event> {
        let Some(attributes) = message.body.get(NFGENMSG..) else { return Vec::new() };
        if message.kind >> 8 != NFNL_SUBSYS_NFTABLES {
            return Vec::new();
        }
        let kind = message.kind & 0xff;
        if kind == NFT_MSG_NEWGEN {
            let program = find(attributes, NFTA_GEN_PROC_NAME).map(string);
            let by_us = program.is_some_and(|name| OUR_PROGRAMS.contains(&name.as_str()));
            let ended = std::mem::take(self);
            let foreign = (ended.of_ours && !by_us).then_some(Event::Foreign);
            let mangle = ended.of_mangle.then_some(Event::Mangle);
            return foreign.into_iter().chain(mangle).collect();
        }
        // The first attribute of every message is the name of the table.
        let table = attrs(attributes).next().filter(|(kind, _)| *kind == 1).map(|(_, name)| name);
        let name = table.map(|name| name.strip_suffix(&[0]).unwrap_or(name));
        let family = message.body[0];
        self.of_ours |=
            [NFPROTO_INET, NFPROTO_ARP].contains(&family) && name == Some(names::TABLE.as_bytes());
        if matches!(family, NFPROTO_IPV4 | NFPROTO_IPV6) && name == Some(b"mangle") {
            self.of_mangle |= concerns_us(kind, attributes);
        }
        Vec::new()
    }
}

/// Whether a change of a table mangle is about one of our chains, or about one that leads to ours.
fn concerns_us(kind: u16, attributes: &[u8]) -> bool {
    let chain = match kind {
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE => find(attributes, NFTA_RULE_CHAIN),
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => find(attributes, NFTA_CHAIN_NAME),
        NFT_MSG_DELTABLE => return true,
        _ => None,
    };
    chain.map(string).is_some_and(|chain| {
        chain.starts_with(names::CHAIN_PREFIX) || HOOKS.contains(&chain.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::uapi::{NFTA_RULE_TABLE, NFTA_TABLE_NAME};
    use crate::netlink::wire::Writer;

    fn message(kind: u16, family: u8, attributes: &[(u16, &str)]) -> Writer {
        let mut writer = Writer::default();
        writer.message(NFNL_SUBSYS_NFTABLES << 8 | kind, 0, &[family, 0, 0, 0]);
        for (attribute, text) in attributes {
            writer.str(*attribute, text);
        }
        writer
    }

    fn told(change: &Writer, program: &str) -> Vec<Event> {
        let end = message(NFT_MSG_NEWGEN, 0, &[(NFTA_GEN_PROC_NAME, program)]);
        let both = [change.as_bytes(), end.as_bytes()].concat();
        let mut transaction = Transaction::default();
        let told = messages(&both).flat_map(|m| transaction.take(m)).collect();
        assert!(!transaction.of_ours && !transaction.of_mangle);
        told
    }

    fn table(family: u8, table: &str, program: &str) -> Vec<Event> {
        told(&message(NFT_MSG_DELTABLE, family, &[(NFTA_TABLE_NAME, table)]), program)
    }

    #[test]
    fn only_changes_of_our_table_by_others_count() {
        assert_eq!(table(NFPROTO_INET, "symroute", "nft"), [Event::Foreign]);
        for ours in OUR_PROGRAMS {
            assert_eq!(table(NFPROTO_INET, "symroute", ours), []);
        }
        assert_eq!(table(NFPROTO_INET, "kube-proxy", "nft"), []);
        assert_eq!(table(NFPROTO_IPV4, "symroute", "nft"), []);
        assert_eq!(table(NFPROTO_INET, "symroute2", "nft"), []);
    }

    #[test]
    fn of_mangle_count_our_chains_and_those_that_lead_to_them() {
        let rule = |family, chain| {
            let attributes = [(NFTA_RULE_TABLE, "mangle"), (NFTA_RULE_CHAIN, chain)];
            told(&message(NFT_MSG_DELRULE, family, &attributes), "iptables")
        };
        for family in [NFPROTO_IPV4, NFPROTO_IPV6] {
            assert_eq!(rule(family, "symroute-in-1"), [Event::Mangle]);
            assert_eq!(rule(family, "PREROUTING"), [Event::Mangle]);
            assert_eq!(rule(family, "KUBE-PROXY-CANARY"), []);
            assert_eq!(table(family, "mangle", "nft"), [Event::Mangle]);
            assert_eq!(table(family, "nat", "nft"), []);
        }
        assert_eq!(rule(NFPROTO_INET, "PREROUTING"), []);
    }
}
