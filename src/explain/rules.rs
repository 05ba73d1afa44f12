//! Finds the ip rule that chose a table, because the kernel's answer has only the table.

use crate::model::{Action, Rule};
use crate::names::LOOPBACK;
use crate::netlink::route::Lookup;

/// The first rule that leads this look-up to the table. `iif` is the name of the interface that the packet
/// arrives on. A rule that also matches ports, users or the like counts only if no other rule leads there.
pub(crate) fn chosen<'a>(
    rules: impl Iterator<Item = &'a Rule> + Clone,
    lookup: &Lookup,
    iif: Option<&str>,
    table: u32,
) -> Option<&'a Rule> {
    let leads = |rule: &&Rule| {
        rule.action == Action::Lookup(table)
            && rule
                .mark
                .is_none_or(|mark| (lookup.mark & mark.mask == mark.value) != rule.is_inverted)
            && rule.iif.as_deref().is_none_or(|wanted| wanted == iif.unwrap_or(LOOPBACK))
            && rule.from.is_none_or(|net| lookup.from.is_some_and(|ip| net.contains(ip)))
            && rule.to.is_none_or(|net| net.contains(lookup.to))
    };
    let first = |rules: &mut dyn Iterator<Item = &'a Rule>| rules.min_by_key(|rule| rule.priority);
    // A rule with a source, a destination or "not" also has `other_selectors`. These three are evaluated above,
    // so trust such a rule.
    let is_read = |rule: &&Rule| {
        !rule.other_selectors || rule.from.is_some() || rule.to.is_some() || rule.is_inverted
    };
    let plain = first(&mut rules.clone().filter(leads).filter(is_read));
    plain.or_else(|| first(&mut rules.filter(leads)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, MarkMatch};

    fn rule(priority: u32, table: u32) -> Rule {
        Rule::of_all(Family::V4, priority, Action::Lookup(table), 0)
    }

    #[test]
    fn the_first_rule_that_fits_is_named() {
        let rules = [
            rule(32766, 254),
            Rule { mark: Some(MarkMatch { value: 0x200, mask: 0xf00 }), ..rule(402, 254) },
            Rule { from: "10.21.0.0/24".parse().ok(), other_selectors: true, ..rule(900, 254) },
            Rule { iif: Some("eth1".into()), ..rule(500, 254) },
            Rule {
                mark: Some(MarkMatch { value: 0x1bd00, mask: u32::MAX }),
                is_inverted: true,
                other_selectors: true,
                ..rule(110, 7120)
            },
            Rule { other_selectors: true, ..rule(1, 254) },
            rule(0, 255),
        ];
        let to = "203.0.113.9".parse().unwrap();
        let lookup = |mark, from: Option<&str>| Lookup {
            to,
            from: from.map(|ip| ip.parse().unwrap()),
            iif: None,
            mark,
        };
        let priority = |lookup, iif, table| {
            chosen(rules.iter(), &lookup, iif, table).map(|rule| rule.priority)
        };
        assert_eq!(priority(lookup(0, None), None, 254), Some(32766));
        assert_eq!(priority(lookup(0x1200, None), None, 254), Some(402));
        assert_eq!(priority(lookup(0, Some("10.21.0.10")), None, 254), Some(900));
        assert_eq!(priority(lookup(0, None), Some("eth1"), 254), Some(500));
        assert_eq!(priority(lookup(0, None), None, 255), Some(0));
        assert_eq!(priority(lookup(0, None), None, 7), None);
        assert_eq!(priority(lookup(0x200, None), None, 7120), Some(110));
        assert_eq!(priority(lookup(0x1bd00, None), None, 7120), None);
    }
}
