//! The table of family arp. Strict `rp_filter` judges ARP requests as well (`arp_process`,
//! `net/ipv4/arp.c`), and an ARP request has no connection to take a mark from. Without a mark the
//! kernel drops a router's request for the address of a second NIC, and no packet ever arrives
//! there.
//!
//! A request for the address of another NIC gets no mark. Perhaps only this drop keeps two NICs in
//! one network from answering for each other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::chains::{chain, equals, plain, set_packet};
use super::rules::{
    Chain,
    Expression::{ArpTarget, Iif, InSet},
    Hook, Ruleset,
};
use super::sets::own_addresses;
use crate::backend::spec::Uplink;
use crate::model::{Family, Field};
use crate::names;
use crate::netlink::uapi::NF_ARP_IN;

/// The desired table: ARP requests that arrive on one of these uplinks for its own address get its
/// mark. `own`: interface and address. `None` if no uplink needs a rule.
pub(crate) fn build<'a>(
    field: Field,
    uplinks: impl Iterator<Item = &'a Uplink>,
    own: &BTreeSet<(u32, IpAddr)>,
) -> Option<Ruleset> {
    let for_own = [Iif, ArpTarget, InSet { set: names::OWN.of(Family::V4), not: false }];
    let rules: Vec<_> = uplinks
        .map(|uplink| {
            let mark = set_packet(field, field.of(uplink.id));
            plain([&for_own[..], &[Iif, equals(uplink.link)], &mark].concat())
        })
        .collect();
    let hook = Hook { kind: "filter", number: NF_ARP_IN, priority: 0 };
    let input = Chain { hook: Some(hook), ..chain("input".into(), rules) };
    let sets = vec![own_addresses(own, Family::V4)];
    (!input.rules.is_empty()).then(|| Ruleset { sets, chains: vec![input], flowtable: None })
}
