//! Finds rules of iptables-legacy and iptables-nft without running these programs.

use std::fs;

use crate::backend::iptables::table_size;
use crate::doctor::Finding;
use crate::doctor::legacy::{Tables, finding};
use crate::model::Family;
use crate::names::{HOOKS, LEGACY_TABLES};
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, find, string};
use crate::netlink::{Error, Socket};

/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// A note if both kinds have rules.
pub(super) fn findings(netfilter: &mut Socket) -> Option<Finding> {
    let mut legacy = Vec::new();
    for family in Family::ALL {
        // Without the file the kernel has no such tables.
        for name in fs::read_to_string(LEGACY_TABLES.of(family)).unwrap_or_default().lines() {
            // A table that can't be read counts as empty.
            let rules = table_size::entries_added(family, name).unwrap_or(0);
            legacy.extend((rules > 0).then(|| (format!("{name} ({family})"), rules)));
        }
    }
    if legacy.is_empty() {
        return None;
    }
    // nftables that can't be read counts as empty too.
    finding(&Tables { legacy, nft: of_nft(netfilter).unwrap_or_default() })
}

/// The tables of iptables-nft that have rules in built-in chains.
fn of_nft(netfilter: &mut Socket) -> Result<Vec<String>, Error> {
    let mut request = Writer::with_capacity(64);
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETRULE;
    request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, &[0; NFGENMSG]);
    let mut found = netfilter.dump(&mut request, |body| {
        let attributes = body.get(NFGENMSG..)?;
        let table = string(find(attributes, NFTA_RULE_TABLE)?);
        let chain = string(find(attributes, NFTA_RULE_CHAIN)?);
        let is_of_iptables = ["raw", "mangle", "nat", "filter", "security"].contains(&&*table)
            && HOOKS.contains(&&*chain);
        let family = match *body.first()? {
            NFPROTO_IPV4 => Family::V4,
            NFPROTO_IPV6 => Family::V6,
            _ => return None,
        };
        is_of_iptables.then(|| format!("{table} ({family})"))
    })?;
    found.sort();
    found.dedup();
    Ok(found)
}
