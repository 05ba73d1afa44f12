//! Collects what the kernel reports through netlink, without changing the node.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Bundle, Content};
use crate::capabilities;
use crate::config::Settings;
use crate::model::{
    Address, Facts, Family, FoundIpset, FoundSet, Link, Route, Rule, Table, mac_text,
};
use crate::names;
use crate::netlink::uapi::{IFF_UP, RT_TABLE_LOCAL, RT_TABLE_MAIN};
use crate::netlink::{Error, route};
use crate::node::apply::{Kernel, route_text};
use crate::node::{Node, View};
use crate::plan::ours;

/// Maximum number of items of one kind. A full node has a route for each pod, and a rule for each pod's
/// address.
const MAX_ITEMS: usize = 1000;

/// Adds the kernel's state. `settings` identify symroute's own tables if nothing is in force.
pub(crate) fn collect(bundle: &mut Bundle, node: &mut Node, settings: &Settings) {
    let view = node.view(settings);
    let own = view.as_ref().map_or(settings, |view| &view.settings).clone();
    let kernel = &mut node.kernel;
    let facts = links(bundle, kernel);
    for family in Family::ALL {
        rules(bundle, kernel, family);
        routes(bundle, kernel, &facts, &own, family);
    }
    neighbours(bundle, kernel, &facts, view.as_ref().ok());
    match &view {
        Ok(view) => netfilter(bundle, view, &node.unseen.text()),
        Err(error) => bundle.miss("netfilter.json", error.to_string()),
    }
    let has_table = |view: &View| view.facts.ours.table.is_some() || node.unseen.hides_rules();
    if view.as_ref().map_or(true, has_table) {
        bundle.add("nftables.txt", listed());
    }
}

fn or_missing<T: Default>(bundle: &mut Bundle, name: &str, read: Result<T, Error>) -> T {
    read.unwrap_or_else(|error| {
        bundle.miss(name, error.to_string());
        T::default()
    })
}

/// Adds the interfaces with their addresses, and returns both.
fn links(bundle: &mut Bundle, kernel: &mut Kernel) -> Facts {
    const FILE: &str = "links.json";
    let links = or_missing(bundle, FILE, route::links(&mut kernel.rtnetlink));
    let addresses = or_missing(bundle, FILE, route::addresses(&mut kernel.rtnetlink));
    let facts = Facts { links, addresses, ..Facts::default() };
    let shown = facts.links.iter().take(MAX_ITEMS).map(|link| link_json(link, &facts)).collect();
    bundle.add(FILE, Ok(Content::Json(Value::Array(shown))));
    note_cut(bundle, FILE, facts.links.len());
    facts
}

fn link_json(link: &Link, facts: &Facts) -> Value {
    let addresses = facts.addresses.iter().filter(|address| address.link == link.index);
    let address = |a: &Address| json!({"ip": a.ip, "prefix": a.net.to_string(), "scope": a.scope});
    // The plan does not need the hardware address, so netlink's is not in the facts.
    let mac = fs::read_to_string(format!("/sys/class/net/{}/address", link.name));
    json!({
        "index": link.index,
        "name": link.name,
        "kind": link.kind,
        "portOf": link.port_of,
        "parent": link.parent,
        "vrfTable": link.vrf_table,
        "up": link.flags & IFF_UP != 0,
        "carrier": link.carrier,
        "flags": format!("{:#x}", link.flags),
        "hardwareAddress": mac.ok().map(|mac| mac.trim().to_owned()),
        "addresses": addresses.map(address).collect::<Vec<_>>(),
    })
}

fn rules(bundle: &mut Bundle, kernel: &mut Kernel, family: Family) {
    let name = format!("rules-{}.txt", family_name(family));
    let found = match route::rules(&mut kernel.rtnetlink, family) {
        Ok(found) => found,
        Err(error) => return bundle.miss(&name, error.to_string()),
    };
    let line = |rule: &Rule| {
        let is_shown = rule.from.is_some() || rule.to.is_some() || rule.is_inverted;
        let more = rule.other_selectors && !is_shown;
        format!("{rule}{}\n", if more { " and other selectors" } else { "" })
    };
    let text = found.iter().take(MAX_ITEMS).map(|found| line(&found.rule)).collect();
    bundle.add(&name, Ok(Content::Text(text)));
    note_cut(bundle, &name, found.len());
}

/// Adds the routes of main and of symroute's tables, and all default routes. Default routes come first.
fn routes(
    bundle: &mut Bundle,
    kernel: &mut Kernel,
    facts: &Facts,
    settings: &Settings,
    family: Family,
) {
    let name = format!("routes-{}.txt", family_name(family));
    let matters = |r: &Route| {
        let is_main = r.table == RT_TABLE_MAIN;
        r.table != RT_TABLE_LOCAL
            && (is_main || r.is_default() || ours::is_table(settings, r.table))
    };
    let mut found = match route::routes(&mut kernel.rtnetlink, family, matters) {
        Ok(found) => found,
        Err(error) => return bundle.miss(&name, error.to_string()),
    };
    found.sort_by_key(|route| (route.dst.prefix(), route.table));
    let line = |r: &Route| {
        let (kind, protocol) = (r.kind, r.protocol);
        format!("{} metric {} proto {protocol} type {kind}\n", route_text(r, facts), r.metric)
    };
    bundle.add(&name, Ok(Content::Text(found.iter().take(MAX_ITEMS).map(line).collect())));
    note_cut(bundle, &name, found.len());
}

/// Adds the routers of default routes, with their hardware addresses if known.
fn neighbours(bundle: &mut Bundle, kernel: &mut Kernel, facts: &Facts, view: Option<&View>) {
    const FILE: &str = "neighbours.json";
    let Some(view) = view else {
        return bundle.miss(FILE, "the routers are not known without a plan");
    };
    let defaults = view.facts.routes.iter().chain(&view.plan.routes).filter(|r| r.is_default());
    let hops = defaults.flat_map(|route| &route.nexthops);
    let routers: BTreeSet<(u32, IpAddr)> =
        hops.filter_map(|hop| Some((hop.link, hop.gateway?))).collect();
    let wanted = |link: u32, ip: IpAddr| routers.contains(&(link, ip));
    let known = or_missing(bundle, FILE, route::neighbours(&mut kernel.rtnetlink, wanted));
    let router = |(link, ip): &(u32, IpAddr)| {
        let mac = known.get(&(*link, *ip)).map(|mac| mac_text(*mac));
        json!({"router": ip, "interface": facts.link_name(*link), "hardwareAddress": mac})
    };
    let routers: Vec<_> = routers.iter().map(router).collect();
    bundle.add(FILE, Ok(Content::Json(routers.into())));
}

/// Adds symroute's tables of nftables, chains of iptables and ipsets.
fn netfilter(bundle: &mut Bundle, view: &View, unseen: &str) {
    const FILE: &str = "netfilter.json";
    if !unseen.is_empty() {
        return bundle.miss(FILE, unseen);
    }
    let ours = &view.facts.ours;
    let mangle: Vec<_> = ours
        .mangle
        .iter()
        .map(|((variant, family), mangle)| {
            let is_jump = |rule: &&String| rule.contains(names::CHAIN_PREFIX);
            let jumps: Vec<_> = mangle.builtin.values().flatten().filter(is_jump).collect();
            let program = variant.to_string();
            json!({
                "program": program,
                "family": family.to_string(),
                "jumps": jumps,
                "chains": mangle.chains,
            })
        })
        .collect();
    let ipset = |(name, set): (&String, &FoundIpset)| {
        let members = set.members.iter().take(MAX_ITEMS).map(|member| {
            let no = if member.nomatch { " nomatch" } else { "" };
            let comment = member.comment.as_deref().unwrap_or_default();
            format!("{}/{}{no} {comment}", member.address, member.prefix).trim_end().to_owned()
        });
        (name.clone(), json!({"type": set.kind, "members": members.collect::<Vec<_>>()}))
    };
    let ipsets: Value = Value::Object(ours.ipsets.iter().map(ipset).collect());
    let content = json!({
        "inet": ours.table.as_ref().map(table_json),
        "arp": ours.arp.as_ref().map(table_json),
        "mangle": mangle,
        "ipsets": ipsets,
    });
    bundle.add(FILE, Ok(Content::Json(content)));
}

/// A summary of a table. Set elements are bytes here; `nftables.txt` has them as text.
fn table_json(table: &Table) -> Value {
    let chains = table.chains.iter().map(|(name, chain)| {
        let foreign = chain.rules.iter().filter(|rule| rule.is_none()).count();
        let hook = chain.hook.as_ref().map(
            |(kind, hook, priority)| json!({"type": kind, "number": hook, "priority": priority}),
        );
        let rules = chain.rules.len();
        (name.clone(), json!({"hook": hook, "rules": rules, "rulesOfOthers": foreign}))
    });
    let sets = |(name, set): (&String, &FoundSet)| (name.clone(), json!(set.elements.len()));
    json!({
        "dormant": table.dormant,
        "chains": Value::Object(chains.collect()),
        "elements": Value::Object(table.sets.iter().map(sets).collect()),
    })
}

/// The output of `nft list table`, with counters, because the code can't print rules as text.
fn listed() -> Result<Content, String> {
    capabilities::limit_programs();
    let output = Command::new("nft")
        .args(["list", "table", "inet", names::TABLE])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("run nft: {error}"))?;
    if output.status.success() {
        return Ok(Content::Text(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "nft list table inet {}: {}",
        names::TABLE,
        said.lines().next().unwrap_or_default()
    ))
}

fn note_cut(bundle: &mut Bundle, name: &str, found: usize) {
    if found > MAX_ITEMS {
        bundle.miss(name, format!("{} more than the first {MAX_ITEMS}", found - MAX_ITEMS));
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}
