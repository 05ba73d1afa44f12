//! The plan of a pod that has a data plane of its own.

use super::*;
use crate::config::Automatic;
use crate::model::PodFacts;
use crate::plan::GatewaySource;

/// A pod with `eth0`, which has the default route, and these interfaces, each with an address of its own.
pub(super) fn pod(names: &[&str]) -> Facts {
    let mut facts =
        Facts { rules: base_rules(), pod: Some(PodFacts::default()), ..Facts::default() };
    for (index, name) in (2..).zip(std::iter::once(&"eth0").chain(names)) {
        let (ip, subnet, gateway) = net(index, false);
        facts.links.push(Link { name: (*name).into(), ..nic(index, 3) });
        facts.src_valid_mark.insert(index, 0);
        facts.addresses.push(Address { link: index, net: subnet, ip, scope: 0 });
        let dst = IpNetwork::new(subnet.network(), subnet.prefix()).unwrap();
        facts.routes.push(route(RT_TABLE_MAIN, dst, index, None));
        if *name == "eth0" {
            let default = Family::V4.default_route();
            facts.routes.push(route(RT_TABLE_MAIN, default, index, Some(gateway)));
        }
    }
    facts
}

pub(super) fn planned(facts: &Facts) -> Plan {
    plan(facts, &Settings::default().for_pod()).unwrap()
}

fn uplinks(facts: &Facts) -> Vec<String> {
    planned(facts).uplinks.into_iter().map(|uplink| uplink.name).collect()
}

#[test]
fn one_interface_needs_nothing() {
    assert_eq!(planned(&pod(&[])), Plan::default());
    // Not even if another program has state that a plan would clash with.
    let mut facts = pod(&[]);
    let rule = Rule { priority: 402, ..base_rules()[0].rule.clone() };
    facts.rules.push(FoundRule { rule, message: Vec::new() });
    assert_eq!(planned(&facts), Plan::default());
}

#[test]
fn all_with_an_address_are_uplinks_but_the_one_that_leaves() {
    let mut facts = pod(&["net1", "net2"]);
    assert_eq!(uplinks(&facts), ["eth0", "net1", "net2"]);
    facts.pod = Some(PodFacts { leaving: Some("net1".into()), ..PodFacts::default() });
    assert_eq!(uplinks(&facts), ["eth0", "net2"]);
}

#[test]
fn a_name_that_a_program_could_misread_is_none_of_an_uplink() {
    let odd = ["-j", "!net", "a\"b", "a$(b)", "a\u{1b}b", "a'b", "a;b", "a*b", "x+", "@x", "ä"];
    let mut names = vec!["net1"];
    names.extend(odd);
    assert_eq!(uplinks(&pod(&names)), ["eth0", "net1"]);
    assert_eq!(uplinks(&pod(&["net1.5", "net_1", "a-b", "a@b"])).len(), 5);
}

#[test]
fn a_pattern_that_fits_nothing_yet_is_no_error() {
    let settings = Settings { uplinks: vec![Pattern::Name("net*".into())], ..Settings::default() };
    assert_eq!(plan(&pod(&[]), &settings.for_pod()).unwrap(), Plan::default());
}

#[test]
fn the_result_of_a_plugin_names_the_router() {
    let mut facts = pod(&["net1"]);
    let router: IpAddr = "10.3.0.1".parse().unwrap();
    let gateways = [("net1".to_string(), vec!["2001:db8::1".parse().unwrap(), router])].into();
    facts.pod = Some(PodFacts { gateways, ..PodFacts::default() });
    let plan = planned(&facts);
    let way = &plan.uplinks[1].ways[&Family::V4];
    assert_eq!((way.gateways().next(), &way.source), (Some(router), &GatewaySource::Result));
    let by_address = |rule: &&Rule| rule.priority == 405 && rule.from.is_some();
    assert!(plan.rules.iter().filter(by_address).all(|rule| rule.suppress.is_none()));
    // An unknown router leads nowhere, so main's default route stays.
    let plan = planned(&pod(&["net1"]));
    let of_net1 = plan.rules.iter().filter(by_address).find(|rule| rule.suppress == Some(0));
    assert_eq!(of_net1.and_then(|rule| rule.from), Some("10.3.0.10/32".parse().unwrap()));
}

#[test]
fn an_interface_without_an_address_has_the_node_behind_it() {
    let mut facts = pod(&["veth0"]);
    facts.addresses.retain(|address| address.link != 3);
    facts.routes.retain(|route| route.nexthops[0].link != 3);
    let node: IpAddr = "10.0.0.7".parse().unwrap();
    facts.routes.push(route(RT_TABLE_MAIN, node.into(), 3, None));
    let plan = planned(&facts);
    let way = &plan.uplinks[1].ways[&Family::V4];
    assert_eq!((way.gateways().next(), &way.source), (Some(node), &GatewaySource::Peer));
}

#[test]
fn another_programs_rules_by_address_and_a_vpn_stay_in_force() {
    let by_address = |facts: &Facts| {
        let rules = planned(facts).rules.into_iter();
        rules.filter(|rule| rule.from.is_some()).filter_map(|rule| rule.from).collect::<Vec<_>>()
    };
    let mut facts = pod(&["net1"]);
    assert_eq!(by_address(&facts).len(), 4);
    let base = base_rules()[0].rule.clone();
    let own: IpNetwork = "10.3.0.10/32".parse().unwrap();
    let action = Action::Lookup(100);
    let of_sbr =
        Rule { priority: 32000, action, from: Some(own), other_selectors: true, ..base.clone() };
    facts.rules.push(FoundRule { rule: of_sbr, message: Vec::new() });
    assert!(!by_address(&facts).contains(&own) && by_address(&facts).len() == 2);
    let of_vpn = Rule { priority: 32100, action, is_inverted: true, other_selectors: true, ..base };
    facts.rules.push(FoundRule { rule: of_vpn, message: Vec::new() });
    assert!(by_address(&facts).is_empty());
}

/// A pod with another program's rule of this priority, by the address of `net1` to a table of its own.
fn with_rule_at(priority: u32) -> Facts {
    let mut facts = pod(&["net1"]);
    let own: IpNetwork = "10.3.0.10/32".parse().unwrap();
    let of_all = Rule::of_all(Family::V4, priority, Action::Lookup(150), 4);
    let rule = Rule { from: Some(own), other_selectors: true, ..of_all };
    facts.rules.push(FoundRule { rule, message: Vec::new() });
    let default = Family::V4.default_route();
    facts.routes.push(route(150, default, 3, Some("10.3.0.99".parse().unwrap())));
    facts
}

#[test]
fn the_place_before_another_programs_rule_has_room_for_all_of_ours() {
    let facts = with_rule_at(100);
    let asked = Settings::default().for_pod();
    let note = plan(&facts, &asked).unwrap().stray.unwrap().note(&asked);
    assert!(note.remedy.contains("\"rulePriority\": 94 or"), "{}", note.remedy);
    // The advice works, and "auto" chooses the same.
    assert_eq!(plan(&facts, &Settings { priority: 94, ..asked.clone() }).unwrap().stray, None);
    let automatic = Automatic { priority: true, ..asked.automatic };
    let (chosen, plan) = decide(&facts, &Settings { automatic, ..asked }).unwrap();
    assert_eq!((chosen.priority, plan.stray), (94, None));
    // A node has no rules by address.
    let facts = Facts { pod: None, ..facts };
    let (chosen, plan) = decide(&facts, &Settings { automatic, ..Settings::default() }).unwrap();
    assert_eq!((chosen.priority, plan.stray), (96, None));
}

#[test]
fn a_rule_for_a_network_behind_the_pod_is_advised_beside_ours() {
    let mut facts = with_rule_at(406);
    let bridge = Link { kind: Some("bridge".into()), name: "br0".into(), ..nic(9, 0) };
    facts.links.push(bridge);
    facts.routes.push(route(RT_TABLE_MAIN, "10.9.0.0/24".parse().unwrap(), 9, None));
    let unanswered = planned(&facts).unanswered;
    assert_eq!(unanswered.len(), 1, "{unanswered:?}");
    assert!(unanswered[0].remedy.ends_with("pref 397"), "{}", unanswered[0].remedy);
}
