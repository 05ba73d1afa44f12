//! Reads the uses of marks on this node, without changing the node.

use std::collections::BTreeSet;
use std::fs;

use nix::errno::Errno;

use super::{
    Action, Entry, Ledger, Mark, Place, Unseen, Use, legacy, nftables, sysctls, tc, wireguard, xfrm,
};
use crate::backend::iptables::programs::Programs;
use crate::config::Settings;
use crate::model::{Family, FoundRule, MarkMatch, Variant};
use crate::names::LEGACY_TABLES;
use crate::netlink::uapi::FIB_RULE_INVERT;
use crate::netlink::wire::u32_at;
use crate::netlink::{self, Socket, route};
use crate::node::apply::Kernel;
use crate::node::observe::is_missing;
use crate::plan::{mark_users, ours};
use crate::state::Record;

/// Reads the whole ledger. `record` identifies symroute's own entries.
pub(crate) fn ledger(kernel: &mut Kernel, record: Option<&Record>) -> Ledger {
    let owned = record.map_or_else(Vec::new, Record::owned);
    let mut found = Ledger::default();
    match nftables::read(&mut kernel.netfilter) {
        Ok(entries) => found.entries.extend(entries),
        Err(error) if is_missing(&error) => {}
        Err(error) => found.unseen.push(not_read("the rules of nftables", &error)),
    }
    for family in Family::ALL {
        legacy_tables(family, &mut found);
        match route::rules(&mut kernel.rtnetlink, family) {
            Ok(rules) => found.entries.extend(rules.iter().filter_map(|r| of_rule(r, &owned))),
            Err(error) if family == Family::V6 && has_no_ipv6(&error) => {}
            Err(error) => found.unseen.push(not_read(&format!("the {family} rules"), &error)),
        }
    }
    match Socket::xfrm().and_then(|mut socket| xfrm::read(&mut socket)) {
        Ok(entries) => found.entries.extend(entries),
        Err(error) if is_missing(&error) => {}
        Err(error) => found.unseen.push(not_read("the policies and states of IPsec", &error)),
    }
    match route::links(&mut kernel.rtnetlink) {
        Ok(links) => {
            let none = BTreeSet::new();
            let ours = record.map_or(&none, |record| &record.src_valid_mark);
            found.entries.extend(sysctls::read(&links, ours));
            found.entries.extend(tc::read(&mut kernel.rtnetlink, &links));
            match wireguard::read(&links) {
                Ok(entries) => found.entries.extend(entries),
                Err(error) => found.unseen.push(not_read("the marks of WireGuard", &error)),
            }
        }
        Err(error) => found.unseen.push(not_read("the interfaces", &error)),
    }
    found.entries.sort();
    found
}

fn has_no_ipv6(error: &netlink::Error) -> bool {
    matches!(error.errno, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
}

fn not_read(what: &str, error: &netlink::Error) -> Unseen {
    let remedy = match error.errno {
        Errno::EPERM | Errno::EACCES => "run symroutectl as root, in the node's network namespace",
        _ => "run symroutectl marks again; look at the kernel's log if that does not help",
    };
    Unseen { what: what.into(), why: error.to_string(), remedy: remedy.into() }
}

/// Reads only tables that the kernel lists, because a request for another table would create it.
fn legacy_tables(family: Family, found: &mut Ledger) {
    let tables = fs::read_to_string(LEGACY_TABLES.of(family)).unwrap_or_default();
    if tables.trim().is_empty() {
        return;
    }
    match Programs::saved(Variant::Legacy, family) {
        Ok(text) => found.entries.extend(legacy::entries(&text, family)),
        Err(error) => found.unseen.push(Unseen {
            what: format!(
                "the {family} rules of iptables-legacy (tables {})",
                tables.split_whitespace().collect::<Vec<_>>().join(", ")
            ),
            why: error.to_string(),
            remedy: "install iptables-legacy-save; if no program uses iptables-legacy, a restart \
                     of the node removes the tables"
                .into(),
        }),
    }
}

/// The entry of an ip rule that compares the mark; `None` for other rules.
fn of_rule(found: &FoundRule, known: &[&Settings]) -> Option<Entry> {
    let rule = &found.rule;
    let MarkMatch { value, mask } = rule.mark?;
    let action = if mask == u32::MAX { Action::ComparesWhole } else { Action::ComparesMasked };
    // The flags of `struct fib_rule_hdr` are at byte 8.
    let inverted = u32_at(&found.message, 8).is_some_and(|flags| flags & FIB_RULE_INVERT != 0);
    let owner = mark_users::owner(rule).map_or_else(|| "an ip rule".into(), str::to_owned);
    Some(Entry {
        owner,
        ours: known.iter().any(|settings| ours::is_rule(settings, rule)),
        place: Place::Rule { family: rule.family, priority: rule.priority, inverted },
        hooks: Vec::new(),
        usage: Use { mark: Mark::Packet, action, bits: mask, value: Some(value) },
        comment: Some(format!(
            "{}{rule}",
            if inverted && !rule.is_inverted { "not: " } else { "" }
        )),
    })
}
