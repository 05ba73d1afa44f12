//! What the rules of our nftables table have counted.

use std::collections::BTreeMap;

use super::nft::{NFGENMSG, get, ours};
use super::uapi::*;
use super::wire::{attrs, find, string};
use super::{Error, Socket};

/// Packets counted by the rules of each chain that counts any.
pub fn by_chain(socket: &mut Socket) -> Result<BTreeMap<String, u64>, Error> {
    let mut request = get(NFT_MSG_GETRULE, NLM_F_DUMP, NFTA_RULE_TABLE);
    let rules = socket.dump(&mut request, |body| {
        let attributes = body.get(NFGENMSG..)?;
        if !ours(body, attributes, NFTA_RULE_TABLE) {
            return None;
        }
        let chain = find(attributes, NFTA_RULE_CHAIN).map(string)?;
        let packets =
            attrs(find(attributes, NFTA_RULE_EXPRESSIONS)?).filter_map(|(_, e)| counted(e));
        packets.reduce(|all, some| all + some).map(|packets| (chain, packets))
    })?;
    let mut counts = BTreeMap::new();
    for (chain, packets) in rules {
        *counts.entry(chain).or_default() += packets;
    }
    Ok(counts)
}

/// The packets that an expression has counted, if that is what it does.
fn counted(expression: &[u8]) -> Option<u64> {
    let name = find(expression, NFTA_EXPR_NAME).map(string)?;
    let data = find(expression, NFTA_EXPR_DATA).filter(|_| name == "counter")?;
    Some(u64::from_be_bytes(find(data, NFTA_COUNTER_PACKETS)?.try_into().ok()?))
}
