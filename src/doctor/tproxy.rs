//! Transparent proxies whose packets the source check of an uplink drops.
//!
//! A proxy marks packets, and an ip rule sends the mark to a table that treats every destination as local. With
//! `src_valid_mark` the kernel looks up the route back to the client with the same mark. It finds a local route
//! and drops the packet, however loose `rp_filter` is (`__fib_validate_source`, `net/ipv4/fib_frontend.c`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Finding, Severity, TPROXY};
use crate::backend::Marker;
use crate::config::RulePriorities;
use crate::model::{Action, Family, Field, MarkMatch, Rule};
use crate::names::LOOPBACK;
use crate::netlink::uapi::{RT_TABLE_LOCAL, RT_TABLE_MAIN, RTPROT_KERNEL};

/// An ip rule that sends marked packets to a table whose default route is local.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) rule: Rule,
    pub(crate) mark: MarkMatch,
    pub(crate) table: u32,
}

/// An ip rule that keeps the source check away from a proxy's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemedyRule(pub(crate) Rule);

impl RemedyRule {
    /// The command that deletes the rule.
    pub(crate) fn undo(&self) -> String {
        format!("ip rule del {}", self.words())
    }

    fn words(&self) -> String {
        let Rule { priority, mark, action, .. } = &self.0;
        let mark = mark.map_or_else(String::new, |mark| format!("fwmark {mark} "));
        let action = match action {
            Action::Goto(target) => format!("goto {target}"),
            _ => "lookup main".into(),
        };
        format!("pref {priority} iif {LOOPBACK} {mark}{action}")
    }
}

/// The command that adds the rule.
impl fmt::Display for RemedyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // systemd-networkd deletes rules of any other protocol when it restarts.
        write!(f, "ip rule add {} protocol kernel", self.words())
    }
}

/// The proxies among these rules. `local`: tables whose default route is local.
pub(crate) fn proxies(rules: &[Rule], local: &BTreeSet<u32>) -> Vec<Proxy> {
    let proxy = |rule: &Rule| match (rule.action, rule.mark) {
        (Action::Lookup(table), Some(mark))
            if local.contains(&table) && table != RT_TABLE_LOCAL && mark.value != 0 =>
        {
            Some(Proxy { rule: rule.clone(), mark, table })
        }
        _ => None,
    };
    rules.iter().filter(|rule| rule.family == Family::V4).filter_map(proxy).collect()
}

/// Which packets netfilter rules may give the proxy's mark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marked {
    /// Packets that arrive.
    pub(crate) arriving: bool,
    /// Packets that the node itself sends: the remedy would take them past the proxy.
    pub(crate) sent: bool,
}

/// How symroute marks packets.
#[derive(Debug)]
pub(crate) struct Ours {
    pub(crate) field: Field,
    pub(crate) marker: Marker,
    /// Ids of the uplinks.
    pub(crate) ids: Vec<u32>,
}

/// The marks that packets for the proxy may have at the source check. `ours`: `None` if symroute is not in
/// force.
pub(crate) fn marks(proxy: &Proxy, ours: Option<&Ours>) -> Vec<u32> {
    let MarkMatch { value, mask } = proxy.mark;
    let Some(ours) = ours else { return vec![value] };
    let is_whole = mask & ours.field.mask() == ours.field.mask();
    // nftables marks only what it binds; iptables marks every packet that arrives on an uplink. A rule that
    // compares symroute's bits too matches only packets without symroute's mark.
    let plain = (is_whole || ours.marker == Marker::Nftables).then_some(value);
    let ids = ours.ids.iter().filter(|_| !is_whole);
    plain.into_iter().chain(ids.map(|id| value | ours.field.of(*id))).collect()
}

/// The remedy for a proxy: a rule that takes look-ups of the source check past the proxy's rule. The rule also
/// applies to packets that the node itself sends ([`Marked::sent`]). `None` if no priority is free. `ours`:
/// priorities and bits of symroute, if it is in force.
pub(crate) fn remedy_rule(
    proxy: &Proxy,
    rules: &[Rule],
    ours: Option<(RulePriorities, Field)>,
) -> Option<RemedyRule> {
    let of_family = || rules.iter().filter(|rule| rule.family == Family::V4);
    let taken = |p: u32| {
        ours.is_some_and(|(at, _)| (at.ask_alone..=at.end).contains(&p))
            || of_family().any(|rule| rule.priority == p)
    };
    // The rule must come after the table of the node's own addresses.
    let is_local = |rule: &&Rule| rule.action == Action::Lookup(RT_TABLE_LOCAL);
    let local = of_family().filter(is_local).map(|rule| rule.priority).min().unwrap_or(0);
    let place = (local + 1..proxy.rule.priority).rev().find(|p| !taken(*p))?;
    let action = match ours {
        // A bound request has both marks, so symroute's rules must still see it.
        Some((at, field)) if place < at.skip && proxy.mark.mask & field.mask() != field.mask() => {
            Action::Goto(at.skip)
        }
        _ => Action::Lookup(RT_TABLE_MAIN),
    };
    let (mark, iif) = (Some(proxy.mark), Some(LOOPBACK.into()));
    let rule = Rule::of_all(Family::V4, place, action, RTPROT_KERNEL);
    Some(RemedyRule(Rule { mark, iif, ..rule }))
}

/// The finding for a proxy. `checking_marks`: name of each uplink whose source check uses marks, and its sysctl
/// values.
pub(crate) fn finding(
    proxy: &Proxy,
    checking_marks: &BTreeMap<String, String>,
    remedy_rule: Option<&RemedyRule>,
    marked: Marked,
) -> Finding {
    let names: Vec<_> = checking_marks.keys().map(String::as_str).collect();
    let mut evidence = vec![
        format!("rule {}", proxy.rule),
        format!("the default route of table {} is the node itself", proxy.table),
        format!(
            "the way back to a client, looked up with mark {:#x}, is that route",
            proxy.mark.value
        ),
    ];
    evidence.extend(checking_marks.values().cloned());
    let remedy = match remedy_rule {
        Some(rule) if marked.sent => format!(
            "the node's own packets get this mark too, and would bypass the proxy, so --fix leaves this to \
             you. If that is right: {rule}"
        ),
        Some(rule) => format!("{rule}; symroutectl doctor --fix does it"),
        None => format!(
            "give the proxy's rule a higher priority, then symroutectl doctor --fix: no number before \
             {} is free",
            proxy.rule.priority
        ),
    };
    // Each node of Cilium has a rule for a mark that no packet gets.
    let (severity, are) = if marked.arriving {
        (Severity::Problem, "are dropped")
    } else {
        (Severity::Note, "would be dropped")
    };
    Finding {
        id: TPROXY,
        severity,
        what: format!(
            "requests by {} that a transparent proxy marks {} {are}",
            names.join(" and "),
            proxy.mark
        ),
        evidence,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;

    const BIT: MarkMatch = MarkMatch { value: 1, mask: 1 };

    fn rule(priority: u32, mark: MarkMatch, table: u32) -> Rule {
        let rule = Rule::of_all(Family::V4, priority, Action::Lookup(table), 3);
        Rule { mark: Some(mark), ..rule }
    }

    fn local() -> Rule {
        Rule::of_all(Family::V4, 0, Action::Lookup(RT_TABLE_LOCAL), 2)
    }

    fn ours() -> (RulePriorities, Field) {
        let settings = crate::config::Settings::default();
        (settings.rules(), settings.field)
    }

    #[test]
    fn marks_that_the_source_check_sees() {
        let proxy = |mask| {
            let rule = rule(300, MarkMatch { value: 1, mask }, 100);
            proxies(&[rule], &[100].into()).swap_remove(0)
        };
        let ours = |marker| Ours { field: ours().1, marker, ids: vec![1, 2] };
        let iptables = ours(Marker::Iptables(Variant::Nft));
        let nftables = ours(Marker::Nftables);
        assert_eq!(marks(&proxy(1), None), [1]);
        assert_eq!(marks(&proxy(1), Some(&nftables)), [1, 0x101, 0x201]);
        assert_eq!(marks(&proxy(1), Some(&iptables)), [0x101, 0x201]);
        assert_eq!(marks(&proxy(u32::MAX), Some(&nftables)), [1]);
        assert_eq!(marks(&proxy(u32::MAX), Some(&iptables)), [1]);
    }

    #[test]
    fn a_proxy_is_a_mark_that_leads_to_the_node() {
        let plain = Rule::of_all(Family::V4, 50, Action::Lookup(100), 3);
        let v6 = Rule { family: Family::V6, ..rule(60, BIT, 100) };
        let rules = [local(), rule(40, BIT, 100), rule(45, BIT, 200), plain, v6];
        let found = proxies(&rules, &[100, 255].into());
        let priorities: Vec<_> = found.iter().map(|proxy| proxy.rule.priority).collect();
        assert_eq!(priorities, [40]);
    }

    #[test]
    fn the_remedy_stands_before_the_proxys_rule() {
        let healed = |at, mark, others: &[Rule], ours| {
            let rules = [&[local(), rule(at, mark, 100)][..], others].concat();
            let proxy = proxies(&rules, &[100].into()).swap_remove(0);
            remedy_rule(&proxy, &rules, ours).map(|rule| rule.to_string())
        };
        let add = |rest: &str| Some(format!("ip rule add pref {rest}"));
        assert_eq!(
            healed(32765, BIT, &[], Some(ours())),
            add("32764 iif lo fwmark 0x1/0x1 lookup main protocol kernel")
        );
        assert_eq!(
            healed(404, BIT, &[], Some(ours())),
            add("397 iif lo fwmark 0x1/0x1 goto 400 protocol kernel")
        );
        let whole = MarkMatch { value: 1, mask: u32::MAX };
        assert_eq!(
            healed(399, whole, &[], Some(ours())),
            add("397 iif lo fwmark 0x1/0xffffffff lookup main protocol kernel")
        );
        let taken = [rule(98, MarkMatch { value: 2, mask: 2 }, 7)];
        assert_eq!(
            healed(99, BIT, &taken, None),
            add("97 iif lo fwmark 0x1/0x1 lookup main protocol kernel")
        );
        assert_eq!(healed(1, BIT, &[], Some(ours())), None);
    }

    #[test]
    fn undone_by_the_same_words() {
        let proxy = Proxy { rule: rule(99, BIT, 100), mark: BIT, table: 100 };
        let remedy_rule = remedy_rule(&proxy, &[local()], None).unwrap();
        assert_eq!(remedy_rule.undo(), "ip rule del pref 98 iif lo fwmark 0x1/0x1 lookup main");
        let checking_marks = [("eth0".to_owned(), "a value".to_owned())].into();
        let marked = Marked { arriving: true, sent: false };
        let found = finding(&proxy, &checking_marks, Some(&remedy_rule), marked);
        assert!(found.remedy.starts_with("ip rule add pref 98 "), "{found:?}");
        assert!(found.what.contains("by eth0"), "{found:?}");
        assert!(finding(&proxy, &checking_marks, None, marked).remedy.contains("higher priority"));
        let own = Marked { sent: true, ..marked };
        let own = finding(&proxy, &checking_marks, Some(&remedy_rule), own);
        assert!(own.remedy.contains("would bypass the proxy"), "{}", own.remedy);
        let idle = Marked { arriving: false, ..marked };
        assert_eq!(
            finding(&proxy, &checking_marks, Some(&remedy_rule), idle).severity,
            Severity::Note
        );
    }
}
