//! Targets for text of other programs and the kernel, and for packets.

use crate::backend::iptables::{counters, restore_script};
use crate::bundle::pseudonym::Pseudonyms;
use crate::doctor::look::sample;
use crate::doctor::udp::wildcard_inodes;
use crate::ledger;
use crate::model::{Family, Field, Variant};
use crate::names;
use crate::netfilter::{Ruleset, iptables, ipvs};
use crate::trace::text;

/// Output of `iptables-save` and `iptables -S`.
pub(super) fn iptables_save(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut tables = iptables::parse("iptables", Family::V4, text);
    tables.extend(iptables::parse("ip6tables", Family::V6, text));
    super::netfilter::walk(&Ruleset { tables, ..Ruleset::default() });
    for family in Family::ALL {
        super::rtnetlink::has_words(ledger::legacy::entries(text, family));
    }
    let found = restore_script::parse(text.lines());
    let script = restore_script::script(Variant::Nft, Family::V4, &found, &[]);
    assert!(found.chains.is_empty() || script.is_some());
    if let Some(field) = Field::new(names::MARK_MASK) {
        let _ = counters::parse(field, text).count();
    }
}

/// Files of `/proc/net`.
pub(super) fn proc_files(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let services = ipvs::parse(text);
    let _ = wildcard_inodes(text, 53);
    super::netfilter::walk(&Ruleset { services, ..Ruleset::default() });
}

/// Lines of the kernel's `trace_pipe`.
pub(super) fn trace_pipe(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = text.lines().filter_map(text::parse).count();
}

/// Text of a bundle in which pseudonyms replace names and addresses.
pub(super) fn pseudonyms(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let pseudonyms = Pseudonyms::new("node-7.example.com", &["1.2.3.4"]);
    let other = pseudonyms.text(text);
    assert_eq!(pseudonyms.text(text), other, "one text has one pseudonym");
    assert_eq!(text.lines().count(), other.lines().count());
    // The text before a name and an address must not hide them.
    let (known, behind) = ("node-7.example.com 172.31.4.5", " node-7.example.com 172.31.4.5");
    let changed = pseudonyms.text(known);
    assert!(!changed.contains("node-7"), "{changed}");
    assert_eq!(pseudonyms.text(&format!("{text}{behind}")), format!("{other} {changed}"));
}

/// A captured packet.
pub(super) fn packet(bytes: &[u8]) {
    let found = sample::parse(bytes, 1);
    assert!(found.is_none() || bytes.len() >= 20);
}
