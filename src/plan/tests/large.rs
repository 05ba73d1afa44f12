//! Pods with very many rules, addresses and routes. Code with quadratic cost would take minutes here.

use super::pods::{planned, pod};
use super::*;
use crate::netlink::uapi::RTPROT_KERNEL;

const RULES: u32 = 20_000;
const ROUTES: u32 = 100_000;

fn net1() -> IpAddr {
    "10.3.0.10".parse().unwrap()
}

/// A different network for each number.
fn numbered(first: u8, prefix: u8, number: u32) -> IpNetwork {
    let ip = (u32::from(first) << 24) + (number << (32 - prefix));
    IpNetwork::new(IpAddr::V4(ip.into()), prefix).unwrap()
}

fn found(rule: Rule) -> FoundRule {
    FoundRule { rule, message: Vec::new() }
}

/// A rule of another program by an address.
fn by(ip: IpAddr, priority: u32, table: u32) -> FoundRule {
    let of_all = Rule::of_all(Family::of(ip), priority, Action::Lookup(table), 4);
    found(Rule { from: Some(ip.into()), other_selectors: true, ..of_all })
}

fn dummy(facts: &mut Facts) -> u32 {
    let (index, kind) = (99, Some("dummy".into()));
    facts.links.push(Link { kind, name: "dummy0".into(), ..nic(index, 0) });
    index
}

/// Each of these rules leaves each of these networks without an answer.
#[test]
fn rules_by_an_own_address_and_networks_behind_bridges() {
    let mut facts = pod(&["net1"]);
    facts.rules.extend((0..RULES).map(|n| by(net1(), 1000 + n, 9)));
    facts.routes.push(route(9, Family::V4.default_route(), 3, Some("10.3.0.1".parse().unwrap())));
    for index in 100..140 {
        let kind = Some("bridge".into());
        facts.links.push(Link { kind, name: format!("br{index}"), ..nic(index, 0) });
        facts.routes.push(route(RT_TABLE_MAIN, numbered(172, 24, index), index, None));
    }
    let unanswered = planned(&facts).unanswered;
    assert_eq!(unanswered.len(), 32);
    let is_advised = |note: &Note| note.remedy.ends_with("pref 999");
    assert!(unanswered[0].what.starts_with("172.0.100.0/24 behind br100"), "{}", unanswered[0]);
    assert!(is_advised(&unanswered[0]), "{}", unanswered[0]);
    // If each network has an exempting rule, the plan examines all pairs.
    for index in 100..140 {
        let of_all = Rule::of_all(Family::V4, 900, Action::Lookup(RT_TABLE_MAIN), 4);
        let to = Some(numbered(172, 24, index));
        facts.rules.push(found(Rule { to, other_selectors: true, ..of_all }));
    }
    assert_eq!(planned(&facts).unanswered, []);
}

#[test]
fn routes_by_an_uplink_and_routes_that_lead_inside() {
    let mut facts = pod(&["net1"]);
    let dummy = dummy(&mut facts);
    let outward = (0..ROUTES).map(|n| route(RT_TABLE_MAIN, numbered(11, 30, n), 3, None));
    let inward = (0..ROUTES).map(|n| route(RT_TABLE_MAIN, numbered(12, 32, n), dummy, None));
    facts.routes.extend(outward.chain(inward));
    // The first 10 are left to main: a part of each lies inside.
    let parts = (0..10).map(|n| route(RT_TABLE_MAIN, numbered(11, 32, n * 4), dummy, None));
    facts.routes.extend(parts);
    let plan = planned(&facts);
    let goes_on = |rule: &&Rule| matches!(rule.action, Action::Goto(405));
    let to: Vec<_> = plan.rules.iter().filter(goes_on).filter_map(|rule| rule.to).collect();
    assert_eq!(to.len(), names::NETWORKS_OF_POD);
    assert!(to.contains(&numbered(11, 30, 10)) && !to.contains(&numbered(11, 30, 9)));
    let of_net1 = plan.routes.iter().filter(|r| r.table == plan.uplinks[1].table);
    assert!(of_net1.count() > ROUTES as usize, "all of them are copied");
}

#[test]
fn addresses() {
    let mut facts = pod(&["net1"]);
    let address = |(link, n)| {
        let ip = numbered(13, 32, n).ip();
        Address { link, net: ip.into(), ip, scope: 0 }
    };
    // Both interfaces have the last address.
    let all = (0..ROUTES).map(|n| (3, n)).chain([(2, ROUTES - 1)]);
    facts.addresses.extend(all.map(address));
    // Rules of another program match some of them.
    facts.rules.extend((0..RULES).map(|n| by(numbered(13, 32, n).ip(), 33_000, 9)));
    let plan = planned(&facts);
    let by_table = plan.rules.iter().filter(|rule| rule.priority == 405 && rule.from.is_some());
    assert_eq!(by_table.count(), (ROUTES - 1 - RULES) as usize + 2);
}

/// Each rule before symroute's is compared with all routes of its table and of the uplink's table.
#[test]
fn rules_before_ours_by_tables_that_say_the_same() {
    let mut facts = pod(&["net1"]);
    let gateways = [("net1".to_string(), vec!["10.3.0.1".parse().unwrap()])].into();
    facts.pod = Some(crate::model::PodFacts { gateways, ..Default::default() });
    let default = route(9, Family::V4.default_route(), 3, Some("10.3.0.1".parse().unwrap()));
    let on_link = (0..RULES).map(|n| route(9, numbered(11, 32, n), 3, None));
    facts.routes.extend(on_link.chain([default]));
    facts.routes.push(route(9, "10.3.0.0/24".parse().unwrap(), 3, None));
    facts.rules.extend((0..RULES).map(|_| by(net1(), 100, 9)));
    assert_eq!(planned(&facts).stray, None);
    // Rules that look up another table send replies elsewhere.
    facts.routes.push(route(10, Family::V4.default_route(), 2, None));
    facts.rules.extend((0..RULES).map(|_| by(net1(), 101, 10)));
    let note = planned(&facts).stray.unwrap().note(&Settings::default());
    assert!(note.what.ends_with("(IPv4), and 19968 more"), "{note}");
    assert!(note.remedy.contains("\"rulePriority\": 94 or"), "{note}");
}

#[test]
fn default_routes_by_many_routers_and_addresses_that_are_alone() {
    let mut facts = pod(&["net1"]);
    let router = |n| numbered(14, 32, n).ip();
    let default = |n| Route {
        metric: 10 + n,
        ..route(RT_TABLE_MAIN, Family::V4.default_route(), 2, Some(router(n)))
    };
    facts.routes.extend((0..RULES).map(default));
    let alone = |n| {
        let ip = numbered(15, 32, n).ip();
        Address { link: 3, net: ip.into(), ip, scope: 0 }
    };
    facts.addresses.extend((0..RULES).map(alone));
    facts.routes.extend((0..RULES).map(|n| route(RT_TABLE_MAIN, numbered(16, 24, n), 3, None)));
    let settings = Settings::default().for_pod();
    let eth0 = facts.link(2).unwrap();
    assert_eq!(
        gateways::known_routers(&facts, &settings, eth0, Family::V4).len(),
        names::ROUTERS_OF_POD
    );
    assert_eq!(planned(&facts).uplinks.len(), 2);
}

/// The plugin never refuses to remove its state from a pod, whatever the pod has.
#[test]
fn what_looks_like_ours() {
    let mut facts = pod(&["net1"]);
    let goal = planned(&facts);
    let settings = Settings::default();
    let odd = |n| {
        let of_all = Rule::of_all(Family::V4, 405, Action::Lookup(47003), RTPROT_KERNEL);
        let mark = Some(settings.field.matches(0));
        found(Rule { mark, from: Some(numbered(17, 32, n)), other_selectors: true, ..of_all })
    };
    facts.ours.rules.extend((0..ROUTES).map(odd));
    // The wanted rules come last, the first of them twice.
    facts.ours.rules.extend(goal.rules.iter().chain(&goal.rules[..1]).cloned().map(found));
    let on_link = |n| route(47009, numbered(18, 32, n), 3, None);
    facts.ours.routes.extend((0..ROUTES).map(on_link));
    let count = |goal: &Plan| {
        let steps = diff(&facts, goal);
        let of_rules = |step: &&Operation| matches!(step, Operation::DeleteRule(_));
        let of_routes = |step: &&Operation| matches!(step, Operation::DeleteRoute(_));
        let added = steps.iter().filter(|step| matches!(step, Operation::AddRule(_)));
        let (rules, routes) = (steps.iter().filter(of_rules), steps.iter().filter(of_routes));
        (added.count(), rules.count(), routes.count())
    };
    assert_eq!(count(&goal), (0, ROUTES as usize + 1, ROUTES as usize));
    let all = ROUTES as usize + 1 + goal.rules.len();
    assert_eq!(count(&Plan::default()), (0, all, ROUTES as usize));
    // As many other rules are wanted.
    let wanted = (0..ROUTES).map(|n| odd(ROUTES + n).rule).collect();
    assert_eq!(count(&Plan { rules: wanted, ..goal }), (ROUTES as usize, all, ROUTES as usize));
}
