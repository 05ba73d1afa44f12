//! The table of family arp: strict `rp_filter` judges ARP requests as well (`arp_process`,
//! `net/ipv4/arp.c`), and those have no connection whose mark they could get. Without a mark the
//! kernel drops a router's request for the address of a second NIC, and no packet ever comes.

use super::chains::{chain, equals, plain, set_packet};
use super::rules::{Chain, Expression::Iif, Hook, Ruleset};
use crate::backend::spec::Uplink;
use crate::model::Field;
use crate::netlink::uapi::NF_ARP_IN;

/// The desired table: requests that come in by these uplinks carry their mark. None where there
/// are none.
pub(crate) fn build<'a>(
    field: Field,
    uplinks: impl Iterator<Item = &'a Uplink>,
) -> Option<Ruleset> {
    let rules: Vec<_> = uplinks
        .map(|uplink| {
            let mark = set_packet(field, field.of(uplink.id));
            plain([&[Iif, equals(uplink.link)][..], &mark].concat())
        })
        .collect();
    let hook = Hook { kind: "filter", number: NF_ARP_IN, priority: 0 };
    let input = Chain { hook: Some(hook), ..chain("input".into(), rules) };
    (!input.rules.is_empty()).then(|| Ruleset { sets: Vec::new(), chains: vec![input] })
}
