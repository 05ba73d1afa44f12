//! Types of the iptables backend: chains with rules as text, and ipsets.

use std::collections::{BTreeMap, BTreeSet};

use crate::hash::Fnv;
use crate::model::{Family, FoundIpset, Member, Variant};

/// The desired chains and ipsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xtables {
    pub(crate) variant: Variant,
    pub(crate) chains: BTreeMap<Family, Vec<Chain>>,
    /// The ipsets. The node's ipset comes last.
    pub(crate) sets: Vec<Ipset>,
}

/// A chain of symroute in table mangle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    /// The built-in chain whose first rule jumps here, if one does.
    pub(crate) hook: Option<&'static str>,
    pub(crate) rules: Vec<Rule>,
}

/// A rule, without the name of its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Matches in iptables syntax; may be empty.
    pub(crate) matches: String,
    /// Purpose of the rule, without quotes.
    pub(crate) why: &'static str,
    pub(crate) target: String,
}

impl Rule {
    /// A hash of the whole rule. Releases of iptables print rules differently, so symroute
    /// recognises a rule by this number in its comment.
    pub(crate) fn fingerprint(&self) -> u32 {
        Fnv::of(format!("{} {} {}", self.matches, self.why, self.target).as_bytes()).folded()
    }

    /// The rule in iptables syntax.
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

/// The fingerprint in a rule as iptables prints it, if it has one.
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
    /// The record of what is in force, in comments; see [`super::node_set`].
    Notes,
}

impl Kind {
    /// ipset's name of the type.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Addresses | Self::Notes => "hash:ip",
            Self::Prefixes => "hash:net",
        }
    }
}

/// An ipset. No release may change the type or family of a set under the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ipset {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    pub(crate) members: BTreeSet<Member>,
}

impl Ipset {
    /// Whether the set found under this name has this set's type and family.
    pub(crate) fn is_like(&self, found: &FoundIpset) -> bool {
        found.kind == self.kind.name() && found.family == self.family.number()
    }
}
