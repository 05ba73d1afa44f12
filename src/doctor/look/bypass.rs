//! Reads what takes packets past connection tracking or netfilter.

use std::fs;

use nix::errno::Errno;

use super::{bpf, untracked};
use crate::doctor::Finding;
use crate::doctor::bypass::{Nic, of_flowtables, of_ipvs, of_programs, of_untracked};
use crate::error::Error;
use crate::explain::ask::Asker;
use crate::netlink;
use crate::node::observe::is_missing;
use crate::node::sysctl;

/// What concerns the uplinks, and IPVS.
pub(super) fn findings(asker: &mut Asker<'_>) -> Result<Vec<Finding>, Error> {
    let netfilter = &mut asker.kernel.netfilter;
    let rules = present(untracked::rules(netfilter), "list the rules of nftables")?;
    let flowtables = present(untracked::flowtables(netfilter), "list flowtables")?;
    let mut programs = Vec::new();
    for uplink in &asker.view.plan.uplinks {
        let of_link = bpf::programs(&mut asker.kernel.rtnetlink, uplink.link);
        programs.extend(of_link.map_err(Error::kernel("list BPF programs"))?);
    }
    let uplinks = asker.view.plan.uplinks.iter();
    let uplinks: Vec<_> = uplinks.map(|u| Nic { link: u.link, name: &u.name }).collect();
    let mut found = of_untracked(&rules, &uplinks, asker.facts());
    found.extend(of_flowtables(&flowtables, &uplinks));
    found.extend(of_programs(&programs, &uplinks));
    // A thread may be in another network namespace than its process.
    let services = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
    found.extend(of_ipvs(sysctl::value("ipv4/vs/conntrack"), &services));
    Ok(found)
}

/// A kernel without nftables has none. What a user without root may not read is noted elsewhere.
fn present<T>(found: Result<Vec<T>, netlink::Error>, operation: &str) -> Result<Vec<T>, Error> {
    match found {
        Err(error) if is_missing(&error) || error.errno == Errno::EPERM => Ok(Vec::new()),
        other => other.map_err(Error::kernel(operation)),
    }
}
