//! Side effects of symroute's own flowtable.

use super::{Finding, OFFLOADED, Severity};
use crate::ledger::{Action, Entry, Mark, Place, Point};

/// A note if connections are in the flowtable. `by`: name of each uplink, and its number of connections.
pub(crate) fn of_connections(by: &[(&str, u64)]) -> Option<Finding> {
    let some: Vec<_> = by.iter().filter(|(_, count)| *count > 0).collect();
    let each: Vec<_> = some.iter().map(|(name, count)| format!("{count} by {name}")).collect();
    (!some.is_empty()).then(|| Finding {
        id: OFFLOADED,
        severity: Severity::Note,
        what: format!("connections in symroute's flowtable: {}", each.join(", ")),
        evidence: vec![
            "their packets pass no rule: a filter or a NetworkPolicy that is added now does not end \
             them before they have been idle for 30 s"
                .into(),
        ],
        remedy: "only if a filter has to see each packet: \"offload\": false".into(),
    })
}

/// A warning for each egress filter of tc on an uplink that compares the packet mark.
pub(crate) fn of_filters(entries: &[Entry], uplinks: &[&str]) -> Vec<Finding> {
    let finding = |entry: &Entry| {
        let Place::Tc { device, what } = &entry.place else { return None };
        let leaves = entry.hooks.iter().any(|hook| hook.point == Point::Egress);
        let compares = matches!(entry.usage.action, Action::ComparesMasked | Action::ComparesWhole);
        let looks = leaves && compares && entry.usage.mark == Mark::Packet;
        let looks = looks && uplinks.contains(&device.as_str());
        looks.then(|| Finding {
            id: OFFLOADED,
            severity: Severity::Warning,
            what: format!("the filter {what} of tc on {device} finds no mark on offloaded packets"),
            evidence: vec![
                "a packet of a connection in the flowtable passes no rule, so none marks it".into(),
            ],
            remedy: "have it look at something else than the mark, or set \"offload\": false"
                .into(),
        })
    };
    entries.iter().filter_map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{ChainKind, Hook, Use};

    #[test]
    fn connections_by_uplink() {
        assert_eq!(of_connections(&[("eth0", 0), ("eth1", 0)]), None);
        let found = of_connections(&[("eth0", 0), ("eth1", 7)]).unwrap();
        assert_eq!(found.what, "connections in symroute's flowtable: 7 by eth1");
    }

    #[test]
    fn filters_by_mark() {
        let entry = |device: &str, point| Entry {
            owner: "tc".into(),
            ours: false,
            place: Place::Tc { device: device.into(), what: "fw".into() },
            hooks: vec![Hook { point, priority: 0, kind: ChainKind::Filter }],
            usage: Use {
                mark: Mark::Packet,
                action: Action::ComparesMasked,
                bits: 0xff,
                value: Some(1),
            },
            comment: None,
        };
        let of_eth1 = entry("eth1", Point::Egress);
        let all = [
            of_eth1.clone(),
            entry("eth1", Point::Ingress),
            entry("lan0", Point::Egress),
            Entry { usage: Use { action: Action::Sets, ..of_eth1.usage }, ..of_eth1.clone() },
        ];
        let found = of_filters(&all, &["eth1"]);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.starts_with("the filter fw of tc on eth1 "), "{}", found[0].what);
    }
}
