//! Finds the rules that any packet may reach at a hook.

use std::collections::BTreeSet;

use super::{Chain, Hook, Part, Ruleset, Table, Target};
use crate::model::MarkMatch;

impl Ruleset {
    /// Whether the rules of symroute are in this ruleset.
    pub(crate) fn has_symroute(&self) -> bool {
        let chains = self.tables.iter().flat_map(|table| table.chains.values());
        let mut parts = chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.0);
        parts.any(|part| *part == Part::Do(Target::Symroute))
    }

    /// Whether a rule that packets reach at this hook may set this mark. TPROXY targets count as such.
    pub(crate) fn may_mark(&self, hook: Hook, mark: MarkMatch) -> bool {
        let marks = |target: &Target| match target {
            Target::Mark(mix) => mix.xor & mark.mask == mark.value,
            Target::Unknown(what) => what.to_lowercase().contains("tproxy"),
            _ => false,
        };
        self.tables.iter().any(|table| {
            let called = table.called_in(hook);
            let chains = called.iter().filter_map(|name| table.chains.get(*name));
            let mut parts = chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.0);
            parts.any(|part| matches!(part, Part::Do(target) if marks(target)))
        })
    }
}

impl Table {
    /// The chains that packets may reach at this hook.
    fn called_in(&self, hook: Hook) -> BTreeSet<&str> {
        let is_base = |chain: &Chain| chain.base.is_some_and(|base| base.hook == hook);
        let bases = self.chains.iter().filter(|(_, chain)| is_base(chain));
        let mut left: Vec<&str> = bases.map(|(name, _)| name.as_str()).collect();
        let mut called = BTreeSet::new();
        while let Some(name) = left.pop() {
            let Some(chain) = self.chains.get(name).filter(|_| called.insert(name)) else {
                continue;
            };
            for part in chain.rules.iter().flat_map(|rule| &rule.0) {
                match part {
                    Part::Do(Target::Map(_, set)) => {
                        left.extend(set.elements.iter().filter_map(|(_, target)| target.chain()));
                    }
                    Part::Do(Target::Choice(targets)) => {
                        left.extend(targets.iter().filter_map(Target::chain));
                    }
                    Part::Do(target) => left.extend(target.chain()),
                    Part::If(_) => {}
                }
            }
        }
        called
    }
}

impl Target {
    fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(name) | Self::Goto(name) => Some(name),
            _ => None,
        }
    }
}
