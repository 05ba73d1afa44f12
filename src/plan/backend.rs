//! Decides which backend marks packets: nftables, or iptables in one of its variants.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Note, Plan};
use crate::backend::Marker;
use crate::backend::iptables::rules::Xtables;
use crate::backend::spec::Steering;
use crate::config::{Backend, Invalid, Masquerade, Settings};
use crate::model::{Facts, Family, Variant, VariantUse};
use crate::names::HOOKS;

/// Chooses the backend by the settings and by what the node has.
/// Error: the node does not have what the settings ask for.
pub(crate) fn choose(facts: &Facts, settings: &Settings) -> Result<Marker, Invalid> {
    let asked = settings.backend;
    let missing = |hint: &str| Err(Invalid::new("backend", &json!(asked.to_string()), hint));
    match asked {
        Backend::Nftables if !facts.tooling.nftables => {
            missing("this kernel has no nf_tables; set \"auto\" or \"iptables\"")
        }
        Backend::Auto if facts.tooling.nftables => Ok(Marker::Nftables),
        Backend::Nftables => Ok(Marker::Nftables),
        Backend::Auto | Backend::Iptables => match variant(facts) {
            Some(variant) => Ok(Marker::Iptables(variant)),
            None if facts.tooling.nftables => {
                missing("iptables is not installed on this node; install it, or set \"nftables\"")
            }
            None => missing("neither nf_tables nor iptables is on this node; install iptables"),
        },
        Backend::Variant(variant) if facts.tooling.iptables.contains_key(&variant) => {
            Ok(Marker::Iptables(variant))
        }
        Backend::Variant(_) => missing("that program is not installed on this node"),
    }
}

/// The iptables variant that the node uses: the one with chains of the kubelet or kube-proxy. Otherwise the one
/// with symroute's chains, otherwise the one with more rules. The images of Kubernetes choose like this, so all
/// programs of a node agree.
fn variant(facts: &Facts) -> Option<Variant> {
    let installed = &facts.tooling.iptables;
    let hinted = |variant: &Variant| installed.get(variant).is_some_and(|f| f.has_kubelet_chains);
    let ours = |variant: &Variant| {
        let of = facts.ours.mangle.iter().filter(|((v, _), _)| v == variant);
        installed.contains_key(variant)
            && of.into_iter().any(|(_, mangle)| !mangle.chains.is_empty())
    };
    let rules =
        |variant: Variant| installed.get(&variant).map(|found: &VariantUse| found.foreign_rules);
    let by_rules = || match (rules(Variant::Nft), rules(Variant::Legacy)) {
        (Some(nft), Some(legacy)) if legacy > nft => Some(Variant::Legacy),
        (Some(_), _) => Some(Variant::Nft),
        (None, Some(_)) => Some(Variant::Legacy),
        (None, None) => None,
    };
    let all = || Variant::ALL.into_iter();
    all().find(hinted).or_else(|| all().find(ours)).or_else(by_rules)
}

/// Built-in chains that exist only because of symroute: iptables-nft creates them on first use. The kernel
/// keeps those of iptables-legacy in any case.
pub(super) fn made_chains(
    facts: &Facts,
    variant: Variant,
    families: &BTreeSet<Family>,
) -> BTreeSet<(Family, String)> {
    let existing = |family, hook: &str| {
        let mangle = facts.ours.mangle.get(&(variant, family));
        let existing = mangle.and_then(|mangle| mangle.existing.as_ref());
        existing.is_some_and(|existing| existing.contains(hook))
    };
    let each = families.iter().flat_map(|&family| HOOKS.map(|hook| (family, hook.to_string())));
    each.filter(|chain| {
        let (family, hook) = chain;
        variant == Variant::Nft && (!existing(*family, hook) || facts.made_chains.contains(chain))
    })
    .collect()
}

/// Drops masquerade steering, which iptables cannot do: its table mangle comes before NAT.
/// Error: the settings ask for steering by a mark.
pub(super) fn without_steering(
    settings: &Settings,
    variant: Variant,
    steering: &mut BTreeMap<Family, Steering>,
) -> Result<Option<Note>, Invalid> {
    if let Masquerade::Mark { .. } = settings.masquerade {
        let value = settings.to_json()["masquerade"].clone();
        let hint = format!(
            "cannot be done by {variant}, whose table mangle comes before NAT; set \"backend\": \
             \"nftables\", or \"masquerade\": \"off\""
        );
        return Err(Invalid::new("masquerade", &value, hint));
    }
    if steering.is_empty() {
        return Ok(None);
    }
    steering.clear();
    Ok(Some(Note {
        what: format!(
            "{variant} cannot do masquerade steering: a pod's connection that is masqueraded may \
             leave by an uplink that has no address of its own"
        ),
        remedy: "set \"backend\": \"nftables\" or give each uplink an address; \
                  \"masquerade\": \"off\" silences this"
            .into(),
    }))
}

/// Checks that no ipset of another type has one of symroute's names and is in use. The kernel does not replace
/// a set that a rule refers to.
pub(super) fn check_sets(facts: &Facts, wanted: &Xtables) -> Result<(), Invalid> {
    let other = wanted.sets.iter().find_map(|set| {
        let found = facts.ours.ipsets.get(set.name)?;
        (!set.is_like(found) && found.references > 0).then_some((set.name, &found.kind))
    });
    match other {
        None => Ok(()),
        Some((name, kind)) => {
            let hint = format!(
                "rules of another program use an ipset {name} of type {kind}; remove those rules and \
                 the set (ipset destroy {name}), or set \"backend\": \"nftables\""
            );
            Err(Invalid::new("backend", &json!(wanted.variant.to_string()), hint))
        }
    }
}

/// Checks that iptables can match each interface name: it gives some characters a special meaning.
pub(super) fn check_names(facts: &Facts, outside: &BTreeSet<u32>) -> Result<(), Invalid> {
    let odd = |name: &str| {
        name.ends_with('+') || name.starts_with(['-', '!']) || name.contains(['"', '\'', '\\'])
    };
    match outside.iter().map(|&link| facts.link_name(link)).find(|name| odd(name)) {
        None => Ok(()),
        Some(name) => {
            let hint = "iptables cannot name this interface: rename it, leave it out with \
                        \"!name\", or set \"backend\": \"nftables\"";
            Err(Invalid::new("uplinks", &json!(name), hint))
        }
    }
}

/// Limits of the iptables backend that matter on this node. docs/backends.md lists all limits.
pub(crate) fn limits(plan: &Plan) -> Vec<String> {
    if plan.marker() == Marker::Nftables {
        return Vec::new();
    }
    let several = plan.uplinks.iter().filter(|uplink| !uplink.routers.is_empty());
    let several: Vec<_> = several.map(|uplink| uplink.name.as_str()).collect();
    let silent: Vec<_> = plan.silent.iter().map(|(_, name)| name.as_str()).collect();
    let mut limits = Vec::new();
    if !several.is_empty() {
        limits.push(format!(
            "a connection by {} stays with the router of its first request",
            several.join(", ")
        ));
    }
    if !silent.is_empty() {
        limits.push(format!("requests by {} are not counted", silent.join(", ")));
    }
    limits
}
