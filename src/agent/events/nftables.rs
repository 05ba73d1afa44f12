//! Events of `nf_tables`: which program changed symroute's table.
//!
//! The kernel reports each change of a transaction, and then the program that made it
//! (`NFT_MSG_NEWGEN`). So the agent ignores the changes of the plugin's ADD or DEL without a look
//! at the node. Few of these messages concern symroute, so the agent reads only the attributes
//! with names.
//!
//! Where iptables-nft marks, symroute's rules are in its tables `mangle`. There the kernel reports
//! `iptables-nft-restore` for every program. So each change by symroute costs one more look.

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

/// Multicast group `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`, as a bit.
const GROUP: u32 = 1 << (7 - 1);
/// Size of `struct nfgenmsg` in bytes.
const NFGENMSG: usize = 4;
/// Receive buffer in bytes. iptables-nft-restore changes a whole ruleset at once.
const BUFFER: usize = 1 << 20;
/// Buffer for one datagram, in bytes.
const DATAGRAM: usize = 32 * 1024;

/// Names that the kernel reports for changes by symroute.
const OUR_PROGRAMS: [&str; 2] = [names::PROGRAM, names::TOOL];

/// Event that a transaction gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Another program changed symroute's table.
    Foreign,
    /// A program changed a symroute chain or a built-in chain in a table `mangle` of iptables-nft.
    Mangle,
    /// The kernel dropped events.
    Lost,
}

/// Joins the group, calls `ready`, and then passes every event to `take` until the socket fails.
/// Error: the socket can't be opened, or a read failed.
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
        // A flood of events must not starve the other tasks.
        tokio::task::yield_now().await;
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkNetFilter;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    // With a smaller buffer the kernel drops events earlier, and the agent notices that.
    let _ = setsockopt(&fd, sockopt::RcvBufForce, &BUFFER);
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
    Ok(fd)
}

/// The transaction that the kernel currently reports.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// Whether it changes symroute's table.
    changes_our_table: bool,
    /// Whether it changes symroute's chains or built-in chains in a table `mangle`.
    changes_mangle: bool,
}

impl Transaction {
    /// Takes a message. Returns the events of the transaction if the message ends it.
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
            let foreign = (ended.changes_our_table && !by_us).then_some(Event::Foreign);
            let mangle = ended.changes_mangle.then_some(Event::Mangle);
            return foreign.into_iter().chain(mangle).collect();
        }
        // The first attribute of every message is the name of the table.
        let table = attrs(attributes).next().filter(|(kind, _)| *kind == 1).map(|(_, name)| name);
        let name = table.map(|name| name.strip_suffix(&[0]).unwrap_or(name));
        let family = message.body[0];
        self.changes_our_table |=
            [NFPROTO_INET, NFPROTO_ARP].contains(&family) && name == Some(names::TABLE.as_bytes());
        if matches!(family, NFPROTO_IPV4 | NFPROTO_IPV6) && name == Some(b"mangle") {
            self.changes_mangle |= concerns_us(kind, attributes);
        }
        Vec::new()
    }
}

/// Whether a change of a table `mangle` is about a symroute chain, or a built-in chain that jumps
/// to one.
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
        assert!(!transaction.changes_our_table && !transaction.changes_mangle);
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
