//! Rules of iptables-legacy next to rules of iptables-nft: neither program shows the rules of the other.

use super::{Finding, LEGACY, Severity};

/// Tables that have rules, as "name (family)".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    /// Each with its number of rules and chains.
    pub(crate) legacy: Vec<(String, u32)>,
    pub(crate) nft: Vec<String>,
}

/// A note if both kinds have rules.
pub(crate) fn finding(tables: &Tables) -> Option<Finding> {
    if tables.legacy.is_empty() || tables.nft.is_empty() {
        return None;
    }
    let mut evidence: Vec<_> = tables
        .legacy
        .iter()
        .map(|(table, rules)| format!("iptables-legacy: table {table}, {rules} rules and chains"))
        .collect();
    evidence.push(format!("iptables-nft: table {}", tables.nft.join(", table ")));
    Some(Finding {
        id: LEGACY,
        severity: Severity::Note,
        what: "rules of iptables-legacy and of iptables-nft are in force side by side".into(),
        evidence,
        remedy:
            "iptables-legacy-save and ip6tables-legacy-save show the former; if no program keeps \
                 them, they are stale: a reboot removes them"
                .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_both_kinds_have_rules() {
        let legacy = vec![("mangle (IPv4)".to_owned(), 3)];
        let nft = vec!["nat (IPv4)".to_owned()];
        assert_eq!(finding(&Tables { legacy: legacy.clone(), nft: Vec::new() }), None);
        assert_eq!(finding(&Tables { legacy: Vec::new(), nft: nft.clone() }), None);
        let found = finding(&Tables { legacy, nft }).unwrap();
        assert_eq!(found.evidence[0], "iptables-legacy: table mangle (IPv4), 3 rules and chains");
        assert_eq!(found.evidence[1], "iptables-nft: table nat (IPv4)");
    }
}
