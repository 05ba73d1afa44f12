//! What the data plane counts: read where somebody wants to know it, and kept nowhere.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::facts::{Family, Variant};
use crate::mark::Field;
use crate::netlink::{Socket, counters};
use crate::xtables;
use crate::xtables::tools::Tools;

/// Counts since the rules were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections bound, by the id of the uplink.
    pub bound: BTreeMap<u32, u64>,
    /// Packets that were made to leave by an uplink, by its id.
    pub steered: BTreeMap<u32, u64>,
    /// Packets that lost a mark that was evidence only.
    pub cleared: u64,
}

impl Counts {
    /// Reads what the rules in force count: those of this variant of iptables, else of nftables.
    pub fn read(variant: Option<Variant>, field: Field) -> Result<Self, Error> {
        let mut counts = Self::default();
        let Some(variant) = variant else {
            let failed = || Error::kernel("read counters of table inet symroute");
            let mut socket = Socket::netfilter().map_err(failed())?;
            for (chain, packets) in counters::by_chain(&mut socket).map_err(failed())? {
                counts.add(&chain, packets);
            }
            return Ok(counts);
        };
        for family in Family::ALL {
            let text = Tools::mangle_with_counts(variant, family)?;
            xtables::counters::add(&mut counts, field, &text);
        }
        Ok(counts)
    }

    /// Adds what a chain of nftables has counted; see [`crate::ruleset::build`].
    fn add(&mut self, chain: &str, packets: u64) {
        let Some((job, id)) = chain.rsplit_once('_') else {
            self.cleared += if matches!(chain, "forget" | "leave") { packets } else { 0 };
            return;
        };
        let Ok(id) = id.parse() else { return };
        match job {
            "bind" => *self.bound.entry(id).or_default() += packets,
            "bound" | "via" | "uturn" => *self.steered.entry(id).or_default() += packets,
            _ => {}
        }
    }
}
