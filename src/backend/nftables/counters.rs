//! Reads the counters of the nftables table.

use super::chains::{BIND, BOUND, FORGET, LEAVE, SILENT, UTURN, VIA};
use super::table::{NFGENMSG, get, is_ours};
use crate::backend::counts::Counted;
use crate::netlink::uapi::*;
use crate::netlink::wire::{attrs, find, string};
use crate::netlink::{Error, Socket};

/// Reads what each rule with a counter has counted.
pub(crate) fn read(socket: &mut Socket) -> Result<Vec<(Counted, u64)>, Error> {
    let mut request = get(NFT_MSG_GETRULE, NLM_F_DUMP, NFTA_RULE_TABLE);
    socket.dump(&mut request, |body| {
        let attributes = body.get(NFGENMSG..)?;
        if !is_ours(body, attributes, NFTA_RULE_TABLE) {
            return None;
        }
        let counted = counted_by(&find(attributes, NFTA_RULE_CHAIN).map(string)?)?;
        let packets =
            attrs(find(attributes, NFTA_RULE_EXPRESSIONS)?).filter_map(|(_, e)| packets(e));
        packets.reduce(|all, some| all + some).map(|packets| (counted, packets))
    })
}

/// What the rules of a chain count; `None` if they have no counter that matters.
fn counted_by(chain: &str) -> Option<Counted> {
    if [FORGET, LEAVE].contains(&chain) {
        return Some(Counted::Cleared);
    }
    let (job, id) = chain.rsplit_once('_')?;
    let id = id.parse().ok()?;
    match job {
        BIND => Some(Counted::Bound(id)),
        BOUND | VIA | UTURN => Some(Counted::Steered(id)),
        SILENT => Some(Counted::Silent(id)),
        _ => None,
    }
}

/// The packets of a counter expression; `None` for another expression.
fn packets(expression: &[u8]) -> Option<u64> {
    let name = find(expression, NFTA_EXPR_NAME).map(string)?;
    let data = find(expression, NFTA_EXPR_DATA).filter(|_| name == "counter")?;
    Some(u64::from_be_bytes(find(data, NFTA_COUNTER_PACKETS)?.try_into().ok()?))
}
