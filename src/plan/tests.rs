//! Properties of the plan and of the steps towards it, on random nodes.
//!
//! A model of the kernel executes the steps, so that the tests can check each intermediate state.

mod flows;
mod large;
mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use proptest::collection::vec;
use proptest::prelude::*;

use super::diff::flush_flows;
use super::diff::{Operation, diff};
use super::*;
use crate::backend::iptables::tests::{change_set, restore};
use crate::backend::nftables::encode::{rule_body, set_numbers};
use crate::backend::nftables::fingerprint;
use crate::backend::nftables::rules::{Expression, TableFamily};
use crate::backend::nftables::table_diff::TableChange;
use crate::config::{Backend, Pattern};
use crate::model::Field;
use crate::model::{
    Action, Address, ElementData, Flowtables, FoundChain, FoundFlowtable, FoundRule, FoundSet,
    Link, Mangle, Nexthop, Ours, Table, Variant, VariantUse,
};
use crate::names;
use crate::netlink::uapi::{IFF_POINTOPOINT, IFF_UP, NFT_FLOWTABLE_COUNTER, RT_TABLE_LOCAL};

/// Changes the facts as the kernel would for this step.
fn execute(facts: &mut Facts, step: &Operation) {
    match step {
        Operation::AddRoute(route) => facts.ours.routes.push(route.clone()),
        Operation::ReplaceRoute { old, new } => {
            let at = facts.ours.routes.iter().position(|r| r == old).expect("a route to replace");
            facts.ours.routes[at] = new.clone();
        }
        Operation::DeleteRoute(route) => {
            let at = facts.ours.routes.iter().position(|r| r == route).expect("a route to delete");
            facts.ours.routes.remove(at);
        }
        Operation::AddRule(rule) => {
            facts.ours.rules.push(FoundRule { rule: rule.clone(), message: Vec::new() });
        }
        Operation::DeleteRule(found) => {
            let at = facts.ours.rules.iter().position(|r| r == found).expect("a rule to delete");
            facts.ours.rules.remove(at);
        }
        Operation::SrcValidMark { link, on } => set_sysctl(facts, *link, *on),
        Operation::Table(family, changes) => {
            let table = match family {
                TableFamily::Inet => &mut facts.ours.table,
                TableFamily::Arp => &mut facts.ours.arp,
            };
            for c in changes {
                change(table, c);
            }
        }
        Operation::Sets(changes) => {
            for change in changes {
                change_set(&mut facts.ours.ipsets, change);
            }
        }
        Operation::RemoveEmpty(family, chains) => {
            let table = facts.ours.mangle.get_mut(&(Variant::Nft, *family)).expect("a table");
            let existing = table.existing.as_mut().expect("chains");
            existing.retain(|chain| !chains.contains(chain));
        }
        Operation::Mangle(scripts) => {
            for script in scripts {
                let table = facts.ours.mangle.entry((script.variant, script.family)).or_default();
                restore(table, &script.change);
            }
        }
    }
}

/// Like the plugin, records what has to be set back before it changes the kernel.
fn set_sysctl(facts: &mut Facts, link: u32, on: bool) {
    if on {
        facts.restore.insert(link)
    } else {
        facts.restore.remove(&link)
    };
    facts.src_valid_mark.insert(link, u32::from(on));
}

fn change(table: &mut Option<Table>, change: &TableChange) {
    if *change == TableChange::DeleteTable {
        assert!(table.take().is_some(), "a table to delete");
        return;
    }
    let table = table.get_or_insert_default();
    let there = "made before it is used";
    match change {
        TableChange::DeleteTable | TableChange::NewTable => {}
        TableChange::NewSet(set) => {
            let numbers = set_numbers(set);
            let data_type = numbers.data.map_or(0, |(kind, _)| kind);
            let (flags, key_type) = (numbers.flags, numbers.key_type);
            let size = set.size;
            let found = FoundSet { flags, key_type, data_type, size, elements: BTreeSet::new() };
            assert!(table.sets.insert(set.name.clone(), found).is_none());
        }
        TableChange::NewChain(chain) => {
            let hook = chain.hook.map(|h| (h.kind.to_string(), h.number, h.priority));
            let found = FoundChain { hook, rules: Vec::new() };
            assert!(table.chains.insert(chain.name.clone(), found).is_none());
        }
        TableChange::FlushChain(name) => {
            table.chains.get_mut(name).expect(there).rules.clear();
        }
        TableChange::AppendRule(name, rule) => {
            for expression in &rule.expressions {
                match expression {
                    Expression::Goto(chain) => assert!(table.chains.contains_key(chain)),
                    Expression::Offload(name) => {
                        assert!(table.flowtables.contains_key(*name));
                    }
                    Expression::VerdictMap(set) | Expression::InSet { set, .. } => {
                        assert!(table.sets.contains_key(*set));
                    }
                    _ => {}
                }
            }
            let print = fingerprint::of_rule(rule, rule_body(rule).as_bytes());
            table.chains.get_mut(name).expect(there).rules.push(Some(print));
        }
        TableChange::DeleteElements(name, elements) => {
            let set = table.sets.get_mut(name).expect(there);
            for element in elements {
                assert!(set.elements.remove(element));
            }
        }
        TableChange::AddElements(name, elements) => {
            for (_, data) in elements {
                if let ElementData::Goto(chain) = data {
                    assert!(table.chains.contains_key(chain), "{chain}");
                }
            }
            let set = table.sets.get_mut(name).expect(there);
            for element in elements {
                assert!(set.elements.insert(element.clone()));
            }
            let keys: BTreeSet<_> = set.elements.iter().map(|(key, _)| key).collect();
            assert_eq!(keys.len(), set.elements.len(), "{name} has one element to a key");
        }
        TableChange::DeleteChain(name) => {
            let into = |set: &FoundSet| {
                set.elements.iter().any(|(_, data)| *data == ElementData::Goto(name.clone()))
            };
            assert!(!table.sets.values().any(into), "{name} is still in a map");
            assert!(table.chains.remove(name).expect(there).rules.is_empty());
        }
        TableChange::DeleteSet(name) => drop(table.sets.remove(name).expect(there)),
        TableChange::NewFlowtable(new) => {
            let (priority, devices) = (new.priority, new.devices.clone());
            let found = FoundFlowtable { priority, flags: NFT_FLOWTABLE_COUNTER, devices };
            assert!(table.flowtables.insert(new.name.into(), found).is_none());
        }
        TableChange::DeleteFlowtable(name) => {
            let unused = |chain: &FoundChain| chain.rules.is_empty();
            let users = table.chains.iter().filter(|(chain, _)| chain.starts_with("flows_"));
            assert!(users.map(|(_, chain)| chain).all(unused), "{name} is still in use");
            drop(table.flowtables.remove(name).expect(there));
        }
        TableChange::AddDevices(some) => {
            let found = table.flowtables.get_mut(some.name).expect(there);
            some.devices.iter().for_each(|name| assert!(found.devices.insert(name.clone())));
        }
        TableChange::RemoveDevices(some) => {
            let found = table.flowtables.get_mut(some.name).expect(there);
            some.devices.iter().for_each(|name| assert!(found.devices.remove(name)));
        }
    }
}

/// Checks what must hold in each intermediate state: a mark finds its rule, and the rule finds a
/// table with all its routes.
fn assert_safe(facts: &Facts, settings: &Settings, goal: &Plan) {
    let arrivals: BTreeSet<u32> = facts
        .ours
        .table
        .iter()
        .filter_map(|table| table.sets.get(names::ARRIVE))
        .flat_map(|set| &set.elements)
        .map(|(key, _)| u32::from_ne_bytes(key.as_slice().try_into().unwrap()))
        .collect();
    for uplink in goal.uplinks.iter().filter(|u| arrivals.contains(&u.link)) {
        for &family in &goal.families {
            let has = |wanted: &dyn Fn(&Rule) -> bool| {
                facts.ours.rules.iter().any(|f| f.rule.family == family && wanted(&f.rule))
            };
            let mark = settings.field.of(uplink.id);
            assert!(has(&|r| r.action == Action::Lookup(uplink.table)), "402 of {}", uplink.name);
            assert!(has(&|r| r.iif.as_ref() == Some(&uplink.name)
                && r.mark == Some(settings.field.matches(mark))));
            assert!(has(&|r| r.priority == settings.priority + 3));
        }
    }
    for found in &facts.ours.rules {
        let Action::Lookup(table) = found.rule.action else { continue };
        let wanted = |r: &&Route| r.table == table && r.family() == found.rule.family;
        for route in goal.routes.iter().filter(wanted) {
            let same = |r: &Route| (r.table, r.dst) == (route.table, route.dst);
            assert!(facts.ours.routes.iter().any(same), "{route:?} is there when its rule is");
        }
    }
}

fn base_rules() -> Vec<FoundRule> {
    let mut rules = Vec::new();
    for family in Family::ALL {
        for (priority, table) in [(0, RT_TABLE_LOCAL), (1536, 2), (32766, RT_TABLE_MAIN)] {
            let plain = Rule::of_all(family, priority, Action::Lookup(table), 2);
            let rule = Rule { other_selectors: priority == 1536, ..plain };
            rules.push(FoundRule { rule, message: Vec::new() });
        }
    }
    rules
}

fn nic(index: u32, kind: u8) -> Link {
    let kinds = [None, None, None, Some("veth"), Some("tun"), Some("bond"), Some("bridge")];
    let kind = kinds[usize::from(kind) % kinds.len()];
    let tunnel = if kind == Some("tun") { IFF_POINTOPOINT } else { 0 };
    Link {
        index,
        name: format!("eth{index}"),
        kind: kind.map(Into::into),
        flags: IFF_UP | tunnel,
        carrier: true,
        ..Link::default()
    }
}

fn net(link: u32, v6: bool) -> (IpAddr, IpNetwork, IpAddr) {
    let text = if v6 { format!("2001:db8:{link}::") } else { format!("10.{link}.0.") };
    let at = |n: u8| format!("{text}{n}").parse::<IpAddr>().unwrap();
    (at(10), IpNetwork::new(at(10), if v6 { 64 } else { 24 }).unwrap(), at(1))
}

/// Another address of the same network.
fn beside(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => (u32::from(ip) + 1).to_be_bytes().into(),
        IpAddr::V6(ip) => (u128::from(ip) + 1).to_be_bytes().into(),
    }
}

fn route(table: u32, dst: IpNetwork, link: u32, gateway: Option<IpAddr>) -> Route {
    let metric = if dst.is_ipv4() { 0 } else { 1024 };
    let nexthops = vec![Nexthop { link, gateway, onlink: false, weight: 0 }];
    let scope = if gateway.is_none() && dst.is_ipv4() { 253 } else { 0 };
    let metrics = Vec::new();
    Route { table, dst, kind: 1, scope, protocol: 3, metric, nexthops, metrics, is_special: false }
}

prop_compose! {
    /// A node with some interfaces; each may have addresses, a connected route and default routes.
    fn any_facts()(nics in vec((any::<u8>(), any::<u8>(), 1u32..4), 1..8), pods in 0u8..5)
        -> Facts
    {
        let mut facts = Facts { rules: base_rules(), ..Facts::default() };
        for (index, (kind, has, table)) in (2..).zip(nics) {
            facts.links.push(nic(index, kind));
            facts.src_valid_mark.insert(index, u32::from(has >> 6 & 1));
            facts.rp_filter.insert(index, u32::from(has >> 7));
            for (v6, bits) in [(false, has), (true, has >> 3)] {
                let (ip, subnet, gateway) = net(index, v6);
                let family = Family::of(ip);
                if bits & 1 != 0 {
                    facts.addresses.push(Address { link: index, net: subnet, ip, scope: 0 });
                    let dst = IpNetwork::new(subnet.network(), subnet.prefix()).unwrap();
                    facts.routes.push(route(RT_TABLE_MAIN, dst, index, None));
                }
                if bits & 2 != 0 {
                    let in_main = bits & 4 != 0;
                    let table = if in_main { RT_TABLE_MAIN } else { 100 + table };
                    let mut default = route(table, family.default_route(), index, Some(gateway));
                    default.metric += index;
                    facts.routes.push(default.clone());
                    if bits & 5 == 5 {
                        // A second router. It may be one device with the router of the other
                        // family.
                        let other = beside(gateway);
                        default.nexthops[0].gateway = Some(other);
                        default.metric += 50;
                        facts.routes.push(default);
                        let last = u8::try_from(index).unwrap();
                        facts.neighbours.insert((index, gateway), [2, 0, 0, 0, 1, last]);
                        facts.neighbours.insert((index, other), [2, 0, 0, 0, has & 3, last]);
                    }
                }
            }
        }
        facts.left_out = (0..pods).map(|n| format!("10.99.0.{n}").parse().unwrap()).collect();
        facts.tooling.iptables.insert(Variant::Nft, VariantUse::default());
        facts
    }
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let masks = prop_oneof![Just(0x1f00), Just(0x0f_0000), Just(0x8000_0107)];
    (masks, any::<[bool; 6]>(), 300u32..500, 40_000u32..50_000).prop_map(
        |(mask, [host, hairpin, auto, off, iptables, offload], priority, table_base)| Settings {
            uplinks: vec![if auto { Pattern::Auto } else { Pattern::Name("eth*".into()) }],
            field: Field::new(mask).unwrap(),
            masquerade: if off { Masquerade::Off } else { Masquerade::Auto },
            host,
            hairpin,
            backend: if iptables { Backend::Variant(Variant::Nft) } else { Backend::Auto },
            priority,
            table_base,
            offload,
            ..Settings::default()
        },
    )
}

/// Executes all steps to a plan, and checks each intermediate state.
fn advance(facts: &mut Facts, goal: &Plan, settings: &Settings) {
    for step in diff(facts, goal) {
        execute(facts, &step);
        assert_safe(facts, settings, goal);
    }
}

/// State of other programs, and whether symroute has any state.
fn others(facts: &Facts) -> (Vec<Route>, Vec<FoundRule>, BTreeMap<u32, u32>, bool) {
    let (routes, rules) = (facts.routes.clone(), facts.rules.clone());
    // The model keeps a mangle table that was read, but empty.
    let is_empty = |m: &Mangle| m.chains.is_empty() && m.builtin.values().all(Vec::is_empty);
    let mangle = facts.ours.mangle.values().all(is_empty);
    let rest = Ours { mangle: BTreeMap::new(), ..facts.ours.clone() };
    (routes, rules, facts.src_valid_mark.clone(), mangle && rest == Ours::default())
}

proptest! {
    #[test]
    fn steps_lead_to_the_plan_and_back(mut facts in any_facts(), settings in any_settings()) {
        let before = others(&facts);
        let Ok(goal) = plan(&facts, &settings) else { return Ok(()) };
        advance(&mut facts, &goal, &settings);
        // The plugin's own state does not change the plan: ids, uplinks and gateways are kept.
        let again = plan(&facts, &settings).unwrap();
        prop_assert_eq!(&again, &goal);
        prop_assert_eq!(diff(&facts, &again), vec![]);
        for step in diff(&facts, &Plan::default()) {
            execute(&mut facts, &step);
        }
        prop_assert_eq!(others(&facts), before);
    }

    #[test]
    fn other_settings_leave_nothing_of_the_old(
        mut facts in any_facts(), old in any_settings(), new in any_settings()
    ) {
        let before = others(&facts);
        let Ok(goal) = plan(&facts, &old) else { return Ok(()) };
        advance(&mut facts, &goal, &old);
        let Ok(goal) = plan(&facts, &new) else { return Ok(()) };
        for step in diff(&facts, &goal) {
            execute(&mut facts, &step);
        }
        for step in diff(&facts, &Plan::default()) {
            execute(&mut facts, &step);
        }
        prop_assert_eq!(others(&facts), before);
    }

    #[test]
    fn ids_stay_when_an_uplink_comes(mut facts in any_facts(), settings in any_settings()) {
        let Ok(goal) = plan(&facts, &settings) else { return Ok(()) };
        advance(&mut facts, &goal, &settings);
        // An interface that sorts before all others.
        facts.links.insert(0, Link { index: 1, name: "eth1".into(), flags: IFF_UP, ..nic(1, 0) });
        facts.routes.push(route(77, Family::V4.default_route(), 1, "10.1.0.1".parse().ok()));
        facts.src_valid_mark.insert(1, 0);
        let Ok(next) = plan(&facts, &settings) else { return Ok(()) };
        for uplink in &goal.uplinks {
            let kept = next.uplinks.iter().find(|u| u.link == uplink.link).unwrap();
            prop_assert_eq!(kept.id, uplink.id);
        }
        let all = || next.uplinks.iter().flat_map(Uplink::units);
        let ids: BTreeSet<_> = all().map(|u| u.id).collect();
        prop_assert_eq!(ids.len(), all().count());
    }
}

#[test]
fn what_is_in_the_flowtable_goes_back_to_the_rules_after_each_change_but_of_pods() {
    let mut facts = Facts { rules: base_rules(), ..Facts::default() };
    for index in [2, 3] {
        let (ip, subnet, gateway) = net(index, false);
        facts.links.push(nic(index, 0));
        facts.src_valid_mark.insert(index, 0);
        facts.addresses.push(Address { link: index, net: subnet, ip, scope: 0 });
        let dst = Family::V4.default_route();
        facts
            .routes
            .push(Route { metric: index, ..route(RT_TABLE_MAIN, dst, index, Some(gateway)) });
    }
    let settings = Settings { offload: true, ..Settings::default() };
    let settle = |facts: &mut Facts| {
        let goal = plan(facts, &settings).unwrap();
        let flush = flush_flows(facts, &goal, &diff(facts, &goal));
        advance(facts, &goal, &settings);
        if let Some(step) = &flush {
            execute(facts, step);
        }
        advance(facts, &goal, &settings);
        assert_eq!(diff(facts, &goal), vec![]);
        let table = facts.ours.table.as_ref().unwrap();
        (flush.is_some(), table.flowtables[names::OFFLOAD].devices.clone())
    };
    let names = |names: &[&str]| names.iter().map(|name| String::from(*name)).collect();
    assert_eq!(settle(&mut facts), (false, names(&["eth2", "eth3"])));
    facts.links.push(Link { name: "cali1".into(), ..nic(4, 3) });
    assert_eq!(settle(&mut facts), (false, names(&["cali1", "eth2", "eth3"])), "a pod came");
    facts.links.pop();
    assert_eq!(settle(&mut facts), (false, names(&["eth2", "eth3"])), "it went");
    facts.links.push(Link { name: "cali1".into(), ..nic(4, 3) });
    settle(&mut facts);
    facts.links[2].port_of = Some("bridge".into());
    assert!(settle(&mut facts).0, "a port of a bridge takes no connection along");
    facts.hairpins.insert("10.9.0.1".parse().unwrap());
    settle(&mut facts);
    facts.hairpins.insert("10.9.0.2".parse().unwrap());
    assert!(!settle(&mut facts).0, "a pod with settings of its own");
    facts.routes[0].nexthops[0].gateway = "10.2.0.7".parse().ok();
    assert_eq!(settle(&mut facts), (true, names(&["eth2", "eth3"])), "another router");
    facts.addresses[0].link = 3;
    assert!(settle(&mut facts).0, "an address moved");
    facts.tooling.flowtables = Flowtables::Missing;
    let goal = plan(&facts, &settings).unwrap();
    assert!(!goal.offloads() && goal.notes.len() == 1);
    facts.tooling.nftables = false;
    facts.tooling.iptables.insert(Variant::Legacy, VariantUse::default());
    assert_eq!(plan(&facts, &settings).unwrap_err().key, "offload");
}
