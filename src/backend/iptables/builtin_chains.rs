//! The base chains of `table ip mangle` and `table ip6 mangle` of `nf_tables`. iptables-nft makes
//! them when it is first used. symroute removes those that exist because of it when they are empty.

use std::collections::BTreeSet;

use nix::errno::Errno;

use crate::backend::nftables::table::batch_edge;
use crate::model::{Family, PerFamily};
use crate::names::HOOKS;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, be32_at, find};
use crate::netlink::{Error, Socket};

const TABLE: &str = "mangle";

fn message(writer: &mut Writer, message: u16, flags: u16, family: Family) {
    let family = PerFamily(NFPROTO_IPV4, NFPROTO_IPV6).of(family);
    let kind = NFNL_SUBSYS_NFTABLES << 8 | message;
    writer.message(kind, NLM_F_REQUEST | flags, &[family, 0, 0, 0]);
}

/// Which chains of [`HOOKS`] exist. `None` if there is no table, or if it has other chains only.
pub(crate) fn existing(
    socket: &mut Socket,
    family: Family,
) -> Result<Option<BTreeSet<String>>, Error> {
    let mut request = Writer::with_capacity(64);
    message(&mut request, NFT_MSG_GETTABLE, 0, family);
    request.str(NFTA_TABLE_NAME, TABLE);
    let chains = socket
        .query(&mut request, |message| be32_at(find(message.body.get(4..)?, NFTA_TABLE_USE)?, 0));
    let chains = match chains {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EINVAL) => return Ok(None),
        other => other?,
    };
    let mut found = BTreeSet::new();
    for hook in HOOKS {
        let mut request = Writer::with_capacity(64);
        message(&mut request, NFT_MSG_GETCHAIN, 0, family);
        request.str(NFTA_CHAIN_TABLE, TABLE);
        request.str(NFTA_CHAIN_NAME, hook);
        match socket.query(&mut request, |_| Some(())) {
            Ok(()) => drop(found.insert(hook.to_string())),
            Err(error) if error.errno == Errno::ENOENT => {}
            Err(error) => return Err(error),
        }
    }
    Ok((chains == 0 || !found.is_empty()).then_some(found))
}

/// Removes these chains, and then the table, if they are empty. `NLM_F_NONREC` makes the kernel
/// refuse if another program uses them.
pub(crate) fn remove_empty(
    socket: &mut Socket,
    family: Family,
    chains: &BTreeSet<String>,
) -> Result<(), Error> {
    for chain in chains {
        ignore_refusal(change(socket, NFT_MSG_DELCHAIN, family, |w| {
            w.str(NFTA_CHAIN_TABLE, TABLE);
            w.str(NFTA_CHAIN_NAME, chain);
        }))?;
    }
    ignore_refusal(change(socket, NFT_MSG_DELTABLE, family, |w| w.str(NFTA_TABLE_NAME, TABLE)))
}

fn change(
    socket: &mut Socket,
    number: u16,
    family: Family,
    fill: impl FnOnce(&mut Writer),
) -> Result<(), Error> {
    let mut batch = Writer::with_capacity(128);
    batch_edge(&mut batch, NFNL_MSG_BATCH_BEGIN);
    message(&mut batch, number, NLM_F_NONREC | NLM_F_ACK, family);
    fill(&mut batch);
    batch_edge(&mut batch, NFNL_MSG_BATCH_END);
    socket.batch(&mut batch)
}

fn ignore_refusal(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if matches!(error.errno, Errno::EBUSY | Errno::ENOENT) => Ok(()),
        other => other,
    }
}
