//! Requests from outside to each address of the node, on the interface that has the address.

use std::net::IpAddr;

use crate::doctor::{Finding, of_request};
use crate::error::Error;
use crate::explain::Packet;
use crate::explain::ask::Asker;
use crate::model::{Facts, Family};
use crate::netlink::uapi::{IFF_LOOPBACK, IFF_UP};
use crate::plan::proof::OUTSIDE;

/// Findings about these requests, each once for an interface.
pub(super) fn findings(asker: &mut Asker<'_>) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    for packet in requests(asker.facts(), asker) {
        for one in asker.explain(packet)? {
            let is_wanted = !asker.is_unused_nic(packet.link);
            let finding = of_request(asker.facts(), &one, is_wanted);
            // Several addresses of an interface have the same fault.
            let is_new = |f: &Finding| !found.iter().any(|known: &Finding| known.what == f.what);
            found.extend(finding.filter(is_new));
        }
    }
    Ok(found)
}

fn requests(facts: &Facts, asker: &Asker<'_>) -> Vec<Packet> {
    let real = |link: u32| {
        facts.link(link).is_some_and(|l| l.flags & IFF_LOOPBACK == 0 && l.flags & IFF_UP != 0)
    };
    let own = asker
        .public_addresses()
        .filter(|address| real(address.link))
        .filter(|address| !asker.leads_inside(address.link) || asker.is_unused_nic(address.link));
    let client = |ip: IpAddr| OUTSIDE.of(Family::of(ip));
    own.map(|a| Packet::plain(client(a.ip), a.ip, a.link)).collect()
}
