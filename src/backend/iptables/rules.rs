//! The shape of the iptables backend: chains with rules as text, and ipsets.

use std::collections::{BTreeMap, BTreeSet};

use crate::hash::Fnv;
use crate::model::{Family, FoundIpset, Member, Variant};

/// The desired marking by iptables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xtables {
    pub(crate) variant: Variant,
    pub(crate) chains: BTreeMap<Family, Vec<Chain>>,
    /// The ipsets, the node's last.
    pub(crate) sets: Vec<Ipset>,
}

/// A chain of ours in table mangle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    /// The built-in chain whose first rule jumps here, if one does.
    pub(crate) hook: Option<&'static str>,
    pub(crate) rules: Vec<Rule>,
}

/// A rule, less the chain that it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// What it asks for, in the words of iptables; may be empty.
    pub(crate) matches: String,
    /// What it is for. No quotes.
    pub(crate) why: &'static str,
    pub(crate) target: String,
}

impl Rule {
    /// Changes with each word of the rule. iptables prints rules in words of its own, which differ
    /// between releases, so a rule is known again by this number in its comment.
    pub(crate) fn fingerprint(&self) -> u32 {
        Fnv::of(format!("{} {} {}", self.matches, self.why, self.target).as_bytes()).folded()
    }

    /// The rule as iptables reads it.
    pub(crate) fn text(&self) -> String {
        let space = if self.matches.is_empty() { "" } else { " " };
        format!(
            "{}{space}-m comment --comment \"{} #{:08x}\" {}",
            self.matches,
            self.why,
            self.fingerprint(),
            self.target
        )
    }
}

/// The fingerprint in a rule as iptables prints it, if it has one of ours.
pub(crate) fn fingerprint_of(line: &str) -> Option<u32> {
    let comment = line.split_once("--comment \"")?.1.split_once('"')?.0;
    let (_, number) = comment.rsplit_once('#')?;
    (number.len() == 8).then(|| u32::from_str_radix(number, 16).ok())?
}

/// What an ipset holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Addresses,
    Prefixes,
    /// What is in force, in comments; see [`super::node_set`].
    Notes,
}

impl Kind {
    /// The type as ipset calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Addresses | Self::Notes => "hash:ip",
            Self::Prefixes => "hash:net",
        }
    }
}

/// An ipset. No release may change type or family under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ipset {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    pub(crate) members: BTreeSet<Member>,
}

impl Ipset {
    /// Whether what was found by this name can be ours.
    pub(crate) fn is_like(&self, found: &FoundIpset) -> bool {
        found.kind == self.kind.name() && found.family == self.family.number()
    }
}
