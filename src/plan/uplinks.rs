//! Which interfaces are uplinks.

use std::collections::BTreeSet;

use serde_json::json;

use crate::config::{Invalid, Pattern, Settings};
use crate::model::{Facts, Family, Link, Route};
use crate::netlink::uapi::{IFF_LOOPBACK, RT_TABLE_MAIN};

/// Kinds of interface that `auto` never takes.
const NEVER: [&str; 4] = ["veth", "bridge", "dummy", "vrf"];
/// Kinds of interface that count as a NIC; a physical one has no kind.
const NICS: [&str; 2] = ["bond", "vlan"];

/// The interfaces that the settings name, in the order of their indexes.
/// Error: a pattern that matches no interface.
pub(crate) fn choose<'a>(facts: &'a Facts, settings: &Settings) -> Result<Vec<&'a Link>, Invalid> {
    let left_out = |link: &Link| {
        settings
            .uplinks
            .iter()
            .any(|p| matches!(p, Pattern::Not(g) if Pattern::fits(g, &link.name)))
    };
    let mut chosen = BTreeSet::new();
    for pattern in &settings.uplinks {
        let found: Vec<&Link> = match pattern {
            Pattern::Not(_) => continue,
            Pattern::Auto => facts.links.iter().filter(|l| leads_outside(facts, l)).collect(),
            Pattern::Name(glob) => facts
                .links
                .iter()
                .filter(|l| l.flags & IFF_LOOPBACK == 0 && Pattern::fits(glob, &l.name))
                .collect(),
        };
        if found.is_empty() {
            return Err(nothing(facts, pattern));
        }
        chosen.extend(found.iter().filter(|l| !left_out(l)).map(|l| l.index));
    }
    if chosen.is_empty() {
        let hint = "everything that is named is left out again; name at least one uplink";
        return Err(Invalid::new("uplinks", &settings.to_json()["uplinks"], hint));
    }
    Ok(facts.links.iter().filter(|l| chosen.contains(&l.index)).collect())
}

fn nothing(facts: &Facts, pattern: &Pattern) -> Invalid {
    let hint = if *pattern == Pattern::Auto {
        let carriers: Vec<_> = facts
            .links
            .iter()
            .filter(|l| has_default_route(facts, l))
            .map(|l| format!("{} ({})", l.name, l.kind.as_deref().unwrap_or("port of a VRF")))
            .collect();
        let carriers = if carriers.is_empty() { "none".into() } else { carriers.join(", ") };
        format!(
            "no interface leads outside; those with a default route that \"auto\" never takes: \
             {carriers}; name the uplinks: \"uplinks\": [\"eth0\"]"
        )
    } else {
        let names: Vec<_> = facts.links.iter().map(|l| l.name.as_str()).collect();
        format!("no interface matches; there are: {}", names.join(", "))
    };
    Invalid::new("uplinks", &json!(pattern.to_string()), hint)
}

/// What `auto` stands for: every interface that carries a default route in any table, and every
/// NIC with a global address of its own that is no bridge port.
fn leads_outside(facts: &Facts, link: &Link) -> bool {
    let kind = link.kind.as_deref();
    let port_of = link.port_of.as_deref();
    let never = link.flags & IFF_LOOPBACK != 0
        || kind.is_some_and(|k| NEVER.contains(&k))
        || port_of == Some("vrf");
    let nic = kind.is_none_or(|k| NICS.contains(&k)) && port_of != Some("bridge");
    let addressed = || Family::ALL.into_iter().any(|f| has_address(facts, link.index, f));
    !never && (has_default_route(facts, link) || nic && addressed())
}

/// Whether a default route of any family and any table leads through the interface.
fn has_default_route(facts: &Facts, link: &Link) -> bool {
    let through = |r: &Route| r.nexthops.iter().any(|hop| hop.link == link.index);
    facts.routes.iter().any(|r| r.is_default() && through(r))
}

/// Interfaces that lead outside: the chosen, those that `auto` would take, and those that main
/// has a default route through. A source that the node routes there may be bound. Without the
/// ones that are not chosen, a node that names only its second NIC would bind no client that is
/// reached by the first.
pub(crate) fn outside(facts: &Facts, chosen: &BTreeSet<u32>) -> BTreeSet<u32> {
    let main = |r: &&Route| r.is_wide() && r.table == RT_TABLE_MAIN;
    let by_main = facts.routes.iter().filter(main).flat_map(|r| &r.nexthops).map(|hop| hop.link);
    let candidates = facts.links.iter().filter(|l| leads_outside(facts, l));
    let all = candidates.map(|l| l.index).chain(by_main).chain(chosen.iter().copied());
    all.collect()
}

/// Whether the interface has a global address of the family.
pub(crate) fn has_address(facts: &Facts, link: u32, family: Family) -> bool {
    facts.addresses.iter().any(|a| a.link == link && a.scope == 0 && Family::of(a.ip) == family)
}
