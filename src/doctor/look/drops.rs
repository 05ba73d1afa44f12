//! Watches the kernel's drop counter, and samples arriving packets meanwhile.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use super::sample::Sampler;
use crate::doctor::Finding;
use crate::doctor::drops::{Arrival, Dropped, Watched, findings as judge};
use crate::error::Error;
use crate::explain::ask::Asker;
use crate::explain::{Ending, Packet};
use crate::model::Link;
use crate::netlink::uapi::IFF_LOOPBACK;
use crate::netstat;

/// Maximum number of address pairs that are looked up in the kernel.
const MAX_LOOKUPS: usize = 256;

/// Findings about drops between `before` and the end of `watched`. Without an `asker` no sources are named.
pub(super) fn findings(
    before: Option<u64>,
    watched: Duration,
    asker: Option<&mut Asker<'_>>,
) -> Result<Vec<Finding>, Error> {
    let sampler = Sampler::open();
    let arrivals = match sampler {
        Ok(sampler) => Ok(sampler.collect(watched)),
        Err(errno) => {
            thread::sleep(watched);
            Err(format!("{}; it needs CAP_NET_RAW", errno.desc()))
        }
    };
    // The kernel lacks the counter.
    let (Some(before), Some(after)) = (before, netstat::rp_filter_drops()) else {
        return Ok(Vec::new());
    };
    if after == before {
        return Ok(Vec::new());
    }
    let mut uplinks = Vec::new();
    let dropped = match (arrivals, asker) {
        (Ok(arrivals), Some(asker)) => {
            uplinks.extend(asker.view.settings.uplinks.iter().map(ToString::to_string));
            Ok(dropped(asker, arrivals)?)
        }
        (Ok(_), None) => Err("the settings can't be kept".into()),
        (Err(why), _) => Err(why),
    };
    Ok(judge(&Watched { before, after, uplinks, dropped }))
}

/// The arrivals that the filter drops, according to the kernel's look-ups.
fn dropped(asker: &mut Asker<'_>, arrivals: BTreeMap<Arrival, u64>) -> Result<Vec<Dropped>, Error> {
    let mut arrivals: Vec<_> = arrivals.into_iter().filter(|(a, _)| a.is_checked()).collect();
    arrivals.sort_by_key(|(_, packets)| Reverse(*packets));
    let mut found: BTreeMap<(Ipv4Addr, u32), Dropped> = BTreeMap::new();
    for (Arrival { from, to, link }, packets) in arrivals.into_iter().take(MAX_LOOKUPS) {
        let real = |l: &&Link| l.flags & IFF_LOOPBACK == 0;
        let Some(of_link) = asker.facts().link(link).filter(real).cloned() else { continue };
        let explained = asker.explain(Packet::plain(from.into(), to.into(), link))?;
        if explained.iter().any(|one| one.now().ending == Ending::Filtered) {
            let is_uplink = asker.uplinks().contains(&link);
            let new = Dropped { from, to, link: of_link, is_uplink, packets: 0 };
            found.entry((from, link)).or_insert(new).packets += packets;
        }
    }
    Ok(found.into_values().collect())
}
