//! Looks for programs and rules that take packets past connection tracking or netfilter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::errno::Errno;

use super::{bpf, flowtables};
use crate::doctor::Finding;
use crate::doctor::bypass::{
    Exempted, Nic, of_checks, of_flowtables, of_ipvs, of_programs, of_untracked,
};
use crate::error::Error;
use crate::explain::Packet;
use crate::explain::ask::Asker;
use crate::model::Family;
use crate::netlink;
use crate::netlink::uapi::{IPPROTO_TCP, IPPROTO_UDP};
use crate::node::observe::is_missing;
use crate::node::sysctl;
use crate::plan::proof::OUTSIDE;

/// UDP ports of VXLAN (4789: Calico; 8472: flannel and Cilium) and of Geneve. Tunnel packets need no reply on
/// their NIC, and network plugins exempt them from tracking.
const OVERLAYS: [u16; 3] = [4789, 8472, 6081];
/// A port that rules do not name (`discard`).
const UNNAMED_PORT: u16 = 9;
/// Maximum number of ports that are checked.
const MAX_PORTS: usize = 64;

/// Findings about uplinks, and about IPVS.
pub(super) fn findings(asker: &mut Asker<'_>) -> Result<Vec<Finding>, Error> {
    let netfilter = &mut asker.kernel.netfilter;
    let flowtables = present(flowtables::all(netfilter), "list flowtables")?;
    let mut programs = Vec::new();
    for uplink in &asker.view.plan.uplinks {
        let of_link = bpf::programs(&mut asker.kernel.rtnetlink, uplink.link);
        programs.extend(of_link.map_err(Error::kernel("list BPF programs"))?);
    }
    let uplinks = asker.view.plan.uplinks.iter();
    let uplinks: Vec<_> = uplinks.map(|u| Nic { link: u.link, name: &u.name }).collect();
    let mut found = of_untracked(&exempted(asker));
    found.extend(of_checks(&checked(asker)));
    found.extend(of_flowtables(&flowtables, &uplinks));
    found.extend(of_programs(&programs, &uplinks));
    // A thread may be in another network namespace than its process.
    let services = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    found.extend(of_ipvs(sysctl::value("ipv4/vs/conntrack"), &services));
    Ok(found)
}

/// Requests to the uplinks' addresses that rules exempt from tracking, by "table, chain".
fn exempted(asker: &Asker<'_>) -> BTreeMap<String, Exempted> {
    let mut found: BTreeMap<String, Exempted> = BTreeMap::new();
    let mut ports: Vec<u16> =
        asker.netfilter.untracked_ports().into_iter().take(MAX_PORTS).collect();
    ports.push(UNNAMED_PORT);
    for own in asker.public_addresses().filter(|own| asker.is_uplink(own.link)) {
        let client = OUTSIDE.of(Family::of(own.ip));
        for (protocol, word) in [(IPPROTO_TCP, "TCP"), (IPPROTO_UDP, "UDP")] {
            for port in
                ports.iter().filter(|port| protocol == IPPROTO_TCP || !OVERLAYS.contains(port))
            {
                let request = Packet::plain(client, own.ip, own.link).to_port(protocol, *port);
                for place in asker.untracking_rules(&request) {
                    let one = found.entry(place).or_default();
                    one.nics.insert(asker.facts().link_name(own.link));
                    one.protocols.insert(word);
                }
            }
        }
    }
    found
}

/// Requests to the uplinks' addresses whose return path rules check before symroute marks them, by "table,
/// chain".
fn checked(asker: &Asker<'_>) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for own in asker.public_addresses().filter(|own| asker.is_uplink(own.link)) {
        let family = Family::of(own.ip);
        let request =
            Packet::plain(OUTSIDE.of(family), own.ip, own.link).to_port(IPPROTO_TCP, UNNAMED_PORT);
        for place in asker.source_checks(&request) {
            let words = format!("{family} by {}", asker.facts().link_name(own.link));
            found.entry(place).or_default().insert(words);
        }
    }
    found
}

/// Treats a kernel without nftables, and missing permission, as an empty list. `doctor` reports missing
/// permission elsewhere.
fn present<T>(found: Result<Vec<T>, netlink::Error>, operation: &str) -> Result<Vec<T>, Error> {
    match found {
        Err(error) if is_missing(&error) || error.errno == Errno::EPERM => Ok(Vec::new()),
        other => other.map_err(Error::kernel(operation)),
    }
}
