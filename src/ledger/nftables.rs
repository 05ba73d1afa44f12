//! Turns the ruleset of nftables, with the rules of iptables-nft, into entries of the ledger.

use std::collections::{BTreeMap, BTreeSet};

use super::effect::{self, Effect};
use super::{ChainKind, Entry, Hook, Place, Point, owners};
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, attrs, be_i32_at, be32_at, find, string};
use crate::netlink::{Error, Socket};

/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// `NFTNL_UDATA_RULE_COMMENT` of libnftnl. An item of user data starts with its type and length, one byte each.
const COMMENT: u8 = 0;

/// A table's family and name, and the name of a chain or map in the table.
type Key = (u8, String, String);

#[derive(Debug)]
struct Rule {
    chain: Key,
    effect: Effect,
    comment: Option<String>,
}

/// The base chains, rules and maps that were read.
#[derive(Debug, Default)]
struct Ruleset {
    /// Hooks of the base chains.
    bases: BTreeMap<Key, Hook>,
    /// Rules that use marks or lead to other chains.
    rules: Vec<Rule>,
    /// Chains that each verdict map leads to.
    maps: BTreeMap<Key, BTreeSet<String>>,
}

/// Reads the entries of all families.
pub(crate) fn read(socket: &mut Socket) -> Result<Vec<Entry>, Error> {
    let bases = socket.dump(&mut request(NFT_MSG_GETCHAIN, 0), base_chain)?;
    let mut found = Ruleset { bases: bases.into_iter().collect(), ..Ruleset::default() };
    found.rules = socket.dump(&mut request(NFT_MSG_GETRULE, 0), rule)?;
    // The maps of a table only matter if a rule of the table uses a mark.
    let table = |rule: &Rule| (rule.chain.0, rule.chain.1.clone());
    let marking = found.rules.iter().filter(|rule| !rule.effect.uses.is_empty());
    let tables: BTreeSet<_> = marking.map(table).collect();
    found.rules.retain(|rule| tables.contains(&table(rule)));
    let maps: BTreeSet<Key> = found.rules.iter().flat_map(Rule::maps).collect();
    for key in maps {
        let (family, table, map) = &key;
        let mut request = request(NFT_MSG_GETSETELEM, *family);
        request.str(NFTA_SET_ELEM_LIST_TABLE, table);
        request.str(NFTA_SET_ELEM_LIST_SET, map);
        // A map that has been deleted meanwhile leads nowhere.
        let lists = socket.dump(&mut request, |body| Some(led_to(body.get(NFGENMSG..)?)));
        let chains = lists.unwrap_or_default().into_iter().flatten().collect();
        found.maps.insert(key, chains);
    }
    Ok(found.entries())
}

fn request(message: u16, family: u8) -> Writer {
    let mut request = Writer::with_capacity(128);
    let kind = NFNL_SUBSYS_NFTABLES << 8 | message;
    request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, &[family, 0, 0, 0]);
    request
}

/// Name and hook of a base chain; `None` for other chains.
fn base_chain(body: &[u8]) -> Option<(Key, Hook)> {
    let (family, attributes) = (*body.first()?, body.get(NFGENMSG..)?);
    let hook = find(attributes, NFTA_CHAIN_HOOK)?;
    let number = be32_at(find(hook, NFTA_HOOK_HOOKNUM)?, 0)?;
    let table = find(attributes, NFTA_CHAIN_TABLE).map(string)?;
    let name = find(attributes, NFTA_CHAIN_NAME).map(string)?;
    let kind = find(attributes, NFTA_CHAIN_TYPE).map(string).unwrap_or_default();
    let priority = be_i32_at(find(hook, NFTA_HOOK_PRIORITY)?, 0)?;
    let kind = match kind.as_str() {
        "route" => ChainKind::Route,
        "nat" => ChainKind::Nat,
        _ => ChainKind::Filter,
    };
    let hook = Hook { point: point(family, number), priority, kind };
    Some(((family, table, name), hook))
}

fn point(family: u8, number: u32) -> Point {
    let routed = [NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6].contains(&family);
    match number {
        0 if family == NFPROTO_NETDEV => Point::Ingress,
        1 if family == NFPROTO_NETDEV => Point::Egress,
        _ if !routed => Point::Other(number),
        NF_INET_PRE_ROUTING => Point::Prerouting,
        NF_INET_LOCAL_IN => Point::Input,
        NF_INET_FORWARD => Point::Forward,
        NF_INET_LOCAL_OUT => Point::Output,
        NF_INET_POST_ROUTING => Point::Postrouting,
        NF_INET_INGRESS => Point::Ingress,
        other => Point::Other(other),
    }
}

fn rule(body: &[u8]) -> Option<Rule> {
    let (family, attributes) = (*body.first()?, body.get(NFGENMSG..)?);
    let effect = effect::of_rule(find(attributes, NFTA_RULE_EXPRESSIONS)?);
    if effect.uses.is_empty() && effect.chains.is_empty() && effect.maps.is_empty() {
        return None;
    }
    let table = find(attributes, NFTA_RULE_TABLE).map(string)?;
    let chain = find(attributes, NFTA_RULE_CHAIN).map(string)?;
    let comment = find(attributes, NFTA_RULE_USERDATA).and_then(comment);
    Some(Rule { chain: (family, table, chain), effect, comment })
}

/// The comment in the user data of a rule.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let (payload, behind) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            return Some(string(payload));
        }
        data = behind;
    }
    None
}

/// The chains in the elements of a verdict map.
fn led_to(attributes: &[u8]) -> Vec<String> {
    let Some(list) = find(attributes, NFTA_SET_ELEM_LIST_ELEMENTS) else { return Vec::new() };
    let verdict = |element| find(find(element, NFTA_SET_ELEM_DATA)?, NFTA_DATA_VERDICT);
    attrs(list).filter_map(|(_, element)| effect::chain_of(verdict(element)?)).collect()
}

impl Rule {
    fn maps(&self) -> impl Iterator<Item = Key> {
        let (family, table, _) = &self.chain;
        self.effect.maps.iter().map(|map| (*family, table.clone(), map.clone()))
    }

    fn leads_to(&self, maps: &BTreeMap<Key, BTreeSet<String>>) -> Vec<Key> {
        let (family, table, _) = &self.chain;
        let by_map = self.maps().flat_map(|map| maps.get(&map).cloned().unwrap_or_default());
        let chains = self.effect.chains.iter().cloned().chain(by_map);
        chains.map(|chain| (*family, table.clone(), chain)).collect()
    }
}

impl Ruleset {
    /// The hooks from which packets reach each chain.
    fn reached(&self) -> BTreeMap<Key, BTreeSet<Hook>> {
        let mut ways: BTreeMap<&Key, BTreeSet<Key>> = BTreeMap::new();
        for rule in &self.rules {
            ways.entry(&rule.chain).or_default().extend(rule.leads_to(&self.maps));
        }
        let mut reached: BTreeMap<Key, BTreeSet<Hook>> = BTreeMap::new();
        for (base, hook) in &self.bases {
            let mut open = vec![base.clone()];
            while let Some(chain) = open.pop() {
                if reached.entry(chain.clone()).or_default().insert(hook.clone()) {
                    open.extend(ways.get(&chain).into_iter().flatten().cloned());
                }
            }
        }
        reached
    }

    fn entries(&self) -> Vec<Entry> {
        let reached = self.reached();
        let mut entries = BTreeSet::new();
        for rule in &self.rules {
            let (family, table, chain) = &rule.chain;
            let family = family_name(*family);
            let comment = rule.effect.comment.as_ref().or(rule.comment.as_ref());
            let hooks = reached.get(&rule.chain).into_iter().flatten();
            let ours = owners::is_our_table(family, table) || owners::is_our_chain(table, chain);
            let of_rule = Entry {
                owner: owners::of_chain(table, chain, comment.map(String::as_str)),
                ours,
                place: Place::Nftables { family, table: table.clone(), chain: chain.clone() },
                hooks: hooks.cloned().collect(),
                usage: super::Use {
                    mark: super::Mark::Packet,
                    action: super::Action::Sets,
                    bits: 0,
                    value: None,
                },
                comment: comment.cloned(),
            };
            entries
                .extend(rule.effect.uses.iter().map(|&usage| Entry { usage, ..of_rule.clone() }));
        }
        entries.into_iter().collect()
    }
}

/// The name that nft uses for a family.
fn family_name(family: u8) -> &'static str {
    match family {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_ARP => "arp",
        NFPROTO_NETDEV => "netdev",
        NFPROTO_BRIDGE => "bridge",
        NFPROTO_IPV6 => "ip6",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Action, Mark, Use};

    fn key(name: &str) -> Key {
        (NFPROTO_IPV4, "site".into(), name.into())
    }

    fn rule(chain: &str, effect: Effect) -> Rule {
        Rule { chain: key(chain), effect, comment: None }
    }

    /// Packets reach a chain from a base chain through jumps and verdict maps.
    #[test]
    fn hooks_reach_the_chains_behind_jumps() {
        let hook = Hook { point: Point::Prerouting, priority: -150, kind: ChainKind::Filter };
        let usage =
            Use { mark: Mark::Packet, action: Action::Overwrites, bits: u32::MAX, value: Some(1) };
        let jump = |to: &str| Effect { chains: vec![to.into()], ..Effect::default() };
        let map = Effect { maps: vec!["by_port".into()], ..Effect::default() };
        let writes = || Effect { uses: vec![usage], ..Effect::default() };
        let ruleset = Ruleset {
            bases: [(key("pre"), hook.clone())].into(),
            rules: vec![
                rule("pre", jump("middle")),
                rule("middle", map),
                rule("middle", jump("pre")),
                rule("last", writes()),
                rule("alone", writes()),
            ],
            maps: [(key("by_port"), BTreeSet::from(["last".to_string()]))].into(),
        };
        let entries = ruleset.entries();
        let hooks = |chain: &str| {
            let of_chain =
                |e: &&Entry| matches!(&e.place, Place::Nftables { chain: c, .. } if c == chain);
            entries.iter().find(of_chain).map(|entry| entry.hooks.clone())
        };
        assert_eq!((hooks("last"), hooks("alone")), (Some(vec![hook]), Some(Vec::new())));
        assert_eq!(entries[0].owner, "table site");
    }

    #[test]
    fn comments_of_user_data() {
        assert_eq!(comment(&[1, 1, 9, 0, 4, b'A', b'W', b'S', 0]), Some("AWS".into()));
        assert_eq!(comment(&[0, 9, b'A']), None);
        assert_eq!(comment(&[]), None);
    }
}
