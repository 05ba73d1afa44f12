//! Reads the counters of the active rules for an operator or a metric.

use std::collections::BTreeMap;

use crate::backend::Marker;
use crate::backend::counts::Counts;
use crate::backend::iptables::counters::parse;
use crate::backend::iptables::programs::Programs;
use crate::backend::nftables;
use crate::error::Error;
use crate::model::{Family, Field};
use crate::netlink::{Socket, conntrack};

/// Number of connections in a flowtable, by the id of their uplink.
pub(crate) fn offloaded(field: Field) -> Result<BTreeMap<u32, u64>, Error> {
    let failed = || Error::kernel("list connections that are offloaded");
    let mut socket = Socket::netfilter().map_err(failed())?;
    let mut by_id = BTreeMap::new();
    for mark in conntrack::marks_of_offloaded(&mut socket).map_err(failed())? {
        *by_id.entry(field.id(mark)).or_default() += 1;
    }
    // These are in another program's flowtable.
    by_id.remove(&0);
    Ok(by_id)
}

/// Counters of the rules of this backend.
pub(crate) fn read(socket: &mut Socket, marker: Marker, field: Field) -> Result<Counts, Error> {
    let mut counts = Counts::default();
    match marker {
        Marker::Nftables => {
            let failed = || Error::kernel("read counters of table inet symroute");
            counts.extend(nftables::counters::read(socket).map_err(failed())?);
        }
        Marker::Iptables(variant) => {
            for family in Family::ALL {
                counts.extend(parse(field, &Programs::mangle_with_counts(variant, family)?));
            }
        }
    }
    Ok(counts)
}
