//! Reads the rules of this thread's network namespace.

use std::fs;

use super::{Ruleset, iptables, ipvs, nftables};
use crate::backend::iptables::programs::Programs;
use crate::model::{Family, Variant};
use crate::netlink::Socket;
use crate::node::observe::is_missing;

/// All that can be read. What can't is named.
pub(crate) fn ruleset(netfilter: &mut Socket) -> Ruleset {
    let mut found = Ruleset::default();
    let installed = Programs::installed();
    let by_text = installed.contains(&Variant::Nft);
    match nftables::tables(netfilter, !by_text) {
        Ok(tables) => found.tables.extend(tables),
        Err(error) if is_missing(&error) => {}
        Err(error) => found.unread.push(format!("the rules of nftables: {error}")),
    }
    for variant in Variant::ALL {
        for family in Family::ALL {
            match Programs::saved(variant, family) {
                Ok(text) => {
                    found.tables.extend(iptables::parse(&variant.to_string(), family, &text));
                }
                // Those of iptables-nft are among the rules of nftables.
                Err(_) if variant == Variant::Nft && !by_text => {}
                Err(error) => {
                    found.unread.push(format!("the {family} rules of {variant}: {error}"));
                }
            }
        }
    }
    // Without IPVS there is no such file.
    let services = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    found.services = ipvs::parse(&services);
    found
}
