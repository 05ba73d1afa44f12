//! Turns the output of `iptables-legacy-save` into entries of the ledger.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, ChainKind, Entry, Hook, Mark, Place, Point, Use, owners, xtables};
use crate::model::Family;
use crate::netfilter::iptables::words;

/// Hook and priority of a built-in chain (`NF_IP_PRI_*`, `linux/netfilter_ipv4.h`).
fn hook(table: &str, chain: &str) -> Option<Hook> {
    let point = match chain {
        "PREROUTING" => Point::Prerouting,
        "INPUT" => Point::Input,
        "FORWARD" => Point::Forward,
        "OUTPUT" => Point::Output,
        "POSTROUTING" => Point::Postrouting,
        _ => return None,
    };
    let priority = match (table, point) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Point::Prerouting | Point::Output) => -100,
        ("nat", _) => 100,
        ("filter", _) => 0,
        ("security", _) => 50,
        _ => return None,
    };
    let kind = match (table, point) {
        ("mangle", Point::Output) => ChainKind::Route,
        ("nat", _) => ChainKind::Nat,
        _ => ChainKind::Filter,
    };
    Some(Hook { point, priority, kind })
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `VALUE/MASK`, or `VALUE` for the whole mark.
fn masked(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// What the parser has collected for one rule.
#[derive(Default)]
struct Parsed {
    uses: Vec<Use>,
    chain: Option<String>,
    comment: Option<String>,
}

fn parse(words: &[String]) -> Parsed {
    let mut parsed = Parsed::default();
    // The extension that the next options belong to.
    let mut extension = "";
    let mut words = words.iter().map(String::as_str).peekable();
    let mut copy: Option<(Action, u32, u32)> = None;
    while let Some(word) = words.next() {
        let mut value = || words.peek().and_then(|text| masked(text));
        let mark = if extension == "CONNMARK" || extension == "connmark" {
            Mark::Connection
        } else {
            Mark::Packet
        };
        let found = match word {
            "-m" | "-j" | "-g" => {
                extension = words.next().unwrap_or_default();
                if word != "-m" {
                    parsed.chain = Some(extension.into());
                }
                None
            }
            "--comment" => {
                parsed.comment = words.next().map(str::to_owned);
                None
            }
            "--mark" if ["mark", "connmark"].contains(&extension) => {
                value().and_then(|(value, mask)| xtables::compared(mark, value, mask))
            }
            "--set-xmark" | "--tproxy-mark" => {
                value().and_then(|(value, mask)| xtables::written(mark, value, mask))
            }
            "--set-mark" => value().and_then(|(v, mask)| xtables::written(mark, v, v | mask)),
            "--or-mark" => value().and_then(|(value, _)| xtables::written(mark, value, value)),
            "--xor-mark" => value().and_then(|(value, _)| xtables::written(mark, value, 0)),
            "--and-mark" => value().and_then(|(value, _)| xtables::written(mark, 0, !value)),
            "--save-mark" | "--restore-mark" => {
                let action = if word == "--save-mark" { Action::Saves } else { Action::Restores };
                copy = Some((action, u32::MAX, u32::MAX));
                None
            }
            "--nfmask" | "--ctmask" | "--mask" => {
                if let (Some((_, packet, connection)), Some((mask, _))) = (&mut copy, value()) {
                    *packet = if word == "--ctmask" { *packet } else { mask };
                    *connection = if word == "--nfmask" { *connection } else { mask };
                }
                None
            }
            "--restore-skmark" => xtables::written(Mark::Packet, 0, u32::MAX)
                .map(|written| Use { value: None, ..written }),
            _ => None,
        };
        parsed.uses.extend(found);
    }
    if let Some((action, packet, connection)) = copy {
        let (from, to) = match action {
            Action::Saves => (packet, connection),
            _ => (connection, packet),
        };
        parsed.uses.extend(xtables::copied(action, from, to));
    }
    parsed
}

/// The entries of the output for one family.
pub(crate) fn entries(text: &str, family: Family) -> Vec<Entry> {
    let mut table = "";
    let mut rules: BTreeMap<(&str, String), Vec<Parsed>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let [add, chain, rest @ ..] = &words(line)[..]
            && add == "-A"
        {
            rules.entry((table, chain.clone())).or_default().push(parse(rest));
        }
    }
    let mut found = BTreeSet::new();
    for ((table, chain), list) in &rules {
        let hooks = hooks(&rules, table, chain);
        for rule in list {
            found.extend(rule.uses.iter().map(|&usage| Entry {
                owner: owners::of_chain(table, chain, rule.comment.as_deref()),
                ours: owners::is_our_chain(table, chain),
                place: Place::Legacy { family, table: (*table).into(), chain: chain.clone() },
                hooks: hooks.iter().cloned().collect(),
                usage,
                comment: rule.comment.clone(),
            }));
        }
    }
    found.into_iter().collect()
}

/// The hooks of the built-in chains that lead to a chain of a table.
fn hooks(
    rules: &BTreeMap<(&str, String), Vec<Parsed>>,
    table: &str,
    chain: &str,
) -> BTreeSet<Hook> {
    let mut seen = BTreeSet::from([chain.to_owned()]);
    loop {
        let leads = |list: &[Parsed]| {
            list.iter().any(|rule| rule.chain.as_ref().is_some_and(|to| seen.contains(to)))
        };
        let of_table = rules.iter().filter(|((t, _), list)| *t == table && leads(list));
        let next: BTreeSet<String> = of_table.map(|((_, name), _)| name.clone()).collect();
        if next.is_subset(&seen) {
            return seen.iter().filter_map(|name| hook(table, name)).collect();
        }
        seen.extend(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# Generated by iptables-save
*mangle
:PREROUTING ACCEPT [0:0]
:symroute-via-1 - [0:0]
:site - [0:0]
-A PREROUTING -i eth0 -m comment --comment \"AWS, primary ENI\" -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -m mark ! --mark 0x1 -g site
-A site -j MARK --set-xmark 0x1bd00/0xffffffff
-A site -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A symroute-via-1 -j MARK --set-xmark 0x100/0x1f00
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A PREROUTING -p tcp -m connmark --mark 0x4/0xff -j KUBE-MARK-MASQ
-A
COMMIT
";

    #[test]
    fn a_saved_text() {
        use Action::*;
        use Mark::*;
        let entries = entries(TEXT, Family::V4);
        let rows: Vec<_> = entries
            .iter()
            .map(|e| {
                let hooks: Vec<_> = e.hooks.iter().map(|h| h.priority).collect();
                (e.owner.as_str(), e.ours, e.usage.mark, e.usage.action, e.usage.bits, hooks)
            })
            .collect();
        for row in [
            ("AWS VPC CNI", false, Connection, Sets, 0x80, vec![-150]),
            ("chain PREROUTING", false, Packet, Restores, 0x80, vec![-150]),
            ("chain PREROUTING", false, Packet, ComparesWhole, u32::MAX, vec![-150]),
            ("chain site", false, Packet, Overwrites, u32::MAX, vec![-150]),
            ("chain site", false, Connection, Saves, u32::MAX, vec![-150]),
            ("chain symroute-via-1", true, Packet, Sets, 0x1f00, vec![]),
            ("kube-proxy", false, Packet, Sets, 0x4000, vec![-100]),
            ("chain PREROUTING", false, Connection, ComparesMasked, 0xff, vec![-100]),
        ] {
            assert!(rows.contains(&row), "{row:?} in {rows:?}");
        }
        assert_eq!(rows.len(), 8);
    }

    #[test]
    fn forms_of_numbers() {
        assert_eq!(masked("0x80/0xff"), Some((0x80, 0xff)));
        assert_eq!(masked("16"), Some((16, u32::MAX)));
        assert_eq!((masked("x"), masked("1/")), (None, None));
        assert_eq!(words(r#"-A a --comment "b \" c" -j D"#)[3], "b \" c");
    }

    #[test]
    fn an_empty_comment_is_a_word() {
        let parsed = parse(&words(r#"-m comment --comment "" -j CONNMARK --set-xmark 0x80/0x80"#));
        assert_eq!(
            (parsed.comment.as_deref(), parsed.chain.as_deref()),
            (Some(""), Some("CONNMARK"))
        );
        assert_eq!(parsed.uses[0].mark, Mark::Connection);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = entries(&text, Family::V6);
        }
    }
}
