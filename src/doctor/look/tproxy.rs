//! Asks the kernel how it routes back to the clients of transparent proxies.

use std::collections::BTreeMap;

use crate::doctor::Finding;
use crate::doctor::tproxy::{
    Marked, Ours, Proxy, RemedyRule, finding, marks, proxies, remedy_rule,
};
use crate::error::Error;
use crate::explain::ask::Asker;
use crate::model::{Family, Rule};
use crate::names::ALL_LINKS;
use crate::netfilter::Hook;
use crate::netlink::route::{self, Lookup};
use crate::netlink::uapi::RTN_LOCAL;
use crate::node::sysctl;
use crate::plan::proof::OUTSIDE;

/// A finding for each proxy rule whose packets the kernel drops.
pub(super) fn findings(asker: &mut Asker<'_>) -> Result<Vec<Finding>, Error> {
    let broken = broken(asker)?;
    let judged = uplinks_checking_marks(asker)?;
    let of_one = |proxy: &Proxy| {
        finding(proxy, &judged, remedy_rule_of(asker, proxy).as_ref(), marked(asker, proxy))
    };
    Ok(broken.iter().map(of_one).collect())
}

/// The broken proxies that `--fix` may repair, and the rule for each. Leaves out a proxy that also gets the
/// node's own packets, and one that gets no packets.
pub(crate) fn remedies(asker: &mut Asker<'_>) -> Result<Vec<(Proxy, RemedyRule)>, Error> {
    let broken = broken(asker)?;
    let is_ours_to_heal = |proxy: &Proxy| {
        let marked = marked(asker, proxy);
        marked.arriving && !marked.sent
    };
    let healed = broken.into_iter().filter(is_ours_to_heal);
    Ok(healed.filter_map(|proxy| Some((proxy.clone(), remedy_rule_of(asker, &proxy)?))).collect())
}

fn marked(asker: &Asker<'_>, proxy: &Proxy) -> Marked {
    Marked {
        arriving: asker.netfilter.may_mark(Hook::Prerouting, proxy.mark),
        sent: asker.netfilter.may_mark(Hook::Output, proxy.mark),
    }
}

fn remedy_rule_of(asker: &Asker<'_>, proxy: &Proxy) -> Option<RemedyRule> {
    let view = &asker.view;
    let ours = asker.in_force.then_some((view.settings.rules(), view.settings.field));
    remedy_rule(proxy, &asker.rules, ours)
}

/// The uplinks whose reverse path filter uses packet marks, by name, with their sysctl values.
fn uplinks_checking_marks(asker: &Asker<'_>) -> Result<BTreeMap<String, String>, Error> {
    let (facts, plan) = (asker.facts(), &asker.view.plan);
    let (of_all, _) = sysctl::src_valid_mark_of(ALL_LINKS)?;
    let own = |link| facts.src_valid_mark.get(&link).copied().unwrap_or(0);
    let checking = plan.uplinks.iter().filter(|u| of_all != 0 || own(u.link) != 0);
    let words = |name: &str, link| {
        format!(
            "net.ipv4.conf.all.src_valid_mark is {of_all}, net.ipv4.conf.{name}.src_valid_mark is {}",
            own(link)
        )
    };
    Ok(checking.map(|u| (u.name.clone(), words(&u.name, u.link))).collect())
}

/// The proxies whose mark makes the look-up for a client end at a local route.
fn broken(asker: &mut Asker<'_>) -> Result<Vec<Proxy>, Error> {
    if uplinks_checking_marks(asker)?.is_empty() {
        return Ok(Vec::new());
    }
    let rtnetlink = &mut asker.kernel.rtnetlink;
    let local = route::local_tables(rtnetlink, Family::V4);
    let local = local.map_err(Error::kernel("list IPv4 routes"))?;
    let foreign: Vec<Rule> = asker.facts().rules.iter().map(|found| found.rule.clone()).collect();
    let uplinks = asker.view.plan.uplinks.iter().map(|uplink| uplink.id);
    let ours = asker.in_force.then(|| Ours {
        field: asker.view.settings.field,
        marker: asker.view.plan.marker(),
        ids: uplinks.collect(),
    });
    let mut broken = Vec::new();
    for proxy in proxies(&foreign, &local) {
        let to = OUTSIDE.of(Family::V4);
        let mut is_own = false;
        for mark in marks(&proxy, ours.as_ref()) {
            let way = asker.way(Lookup { to, from: None, iif: None, mark })?;
            // An earlier rule may already be the remedy.
            is_own |= way.is_some_and(|way| way.kind == RTN_LOCAL && way.table == proxy.table);
        }
        if is_own {
            broken.push(proxy);
        }
    }
    Ok(broken)
}
