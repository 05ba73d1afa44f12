//! Targets for the kernel's messages about nftables, ipset and conntrack.

use std::net::IpAddr;

use crate::agent::events::nftables::Transaction;
use crate::backend::iptables::{ipset, node_set};
use crate::backend::nftables::rules::TableFamily;
use crate::backend::nftables::table_diff::TableChange;
use crate::backend::nftables::{counters, table};
use crate::doctor::look::flowtables;
use crate::ledger;
use crate::model::{Elements, Member};
use crate::netfilter::walk::Local;
use crate::netfilter::{Hook, Interface, Packet, Ruleset, nftables};
use crate::netlink::uapi::{
    IPSET_CMD_LIST, NFNL_SUBSYS_IPSET, NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWSETELEM,
};
use crate::netlink::wire::messages;
use crate::netlink::{conntrack as ct, wire};
use crate::state::Record;
use crate::trace::message;

use super::kernel::{answered, dump, told};

const HOOKS: [Hook; 5] =
    [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

/// Symroute's own nftables tables.
pub(super) fn own(bytes: &[u8]) {
    for family in [TableFamily::Inet, TableFamily::Arp] {
        let found = answered(bytes, |socket| table::table(socket, family));
        let Ok(Some(found)) = found else { continue };
        let set = |name: &str| found.sets.get(name).map(|set| set.elements.clone());
        if let (Some(layout), Some(restore)) = (set("layout"), set("restore")) {
            let _ = Record::recover_from_table(&layout, &restore);
        }
    }
    let _ = answered(bytes, counters::read);
}

/// Elements of a set. Elements written and read again are equal.
pub(super) fn elements(bytes: &[u8]) {
    let found = answered(bytes, |socket| table::elements(socket, "any")).unwrap_or_default();
    let _ = Record::recover_from_table(&found, &found);
    let keys: Vec<_> = found.iter().map(|(key, _)| ("any", key.as_slice())).collect();
    let _ = answered(bytes, |socket| table::look_up(socket, &keys));
    if found.is_empty() {
        return;
    }
    let change = [TableChange::AddElements("any".into(), found.clone())];
    let request = told(|socket| drop(table::commit(socket, TableFamily::Inet, &change)));
    let kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM;
    let bodies = messages(&request).filter(|one| one.kind == kind).map(|one| one.body);
    let again = dump(kind, bodies);
    let again = answered(&again, |socket| table::elements(socket, "any"));
    assert_eq!(again, Ok::<Elements, _>(found));
}

/// Tables of other programs, and packets that pass their rules.
pub(super) fn others(bytes: &[u8]) {
    let tables = answered(bytes, |socket| nftables::tables(socket, |_, name| name == "leftout"));
    walk(&Ruleset { tables: tables.unwrap_or_default(), ..Ruleset::default() });
}

/// Walks packets through all hooks of a ruleset. Each walk must have 1 to 64 outcomes.
pub(super) fn walk(ruleset: &Ruleset) {
    let _ = (ruleset.ports(), ruleset.untracked_ports());
    for (from, to) in [("203.0.113.9", "10.21.0.10"), ("2001:db8::9", "2001:db8:21::10")] {
        let (Ok(from), Ok(to)) = (from.parse::<IpAddr>(), to.parse::<IpAddr>()) else { return };
        let packet = Packet {
            iif: Some(Interface(2, "eth0".into())),
            oif: Some(Interface(3, "eth1".into())),
            from,
            to,
            protocol: Some(6),
            port: Some(30080),
            mark: 0,
            routed: 0,
            connection: 0,
            is_reply: false,
            untracked_by: None,
            bound: None,
        };
        for hook in HOOKS {
            for (is_reply, is_first) in [(false, true), (false, false), (true, false)] {
                let packet = Packet { is_reply, ..packet.clone() };
                let outcomes = ruleset.walk(hook, packet, is_first, &Node(to));
                assert!(
                    (1..=64).contains(&outcomes.len()),
                    "{hook:?}: {} outcomes",
                    outcomes.len()
                );
            }
        }
        let _ = ruleset.untracking_rules(packet, &Node(to));
    }
}

/// A node with one address.
struct Node(IpAddr);

impl Local for Node {
    fn has(&self, address: IpAddr, link: Option<&str>) -> bool {
        address == self.0 && link.is_none_or(|link| link == "eth0")
    }
}

/// Rules of nftables that read or write marks.
pub(super) fn marks(bytes: &[u8]) {
    super::rtnetlink::has_words(answered(bytes, ledger::nftables::read).unwrap_or_default());
}

/// Events of nftables (multicast messages), and flowtables.
pub(super) fn events(bytes: &[u8]) {
    let mut transaction = Transaction::default();
    for one in messages(bytes) {
        assert!(transaction.take(one).len() <= 2);
        if let Some(message::Message { headers: Some(headers), .. }) = message::parse(one) {
            let _ = (headers.sender(), headers.receiver());
        }
        // Nested attributes.
        for (_, payload) in wire::attrs(one.body) {
            let _ = (wire::ip(payload), wire::string(payload), wire::attrs(payload).count());
        }
    }
    let _ = answered(bytes, flowtables::all);
}

/// A set of ipset. Members written and read again are equal.
pub(super) fn ipset(bytes: &[u8]) {
    let _ =
        (answered(bytes, ipset::names), answered(bytes, |socket| ipset::references(socket, "a")));
    let Ok(Some(found)) = answered(bytes, |socket| ipset::set(socket, "a")) else { return };
    let _ = node_set::read(&found.members);
    // `told` returns one datagram only, and more members need a second one.
    let members: Vec<Member> = found.members.into_iter().take(256).collect();
    if members.is_empty() {
        return;
    }
    let request = told(|socket| drop(ipset::add(socket, "a", &members)));
    let kind = NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_LIST;
    let again = dump(kind, messages(&request).map(|message| message.body));
    let again = answered(&again, |socket| ipset::set(socket, "a"));
    let again: Vec<_> = again.ok().flatten().into_iter().flat_map(|set| set.members).collect();
    assert_eq!(again, members);
}

/// Entries of conntrack.
pub(super) fn conntrack(bytes: &[u8]) {
    let all = answered(bytes, |socket| ct::list(socket, |_| true)).unwrap_or_default();
    let Some(first) = all.first() else { return };
    let (from, to) = (first.original.from.ip(), first.original.to.ip());
    let between = answered(bytes, |socket| ct::list_between(socket, from, to)).unwrap_or_default();
    assert!(between.contains(first) && between.iter().all(|one| all.contains(one)));
}
