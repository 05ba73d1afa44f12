//! A model of `iptables-restore` and ipset, and properties of the scripts and sets.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::chains::member;
use super::node_set as notes;
use super::restore_script::{parse, script};
use super::rules::{Chain, Ipset, Kind, Rule};
use super::set_diff::{SetChange, set_changes};
use crate::model::{Family, FoundIpset, Mangle, Member, Variant};
use crate::names::HOOKS;

/// Executes input of `iptables-restore --noflush` on symroute's view of a table.
pub(crate) fn restore(table: &mut Mangle, text: &str) {
    for line in text.lines() {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let chain = rest.split(' ').next().expect("a chain").to_string();
        if let Some(name) = verb.strip_prefix(':') {
            table.chains.insert(name.into(), Vec::new());
            continue;
        }
        let of_chain = if HOOKS.contains(&chain.as_str()) {
            table.builtin.entry(chain.clone()).or_default()
        } else if matches!(verb, "-A" | "-I" | "-D" | "-F" | "-X") {
            table.chains.get_mut(&chain).expect("a chain that is there")
        } else {
            assert!(["*mangle", "COMMIT"].contains(&verb), "{line}");
            continue;
        };
        match verb {
            "-A" => of_chain.push(line.into()),
            "-I" => {
                let rule = rest.split_once(" 1 ").expect("a position").1;
                of_chain.insert(0, format!("-A {chain} {rule}"));
            }
            "-D" => {
                let line = format!("-A {rest}");
                let at = of_chain.iter().position(|l| *l == line).expect("a rule to delete");
                of_chain.remove(at);
            }
            "-F" => of_chain.clear(),
            "-X" => {
                assert!(of_chain.is_empty(), "{chain} holds rules");
                table.chains.remove(&chain);
                let to_it = format!(" {chain}");
                let all = table.chains.values().chain(table.builtin.values()).flatten();
                assert!(!all.into_iter().any(|l| l.ends_with(&to_it)), "{chain} is in use");
            }
            other => panic!("{other}"),
        }
    }
}

/// Changes sets as the kernel does.
pub(crate) fn change_set(sets: &mut BTreeMap<String, FoundIpset>, change: &SetChange) {
    match change {
        SetChange::Create(set) => {
            let kind = set.kind.name().into();
            let family = set.family.number();
            let made = FoundIpset { kind, family, ..FoundIpset::default() };
            assert!(sets.insert(set.name.into(), made).is_none(), "{} was there", set.name);
        }
        SetChange::Add(set, members) => {
            let there = &mut sets.get_mut(set).expect("a set").members;
            for member in members {
                there.retain(|m| (m.address, m.prefix) != (member.address, member.prefix));
                there.insert(member.clone());
            }
        }
        SetChange::Remove(set, members) => {
            let there = &mut sets.get_mut(set).expect("a set").members;
            for member in members {
                there.retain(|m| (m.address, m.prefix) != (member.address, member.prefix));
            }
        }
        SetChange::Destroy(set) => drop(sets.remove(set).expect("a set")),
    }
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (0..9u32, 0..3u32).prop_map(|(a, b)| Rule {
        matches: if a == 0 { String::new() } else { format!("-i eth{a}") },
        why: "why",
        target: if b == 0 { "-j RETURN".into() } else { format!("-j MARK --set-xmark {b}") },
    });
    vec(rule, 0..4)
}

fn chains() -> impl Strategy<Value = Vec<Chain>> {
    btree_map(0..4usize, (rules(), proptest::option::of(0..HOOKS.len())), 0..4).prop_map(|all| {
        let mut hooked = BTreeSet::new();
        let chain = |(n, (rules, hook)): (usize, (Vec<Rule>, Option<usize>))| {
            let hook = hook.filter(|hook| hooked.insert(*hook)).map(|hook| HOOKS[hook]);
            Chain { name: format!("symroute-c{n}"), hook, rules }
        };
        all.into_iter().map(chain).collect()
    })
}

fn foreign() -> impl Strategy<Value = Mangle> {
    let lines = vec((0..5usize, 0..9u32), 0..6);
    lines.prop_map(|lines| {
        let mut mangle = Mangle::default();
        for (hook, number) in lines {
            let hook = HOOKS[hook];
            let line = format!("-A {hook} -m mark --mark 0x{number} -j ACCEPT");
            mangle.builtin.entry(hook.into()).or_default().push(line);
        }
        mangle
    })
}

fn others(mangle: &Mangle) -> Vec<&String> {
    mangle.builtin.values().flatten().filter(|line| !line.contains("symroute")).collect()
}

fn set(members: &[u8]) -> Ipset {
    let members = members.iter().map(|n| member(std::net::IpAddr::from([10, 0, 0, *n]))).collect();
    Ipset { name: "symroute-hosts4", kind: Kind::Addresses, family: Family::V4, members }
}

proptest! {
    #[test]
    fn scripts_lead_there_and_back(
        start in foreign(),
        first in chains(),
        second in chains(),
        intruder in proptest::option::of(0..HOOKS.len()),
    ) {
        let (variant, family) = (Variant::Nft, Family::V4);
        let mut now = start.clone();
        let before = others(&start).into_iter().cloned().collect::<Vec<_>>();
        for wanted in [&first, &second] {
            if let Some(hook) = intruder {
                let lines = now.builtin.entry(HOOKS[hook].into()).or_default();
                lines.insert(0, format!("-A {} -j ACCEPT", HOOKS[hook]));
            }
            let was = now.clone();
            if let Some(script) = script(variant, family, &now, wanted) {
                restore(&mut now, &script.change);
                let mut undone = now.clone();
                restore(&mut undone, &script.undo);
                prop_assert_eq!(&undone.chains, &was.chains);
                prop_assert_eq!(others(&undone), others(&was));
            }
            prop_assert_eq!(script(variant, family, &now, wanted), None);
            for chain in wanted.iter().filter(|chain| chain.hook.is_some()) {
                let lines = &now.builtin[chain.hook.expect("a hook")];
                prop_assert!(lines[0].ends_with(&chain.name));
            }
            for lines in now.builtin.values_mut() {
                if intruder.is_some() {
                    let at = lines.iter().position(|l| l.ends_with("-j ACCEPT") && !l.contains("mark"));
                    at.map(|at| lines.remove(at));
                }
            }
        }
        if let Some(script) = script(variant, family, &now, &[]) {
            restore(&mut now, &script.change);
        }
        prop_assert!(now.chains.is_empty());
        prop_assert_eq!(others(&now).into_iter().cloned().collect::<Vec<_>>(), before);
    }

    #[test]
    fn sets_are_filled(first: Vec<u8>, second: Vec<u8>) {
        let mut sets = BTreeMap::new();
        for wanted in [set(&first), set(&second)] {
            for change in set_changes(&sets, [&wanted]) {
                change_set(&mut sets, &change);
            }
            prop_assert_eq!(&sets["symroute-hosts4"].members, &wanted.members);
            prop_assert_eq!(set_changes(&sets, [&wanted]), vec![]);
        }
    }
}

#[test]
fn rules_are_known_by_their_number() {
    let rule = Rule { matches: "-i eth0".into(), why: "came in by", target: "-j RETURN".into() };
    let line = format!("-A symroute-prerouting {}", rule.text());
    let table = parse([line.as_str(), "-N symroute-prerouting", "-P PREROUTING ACCEPT", "-N X"]);
    assert_eq!(table.chains.len(), 1);
    assert_eq!(super::rules::fingerprint_of(&line), Some(rule.fingerprint()));
    let other = Rule { matches: "-i eth1".into(), ..rule };
    assert_ne!(super::rules::fingerprint_of(&line), Some(other.fingerprint()));
    assert_eq!(super::rules::fingerprint_of("-A X -m comment --comment \"odd #12\" -j Y"), None);
}

#[test]
fn foreign_notes_are_passed_over() {
    let note = |key: [u8; 4], comment: &str| Member {
        address: key.into(),
        prefix: 32,
        nomatch: false,
        comment: Some(comment.into()),
    };
    let found = notes::read(&BTreeSet::from([
        note([0, 0, 0, 1], "in force: 7"),
        note([0, 0, 0, 2], "mask 7936, priority 400, tables 47000"),
        note([1, 0, 0, 3], "interface 3 has id 1"),
        note([1, 0, 0, 4], "99999999999999 and 3"),
        note([2, 0, 0, 3], "restore src_valid_mark of interface 3"),
        note([9, 9, 9, 9], "interface 3 has id 1"),
        note([0, 0, 0, 3], ""),
    ]));
    assert_eq!(found.in_force, Some(7));
    assert_eq!(found.layout, Some((7936, 400, 47000)));
    assert_eq!(found.ids, BTreeMap::from([(3, 1)]));
    assert_eq!(found.restore, BTreeSet::from([3]));
}
