//! Decides which interfaces are uplinks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::json;

use super::Uplink;
use crate::config::{Invalid, Pattern, Settings};
use crate::model::{Facts, Family, Link, PodFacts, Route, host_length, is_link_local};
use crate::names;
use crate::netlink::uapi::{IFF_LOOPBACK, IFF_POINTOPOINT, IFF_UP, RT_TABLE_MAIN};

/// Kinds of interface that `auto` never takes.
const NEVER: [&str; 2] = ["dummy", "vrf"];
/// Kinds of interface that count as a NIC, besides physical ones, which have no kind.
const NICS: [&str; 2] = ["bond", "vlan"];
/// Kinds of interface that are hosts of their own in the network of their parent.
const ON_PARENT: [&str; 2] = ["macvlan", "ipvlan"];

/// The uplinks by the settings, in the order of their indexes.
/// Error: a pattern that matches no interface, or no uplink is left.
pub(crate) fn choose<'a>(facts: &'a Facts, settings: &Settings) -> Result<Vec<&'a Link>, Invalid> {
    let signs = Signs::of(facts);
    let mut chosen = BTreeSet::new();
    for pattern in &settings.uplinks {
        let found: Vec<&Link> = match pattern {
            Pattern::Not(_) => continue,
            Pattern::Auto => facts.links.iter().filter(|l| signs.lead_outside(facts, l)).collect(),
            Pattern::Name(glob) => facts
                .links
                .iter()
                .filter(|l| l.flags & IFF_LOOPBACK == 0 && Pattern::fits(glob, &l.name))
                .collect(),
        };
        // The interfaces of a pod are created one by one.
        if found.is_empty() && facts.pod.is_none() {
            return Err(no_match(facts, &signs, pattern));
        }
        chosen.extend(found.iter().filter(|l| !is_left_out(settings, &l.name)).map(|l| l.index));
    }
    if let Some(pod) = &facts.pod {
        let stays = |l: &&Link| chosen.contains(&l.index) && may_be_of_pod(pod, l);
        return Ok(facts.links.iter().filter(stays).collect());
    }
    if chosen.is_empty() {
        let hint = "patterns with \"!\" exclude every interface that the others name; name at \
                    least one uplink";
        return Err(Invalid::new("uplinks", &settings.to_json()["uplinks"], hint));
    }
    Ok(facts.links.iter().filter(|l| chosen.contains(&l.index)).collect())
}

/// Whether an interface of a pod may be an uplink: no DEL is removing it, and no program can misread its name.
fn may_be_of_pod(pod: &PodFacts, link: &Link) -> bool {
    let plain = |sign: char| sign.is_ascii_alphanumeric() || "._-@".contains(sign);
    let is_plain = link.name.chars().all(plain) && !link.name.starts_with(['-', '@']);
    is_plain && pod.leaving.as_ref() != Some(&link.name)
}

fn no_match(facts: &Facts, signs: &Signs, pattern: &Pattern) -> Invalid {
    let hint = if *pattern == Pattern::Auto {
        let carriers: Vec<_> = facts
            .links
            .iter()
            .filter(|l| signs.by_any.contains(&l.index))
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

/// Addresses and routes that show that an interface leads outside, as sets of indexes. Collected once: a node
/// has thousands of interfaces and routes of pods.
struct Signs {
    /// Interfaces with a default route in main.
    by_main: BTreeSet<u32>,
    /// Interfaces with a default route in any table.
    by_any: BTreeSet<u32>,
    /// Interfaces with a global address.
    addressed: BTreeSet<u32>,
    /// Interfaces with a global address in a subnet of theirs. The node's end of a pod's veth has none.
    in_subnet: BTreeSet<u32>,
    /// Only for a pod: interfaces with a route in main that is not link-local.
    routed: BTreeSet<u32>,
}

impl Signs {
    fn of(facts: &Facts) -> Self {
        let through = |wanted: &dyn Fn(&Route) -> bool| -> BTreeSet<u32> {
            let defaults = facts.routes.iter().filter(|r| r.is_default() && wanted(r));
            defaults.flat_map(|r| &r.nexthops).map(|hop| hop.link).collect()
        };
        let global = facts.addresses.iter().filter(|a| a.scope == 0);
        let in_subnet = global.clone().filter(|a| a.net.prefix() < host_length(a.ip));
        Self {
            by_main: through(&|r| r.table == RT_TABLE_MAIN),
            by_any: through(&|_| true),
            addressed: global.map(|a| a.link).collect(),
            in_subnet: in_subnet.map(|a| a.link).collect(),
            routed: match &facts.pod {
                Some(_) => routed(facts),
                None => BTreeSet::new(),
            },
        }
    }

    /// Whether `auto` takes this interface.
    ///
    /// On a node: with a default route in any table, every interface except a veth. A veth needs a default
    /// route in main, because the veth of a pod may have one elsewhere. With a global address, a NIC that is no
    /// bridge port, and a macvlan or ipvlan on an uplink. A tunnel needs a public address: those of overlays
    /// and of VPNs between nodes are private.
    ///
    /// In a pod: every interface with an address or a route. A bridge needs a default route, because it may
    /// have the pod's own containers behind it.
    fn lead_outside(&self, facts: &Facts, link: &Link) -> bool {
        let kind = link.kind.as_deref();
        if link.flags & IFF_LOOPBACK != 0
            || kind.is_some_and(|k| NEVER.contains(&k))
            || link.port_of.as_deref() == Some("vrf")
        {
            return false;
        }
        let addressed = self.addressed.contains(&link.index);
        match kind {
            Some("bridge") if facts.pod.is_some() => self.by_any.contains(&link.index),
            _ if facts.pod.is_some() => {
                let leads = addressed || self.routed.contains(&link.index);
                link.port_of.is_none() && (leads || self.by_any.contains(&link.index))
            }
            Some("veth") => self.by_main.contains(&link.index),
            _ if self.by_any.contains(&link.index) => true,
            Some("bridge") => false,
            Some(kind) if ON_PARENT.contains(&kind) => {
                let parent = link.parent.and_then(|index| facts.link(index));
                let on_parent =
                    |l: &Link| l.kind.as_deref().is_some_and(|k| ON_PARENT.contains(&k));
                addressed && parent.is_some_and(|p| !on_parent(p) && self.lead_outside(facts, p))
            }
            Some(kind) if !NICS.contains(&kind) => {
                link.flags & IFF_POINTOPOINT != 0 && has_public_address(facts, link.index)
            }
            _ => link.port_of.as_deref() != Some("bridge") && addressed,
        }
    }
}

/// Interfaces with a route in main that is not link-local.
fn routed(facts: &Facts) -> BTreeSet<u32> {
    let of_main = |r: &&Route| r.table == RT_TABLE_MAIN && !is_link_local(r.dst.ip());
    facts.routes.iter().filter(of_main).flat_map(|r| &r.nexthops).map(|hop| hop.link).collect()
}

fn has_public_address(facts: &Facts, link: u32) -> bool {
    let public = |ip: IpAddr| match ip {
        // 100.64.0.0/10 is shared address space (RFC 6598).
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            !(ip.is_private() || shared || ip.is_link_local() || ip.is_loopback())
        }
        IpAddr::V6(ip) => !(ip.is_unique_local() || is_link_local(ip.into()) || ip.is_loopback()),
    };
    facts.addresses.iter().any(|a| a.link == link && a.scope == 0 && public(a.ip))
}

/// An interface with a global address or a default route that is not an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) name: String,
    pub(crate) kind: String,
    /// Why it is not an uplink.
    pub(crate) why: String,
}

impl LeftOut {
    /// Whether requests to its address arrive on it, as far as its kind shows. Requests from outside to the
    /// address of a bridge arrive on an uplink.
    pub(crate) fn is_nic(&self) -> bool {
        let kind = self.kind.as_str();
        kind.is_empty() || kind == "veth" || NICS.contains(&kind) || ON_PARENT.contains(&kind)
    }
}

/// Interfaces with a global address or a default route that are not uplinks. Not listed: those that the
/// settings exclude by name, and without a default route dummies, VRFs and veths that have no subnet.
pub(crate) fn left_out(facts: &Facts, settings: &Settings, uplinks: &[Uplink]) -> Vec<LeftOut> {
    let signs = Signs::of(facts);
    let speaks_for = |l: &&Link| {
        let kind = l.kind.as_deref();
        let is_addressed = match kind {
            Some("veth") => signs.in_subnet.contains(&l.index),
            Some(kind) if NEVER.contains(&kind) => false,
            _ => signs.addressed.contains(&l.index),
        };
        l.flags & IFF_LOOPBACK == 0
            && !is_left_out(settings, &l.name)
            && uplinks.iter().all(|u| u.link != l.index)
            && (signs.by_any.contains(&l.index) || is_addressed)
    };
    let why = |l: &Link| match l.kind.as_deref() {
        _ if l.port_of.as_deref() == Some("vrf") => "a port of a VRF",
        _ if l.port_of.as_deref() == Some("bridge") => "a port of a bridge",
        _ if signs.lead_outside(facts, l) => "\"uplinks\" does not name it",
        Some("veth") => "\"auto\" takes a veth only with main's default route",
        Some("bridge") => "a bridge without a default route",
        Some(kind) if ON_PARENT.contains(&kind) => "its parent is no uplink",
        Some(kind) if NEVER.contains(&kind) => "\"auto\" takes no interface of this kind",
        _ => "a tunnel without a default route or a public address",
    };
    let each = facts.links.iter().filter(speaks_for).map(|l| LeftOut {
        name: l.name.clone(),
        kind: l.kind.clone().unwrap_or_default(),
        why: why(l).into(),
    });
    each.collect()
}

fn is_left_out(settings: &Settings, name: &str) -> bool {
    let not = |p: &Pattern| matches!(p, Pattern::Not(glob) if Pattern::fits(glob, name));
    settings.uplinks.iter().any(not)
}

/// NICs without address and default route: index and name, [`names::SILENT_MOST`] at most. The ruleset counts
/// packets that arrive on them, and `status` names a NIC with packets.
pub(crate) fn silent(facts: &Facts, settings: &Settings, uplinks: &[Uplink]) -> Vec<(u32, String)> {
    let signs = Signs::of(facts);
    let is_nic = |l: &&Link| {
        let kind = l.kind.as_deref();
        let is_nic = kind.is_none_or(|k| NICS.contains(&k) || ON_PARENT.contains(&k));
        is_nic && l.port_of.is_none() && l.flags & IFF_LOOPBACK == 0 && l.flags & IFF_UP != 0
    };
    let is_silent = |l: &&Link| {
        !signs.addressed.contains(&l.index)
            && !signs.by_any.contains(&l.index)
            && !is_left_out(settings, &l.name)
            && uplinks.iter().all(|u| u.link != l.index)
    };
    let silent = facts.links.iter().filter(is_nic).filter(is_silent);
    let most = usize::try_from(names::SILENT_MOST).unwrap_or(usize::MAX);
    silent.take(most).map(|l| (l.index, l.name.clone())).collect()
}

/// Interfaces that lead outside: uplinks, interfaces that `auto` would take, and those with a default route in
/// main. A source that the node routes there may be bound. With uplinks alone, a node that names only its
/// second NIC would bind no client that it reaches through the first.
pub(crate) fn outside(facts: &Facts, chosen: &BTreeSet<u32>) -> BTreeSet<u32> {
    let main = |r: &&Route| r.is_wide() && r.table == RT_TABLE_MAIN;
    let by_main = facts.routes.iter().filter(main).flat_map(|r| &r.nexthops).map(|hop| hop.link);
    let signs = Signs::of(facts);
    let candidates = facts.links.iter().filter(|l| signs.lead_outside(facts, l));
    let all = candidates.map(|l| l.index).chain(by_main).chain(chosen.iter().copied());
    all.collect()
}

/// Whether the interface has a global address of the family.
pub(crate) fn has_address(facts: &Facts, link: u32, family: Family) -> bool {
    facts.addresses.iter().any(|a| a.link == link && a.scope == 0 && Family::of(a.ip) == family)
}
