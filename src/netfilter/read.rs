//! Reads the netfilter rules of this thread's network namespace.

use std::fs;

use super::{Ruleset, iptables, ipvs, nftables};
use crate::backend::iptables::programs::Programs;
use crate::model::{Family, Variant};
use crate::netlink::Socket;
use crate::netlink::uapi::{NFPROTO_IPV4, NFPROTO_IPV6};
use crate::node::observe::is_missing;

/// Reads all rules, and lists the parts that can't be read.
pub(crate) fn ruleset(netfilter: &mut Socket) -> Ruleset {
    let mut found = Ruleset::default();
    let installed = Programs::installed();
    for variant in Variant::ALL {
        for family in Family::ALL {
            match Programs::saved(variant, family) {
                Ok(text) => {
                    found.tables.extend(iptables::parse(&variant.to_string(), family, &text));
                }
                // nftables has the rules of iptables-nft too.
                Err(_) if variant == Variant::Nft && !installed.contains(&variant) => {}
                Err(error) => {
                    found.unread.push(format!("the {family} rules of {variant}: {error}"));
                }
            }
        }
    }
    // iptables-nft does not print a table with such a name if another program made it. Read it through
    // nftables.
    let by_text = format!("{} ", Variant::Nft);
    let is_text = |family: u8, name: &str| {
        let is =
            |own| matches!((own, family), (Family::V4, NFPROTO_IPV4) | (Family::V6, NFPROTO_IPV6));
        let mut tables = found.tables.iter();
        tables.any(|t| t.family.is_some_and(is) && t.name.strip_prefix(&by_text) == Some(name))
    };
    match nftables::tables(netfilter, is_text) {
        Ok(tables) => found.tables.extend(tables),
        Err(error) if is_missing(&error) => {}
        Err(error) => found.unread.push(format!("the rules of nftables: {error}")),
    }
    // Without IPVS the file does not exist.
    let services = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    found.services = ipvs::parse(&services);
    found
}
