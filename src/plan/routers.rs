//! Routers of an uplink that has several. A reply goes to the router that the request came from. The request's
//! hardware address identifies the router, and each router has an id and a table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::gateways::known_routers;
use super::{Note, Uplink, Way, ids};
use crate::config::Settings;
use crate::model::{Facts, Family, Link, Mac, Nexthop};

/// A router with an id of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Router {
    pub(crate) mac: Mac,
    /// The uplink with this router's id, table and default route.
    pub(crate) uplink_via: Uplink,
}

/// Interface and address of each router whose hardware address the plan needs to distinguish routers.
pub(crate) fn candidates<'a>(
    facts: &'a Facts,
    settings: &'a Settings,
    links: impl Iterator<Item = &'a Link> + 'a,
) -> impl Iterator<Item = (u32, IpAddr)> + 'a {
    links.flat_map(|link| {
        let each = Family::ALL.map(|family| known_routers(facts, settings, link, family));
        // With a single router per family there is nothing to distinguish.
        let several = each.iter().any(|routers| routers.len() > 1);
        let all = each.into_iter().flatten().filter(move |_| several);
        all.map(|ip| (link.index, ip)).collect::<Vec<_>>()
    })
}

/// Gives ids to the routers of an uplink, as long as ids are left. A router that alone is the uplink's usual
/// next hop uses the id of the uplink.
pub(crate) fn with_routers(
    facts: &Facts,
    settings: &Settings,
    link: &Link,
    uplink: Uplink,
    taken: &mut BTreeSet<u32>,
    notes: &mut Vec<Note>,
) -> Uplink {
    let (mut routers, mut usual_macs) = (Vec::new(), Vec::new());
    for (mac, gateways) in by_mac(facts, settings, link) {
        let usual = gateways.iter().all(|(family, ip)| {
            let way = uplink.ways.get(family).map(|way| way.gateways().collect::<Vec<_>>());
            way.as_deref() == Some(&[*ip])
        });
        if usual {
            usual_macs.push(mac);
            continue;
        }
        let Some(id) = ids::of_router(facts, settings, link.index, mac, &gateways, taken) else {
            notes.push(Note {
                what: format!(
                    "markMask {} has no id left for all routers of {}: replies to some of them go \
                     to its usual one",
                    settings.field, uplink.name
                ),
                remedy: "set a wider markMask".into(),
            });
            continue;
        };
        taken.insert(id);
        let uplink_via =
            Uplink { id, table: settings.table(id), ..with_gateways(&uplink, &gateways) };
        routers.push(Router { mac, uplink_via });
    }
    Uplink { routers, usual_macs, ..uplink }
}

/// The routers by hardware address. Of several with one hardware address and family, the first counts.
fn by_mac(
    facts: &Facts,
    settings: &Settings,
    link: &Link,
) -> BTreeMap<Mac, BTreeMap<Family, IpAddr>> {
    let mut found: BTreeMap<Mac, BTreeMap<Family, IpAddr>> = BTreeMap::new();
    for (link, ip) in candidates(facts, settings, std::iter::once(link)) {
        if let Some(mac) = mac_of(facts, settings, link, ip) {
            found.entry(mac).or_default().entry(Family::of(ip)).or_insert(ip);
        }
    }
    found
}

/// Hardware address of a router: from the kernel's neighbour table, or the last known one.
fn mac_of(facts: &Facts, settings: &Settings, link: u32, ip: IpAddr) -> Option<Mac> {
    let known = facts.neighbours.get(&(link, ip)).copied();
    known.or_else(|| ids::remembered_mac(facts, settings, link, ip))
}

/// The uplink with these routers instead of its usual ones.
fn with_gateways(uplink: &Uplink, gateways: &BTreeMap<Family, IpAddr>) -> Uplink {
    let mut uplink = uplink.clone();
    for (family, &ip) in gateways {
        let hop = Nexthop { link: uplink.link, gateway: Some(ip), onlink: false, weight: 0 };
        if let Some(way) = uplink.ways.get_mut(family) {
            *way = Way { hops: vec![hop], ..way.clone() };
        }
    }
    uplink
}
