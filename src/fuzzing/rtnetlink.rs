//! Targets for the kernel's answers about interfaces, addresses, routes and rules.

use crate::ledger::{Ledger, tc, xfrm};
use crate::model::{Action, Family, FoundRule, Link, Nexthop, Route};
use crate::netlink::route::{self, Lookup};
use crate::netlink::uapi::{RTM_NEWROUTE, RTM_NEWRULE};
use crate::netlink::wire::messages;

use super::kernel::{answered, dump, told};

/// Maximum number of routes or rules of one input that a target writes again.
const WRITTEN: usize = 4;

pub(super) fn links(bytes: &[u8]) {
    let links = answered(bytes, route::links).unwrap_or_default();
    assert!(links.iter().all(|link| !link.name.contains('\0')), "{links:?}");
}

/// Addresses and neighbours.
pub(super) fn addresses(bytes: &[u8]) {
    for address in answered(bytes, route::addresses).unwrap_or_default() {
        assert!(address.net.prefix() <= if address.net.is_ipv4() { 32 } else { 128 });
        let _ = answered(bytes, |socket| route::neighbour(socket, address.link, address.ip));
    }
    let neighbours = answered(bytes, |socket| route::neighbours(socket, |link, _| link != 1));
    assert!(neighbours.unwrap_or_default().keys().all(|(link, _)| *link != 1));
}

/// Routes, and answers to look-ups. A route written and read again is equal.
pub(super) fn routes(bytes: &[u8]) {
    for family in Family::ALL {
        let routes = answered(bytes, |socket| route::routes(socket, family, |_| true));
        for found in routes.unwrap_or_default().into_iter().filter(is_plain).take(WRITTEN) {
            let request = told(|socket| drop(route::add_route(socket, &found)));
            let again = dump(RTM_NEWROUTE, messages(&request).map(|message| message.body));
            let again = answered(&again, |socket| route::routes(socket, family, |_| true));
            assert_eq!(again.as_deref(), Ok(&[as_written(found)][..]));
        }
        let _ = answered(bytes, |socket| route::local_tables(socket, family));
    }
    let to = [10, 0, 0, 1].into();
    let question = Lookup { to, from: None, iif: None, mark: 0 };
    let questions = [question, Lookup { from: Some(to), iif: Some(2), mark: 7, ..question }];
    if let Ok(answers) = answered(bytes, |socket| route::lookups(socket, &questions)) {
        assert_eq!(answers.len(), questions.len());
    }
}

/// Whether the kernel can have such a route and symroute would copy it.
fn is_plain(route: &Route) -> bool {
    !route.is_special && route.dst.ip() == route.dst.network()
}

/// The route as symroute writes it: without a weight if it has one next hop.
fn as_written(mut route: Route) -> Route {
    if let [Nexthop { weight, .. }] = &mut route.nexthops[..] {
        *weight = 0;
    }
    route
}

/// Rules of the routing policy database. A rule of symroute written and read again is equal.
pub(super) fn rules(bytes: &[u8]) {
    for family in Family::ALL {
        let rules = answered(bytes, |socket| route::rules(socket, family)).unwrap_or_default();
        for found in rules.iter().filter(|found| is_of_ours(found)).take(WRITTEN) {
            let request = told(|socket| drop(route::add_rule(socket, &found.rule)));
            let again = dump(RTM_NEWRULE, messages(&request).map(|message| message.body));
            let again = answered(&again, |socket| route::rules(socket, family)).unwrap_or_default();
            let again: Vec<_> = again.iter().map(|found| &found.rule).collect();
            assert_eq!(again, [&found.rule]);
        }
        for found in &rules {
            let _ =
                (found.rule.to_string(), told(|socket| drop(route::delete_rule(socket, found))));
        }
    }
}

/// Whether the rule uses only selectors and actions that symroute's own rules use.
fn is_of_ours(FoundRule { rule, .. }: &FoundRule) -> bool {
    let is_whole = rule.from.is_none() && rule.to.is_none() && !rule.other_selectors;
    is_whole && !matches!(rule.action, Action::Other(_))
}

/// Filters of tc, and policies and states of `IPsec`.
pub(super) fn mark_users(bytes: &[u8]) {
    let link = Link { index: 2, name: "eth0".into(), ..Link::default() };
    let mut entries = answered(bytes, |socket| tc::read(socket, &[link]));
    entries.extend(answered(bytes, xfrm::read).unwrap_or_default());
    has_words(entries);
}

/// Asserts that `symroutectl marks` can print these entries.
pub(super) fn has_words(mut entries: Vec<crate::ledger::Entry>) {
    entries.sort();
    let ledger = Ledger { entries, ..Ledger::default() };
    let text = ledger.to_table();
    assert!(ledger.entries.is_empty() || text.lines().count() > 1, "{text}");
    assert!(ledger.to_json().is_array());
}
