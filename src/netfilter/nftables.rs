//! Asks the kernel for the rules of nftables. symroute's own table is read without its rules.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::expressions::{rule, verdict};
use super::{Base, Chain, Hook, Key, Part, Rule, Set, Table, Target};
use crate::model::Family;
use crate::names;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, attrs, be_i32_at, be32_at, find, string};
use crate::netlink::{Error, Socket};

/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// Family (`NFPROTO_*`) and name of a table.
type Id = (u8, String);

/// Reads all tables, except those that `left_out` selects by family (`NFPROTO_*`) and name.
pub(crate) fn tables(
    socket: &mut Socket,
    left_out: impl Fn(u8, &str) -> bool,
) -> Result<Vec<Table>, Error> {
    let chains = socket.dump(&mut request(NFT_MSG_GETCHAIN), |body| {
        let id = id(body, NFTA_CHAIN_TABLE)?;
        let attributes = body.get(NFGENMSG..)?;
        let name = find(attributes, NFTA_CHAIN_NAME).map(string)?;
        Some((id, name, base(attributes)))
    })?;
    let mut found: BTreeMap<Id, BTreeMap<String, Chain>> = BTreeMap::new();
    for (id, name, base) in
        chains.into_iter().filter(|(id, ..)| is_read(id) && !left_out(id.0, &id.1))
    {
        let rules =
            if is_own(&id) { vec![Rule(vec![Part::Do(Target::Symroute)])] } else { Vec::new() };
        found.entry(id).or_default().insert(name, Chain { base, rules });
    }
    // Packets never reach a table without base chains at these hooks.
    found.retain(|_, chains| chains.values().any(|chain| chain.base.is_some()));
    let rules = socket.dump(&mut request(NFT_MSG_GETRULE), |body| {
        let id = id(body, NFTA_RULE_TABLE)?;
        let attributes = body.get(NFGENMSG..)?;
        let chain = find(attributes, NFTA_RULE_CHAIN).map(string)?;
        let expressions = find(attributes, NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec();
        Some((id, chain, expressions))
    })?;
    let sets = socket.dump(&mut request(NFT_MSG_GETSET), |body| {
        let attributes = body.get(NFGENMSG..)?;
        let flags = find(attributes, NFTA_SET_FLAGS).and_then(|flags| be32_at(flags, 0));
        let name = find(attributes, NFTA_SET_NAME).map(string)?;
        Some((id(body, NFTA_SET_TABLE)?, name, flags.unwrap_or(0)))
    })?;
    let mut sets_of: BTreeMap<Id, BTreeMap<String, Set>> = BTreeMap::new();
    let is_wanted = |id: &Id| found.contains_key(id) && !is_own(id);
    for (id, name, flags) in sets.into_iter().filter(|(id, ..)| is_wanted(id)) {
        let found = match elements(socket, &id, &name) {
            // The set has been deleted meanwhile, together with the rules that used it.
            Err(error) if error.errno == Errno::ENOENT => continue,
            found => found?,
        };
        let has_ranges = flags & NFT_SET_INTERVAL != 0;
        let is_unread = has_ranges && flags & NFT_SET_CONCAT != 0 || found.contains(&None);
        let elements = found.into_iter().flatten().collect();
        let set = Set { elements, has_ranges, is_unread };
        sets_of.entry(id).or_default().insert(name, set);
    }
    let none = BTreeMap::new();
    for (id, chain, expressions) in rules.into_iter().filter(|(id, ..)| !is_own(id)) {
        if let Some(chain) = found.get_mut(&id).and_then(|chains| chains.get_mut(&chain)) {
            chain.rules.push(rule(&expressions, sets_of.get(&id).unwrap_or(&none)));
        }
    }
    Ok(found.into_iter().map(|((family, name), chains)| table(family, &name, chains)).collect())
}

fn table(family: u8, name: &str, chains: BTreeMap<String, Chain>) -> Table {
    let (word, family) = match family {
        NFPROTO_IPV4 => ("ip", Some(Family::V4)),
        NFPROTO_IPV6 => ("ip6", Some(Family::V6)),
        _ => ("inet", None),
    };
    Table { name: format!("nftables {word} {name}"), family, chains }
}

fn request(message: u16) -> Writer {
    let mut request = Writer::default();
    // Family 0 stands for all families.
    request.message(kind(message), NLM_F_REQUEST | NLM_F_DUMP, &[0; NFGENMSG]);
    request
}

fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

fn id(body: &[u8], attribute: u16) -> Option<Id> {
    Some((*body.first()?, string(find(body.get(NFGENMSG..)?, attribute)?)))
}

fn is_read((family, _): &Id) -> bool {
    [NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6].contains(family)
}

fn is_own((family, name): &Id) -> bool {
    *family == NFPROTO_INET && name == names::TABLE
}

fn base(chain: &[u8]) -> Option<Base> {
    let place = find(chain, NFTA_CHAIN_HOOK)?;
    let hook = match be32_at(find(place, NFTA_HOOK_HOOKNUM)?, 0)? {
        NF_INET_PRE_ROUTING => Hook::Prerouting,
        NF_INET_LOCAL_IN => Hook::Input,
        NF_INET_FORWARD => Hook::Forward,
        NF_INET_LOCAL_OUT => Hook::Output,
        NF_INET_POST_ROUTING => Hook::Postrouting,
        _ => return None,
    };
    let priority = be_i32_at(find(place, NFTA_HOOK_PRIORITY)?, 0)?;
    let kind = find(chain, NFTA_CHAIN_TYPE).map(string).unwrap_or_default();
    let (is_nat, reroutes) = (kind == "nat", kind == "route");
    let policy = find(chain, NFTA_CHAIN_POLICY).and_then(|policy| be_i32_at(policy, 0));
    Some(Base { hook, priority, is_nat, drops: policy == Some(NF_DROP), reroutes })
}

fn elements(
    socket: &mut Socket,
    (family, table): &Id,
    set: &str,
) -> Result<Vec<Option<(Key, Target)>>, Error> {
    let mut request = Writer::default();
    let header = [*family, 0, 0, 0];
    request.message(kind(NFT_MSG_GETSETELEM), NLM_F_REQUEST | NLM_F_DUMP, &header);
    request.str(NFTA_SET_ELEM_LIST_TABLE, table);
    request.str(NFTA_SET_ELEM_LIST_SET, set);
    let lists = socket.dump(&mut request, |body| {
        let list = find(body.get(NFGENMSG..)?, NFTA_SET_ELEM_LIST_ELEMENTS)?;
        Some(attrs(list).map(|(_, one)| element(one)).collect::<Vec<_>>())
    })?;
    Ok(lists.into_iter().flatten().collect())
}

/// Reads an element. `None` for a catch-all element, which has no key.
fn element(element: &[u8]) -> Option<(Key, Target)> {
    let bytes = find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?.to_vec();
    let flags = find(element, NFTA_SET_ELEM_FLAGS).and_then(|flags| be32_at(flags, 0));
    let is_end = flags.unwrap_or(0) & NFT_SET_ELEM_INTERVAL_END != 0;
    let data = find(element, NFTA_SET_ELEM_DATA);
    let target = data.and_then(|data| verdict(find(data, NFTA_DATA_VERDICT)?));
    Some((Key { bytes, is_end }, target.unwrap_or(Target::Nothing)))
}
