//! Finds rules of other programs that come before symroute's and send replies elsewhere: of Cilium, of MAAS and
//! netplan, or of an operator.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::conflicts::span_of_ours;
use super::unanswered::Main;
use super::{Note, Plan, Uplink, Way, uplinks};
use crate::backend::Marker;
use crate::config::Settings;
use crate::model::{Action, Facts, Family, Route, Rule, host_length};
use crate::names::LOOPBACK;
use crate::netlink::uapi::RT_TABLE_LOCAL;

/// Number of priorities that symroute uses before the first one; see [`crate::config::RulePriorities`].
const PRIORITIES_BEFORE_FIRST: u32 = 2;
/// Maximum number of rules that a note names.
const NAMED_MOST: usize = 32;

/// Rules before symroute's that send replies elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stray {
    /// The rules as `ip rule` prints them.
    rules: String,
    /// A `rulePriority` before these rules.
    place: Option<u32>,
    /// A denying rule that symroute would bypass at `place`. Only an operator may decide that.
    denies: Option<String>,
    /// Distance between the first and the last priority of symroute's rules.
    span: u32,
}

impl Stray {
    /// The `rulePriority` that the plugin may choose for "auto".
    pub(crate) fn choice(&self) -> Option<u32> {
        self.place.filter(|_| self.denies.is_none())
    }

    /// What is wrong, and the remedy.
    pub(crate) fn note(&self, settings: &Settings) -> Note {
        let what =
            format!("rules before those of symroute may send replies elsewhere: {}", self.rules);
        let last = settings.priority + self.span;
        let remedy = match (self.place, &self.denies) {
            (Some(place), Some(denies)) => format!(
                "set \"rulePriority\": {place}, so that symroute's rules come first, also before the rule \
                 that denies ({denies}), or move those rules behind {last}"
            ),
            (Some(place), None) => {
                format!(
                    "set \"rulePriority\": {place} or \"auto\", so that symroute's rules come first, or \
                     move those rules behind {last}"
                )
            }
            (None, _) => format!("move those rules behind {last}"),
        };
        Note { what, remedy }
    }
}

/// Finds the rules before symroute's that send replies elsewhere.
pub(crate) fn find(facts: &Facts, settings: &Settings, plan: &Plan) -> Option<Stray> {
    let first_of_ours = settings.rules().skip;
    let before = facts.foreign_rules().filter(|rule| rule.priority < first_of_ours);
    let mut judge = Judge::of(facts, plan);
    let stray: Vec<&Rule> = before.filter(|rule| judge.steers(rule)).collect();
    let first = stray.iter().map(|rule| rule.priority).min()?;
    let mut listed: Vec<_> = stray.iter().take(NAMED_MOST).map(ToString::to_string).collect();
    if stray.len() > NAMED_MOST {
        listed.push(format!("and {} more", stray.len() - NAMED_MOST));
    }
    let taken: BTreeSet<u32> = facts.foreign_rules().map(|rule| rule.priority).collect();
    // The look-up of table local has to stay first, in both families.
    let local = |family: Family| {
        let of_family = facts.foreign_rules().filter(move |rule| rule.family == family);
        let local = of_family.filter(|rule| rule.action == Action::Lookup(RT_TABLE_LOCAL));
        local.map(|rule| rule.priority).min()
    };
    let local = Family::ALL.into_iter().filter_map(local).max().unwrap_or(0);
    let span = span_of_ours(facts);
    let free = |p: &u32| (p - PRIORITIES_BEFORE_FIRST..=p + span).all(|p| !taken.contains(&p));
    let last = first.saturating_sub(span);
    let place = (local.saturating_add(PRIORITIES_BEFORE_FIRST + 1)..last).rev().find(free);
    let between =
        |rule: &&Rule| place.is_some_and(|place| (place..first_of_ours).contains(&rule.priority));
    let denies =
        facts.foreign_rules().filter(between).find(|rule| matches!(rule.action, Action::Other(_)));
    let denies = denies.map(ToString::to_string);
    Some(Stray { rules: listed.join(", "), place, denies, span })
}

/// Destination and hops of a route: interface and gateway of each.
type Leads = (IpNetwork, Vec<(u32, Option<IpAddr>)>);

fn leads(route: &Route) -> Leads {
    (route.dst, route.nexthops.iter().map(|hop| (hop.link, hop.gateway)).collect())
}

/// A value that is computed on first use.
type Lazy<'a, T> = LazyCell<T, Box<dyn FnOnce() -> T + 'a>>;

/// Indexes for judging rules. A node may have thousands of rules and routes, so each is read once.
struct Judge<'a> {
    plan: &'a Plan,
    /// Tables that have routes, and whether a table has a default route.
    tables: BTreeMap<(u32, Family), bool>,
    /// Routes of main, and the interfaces that lead outside.
    main: Lazy<'a, (Main<'a>, BTreeSet<u32>)>,
    /// Routes of each table.
    theirs: Lazy<'a, BTreeMap<u32, BTreeSet<Leads>>>,
    /// Routes of each uplink's table, by interface and family.
    ours: BTreeMap<(u32, Family), BTreeSet<Leads>>,
    /// The first interface with each address.
    owners: BTreeMap<IpAddr, u32>,
    /// Whether a table has all routes of an uplink's table, by table, family and uplink.
    same: BTreeMap<(u32, Family, u32), bool>,
}

impl<'a> Judge<'a> {
    fn of(facts: &'a Facts, plan: &'a Plan) -> Self {
        let mut tables = BTreeMap::new();
        for route in &facts.routes {
            *tables.entry((route.table, route.family())).or_default() |= route.is_wide();
        }
        let mut owners = BTreeMap::new();
        for address in &facts.addresses {
            owners.entry(address.ip).or_insert(address.link);
        }
        let main = move || (Main::of(facts), uplinks::outside(facts, &plan.src_valid_mark));
        let theirs = move || {
            let mut all: BTreeMap<u32, BTreeSet<Leads>> = BTreeMap::new();
            for route in &facts.routes {
                all.entry(route.table).or_default().insert(leads(route));
            }
            all
        };
        Self {
            plan,
            tables,
            main: Lazy::new(Box::new(main)),
            theirs: Lazy::new(Box::new(theirs)),
            ours: BTreeMap::new(),
            owners,
            same: BTreeMap::new(),
        }
    }

    /// Whether the rule may send elsewhere a reply that is bound to an uplink.
    fn steers(&mut self, rule: &Rule) -> bool {
        let Action::Lookup(table) = rule.action else { return false };
        self.plan.families.contains(&rule.family)
            && table != RT_TABLE_LOCAL
            && (rule.mark.is_none() || self.leads_all_elsewhere(rule, table))
            && rule.suppress.is_none()
            && rule.iif.as_deref().is_none_or(|iif| iif == LOOPBACK)
            && rule.to.is_none_or(|to| !self.is_inside(to))
            && self.tables.contains_key(&(table, rule.family))
            && !(is_harmless(self.plan) && self.says_the_same(rule, table))
    }

    fn is_inside(&self, to: IpNetwork) -> bool {
        let (main, outside) = &*self.main;
        main.is_inside(outside, to)
    }

    /// Whether the rule matches all marks except one, as those of VPNs do, and its table has a default route.
    /// Otherwise the table only serves some networks.
    fn leads_all_elsewhere(&self, rule: &Rule, table: u32) -> bool {
        rule.is_inverted && self.tables.get(&(table, rule.family)) == Some(&true)
    }

    /// Whether the rule matches a single address of an uplink, and its table has all routes of the uplink's
    /// table.
    fn says_the_same(&mut self, rule: &Rule, table: u32) -> bool {
        let Some(from) = rule.from.filter(|from| from.prefix() == host_length(from.ip())) else {
            return false;
        };
        let owner = self.owners.get(&from.ip());
        let of_owner = |u: &&Uplink| Some(&u.link) == owner;
        let Some(uplink) = self.plan.uplinks.iter().find(of_owner) else { return false };
        let ours = self.ours.entry((uplink.link, rule.family));
        let ours = ours.or_insert_with(|| of_uplink(self.plan, uplink, rule.family));
        let judged = self.same.entry((table, rule.family, uplink.link));
        *judged.or_insert_with(|| {
            let theirs = self.theirs.get(&table);
            ours.iter().all(|way| theirs.is_some_and(|theirs| theirs.contains(way)))
        })
    }
}

/// Whether a rule with the same routes as symroute's does no harm. It does with iptables: the rule answers the
/// look-up that recognises local pods (`xt_rpfilter` asks with the packet's destination as source).
fn is_harmless(plan: &Plan) -> bool {
    plan.marker() == Marker::Nftables
}

/// Routes of an uplink's table, without those to its routers.
fn of_uplink(plan: &Plan, uplink: &Uplink, family: Family) -> BTreeSet<Leads> {
    let gateways: BTreeSet<IpAddr> = uplink.ways.values().flat_map(Way::gateways).collect();
    let ours = plan.routes.iter().filter(|r| {
        let to_gateway =
            r.dst.prefix() == host_length(r.dst.ip()) && gateways.contains(&r.dst.ip());
        (r.table, r.family()) == (uplink.table, family) && !to_gateway
    });
    ours.map(leads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FoundRule, MarkMatch};

    fn facts(rules: &[(u32, Option<&str>, u32)]) -> Facts {
        let rule = |&(priority, from, table): &(u32, Option<&str>, u32)| Rule {
            family: Family::V4,
            priority,
            action: Action::Lookup(table),
            mark: None,
            iif: None,
            from: from.map(|net| net.parse().unwrap()),
            to: None,
            suppress: None,
            other_selectors: from.is_some(),
            is_inverted: false,
            protocol: 4,
        };
        let found = |rule| FoundRule { rule, message: Vec::new() };
        let mut facts =
            Facts { rules: rules.iter().map(rule).map(found).collect(), ..Facts::default() };
        let route = Route {
            table: 150,
            dst: Family::V4.default_route(),
            kind: 1,
            scope: 0,
            protocol: 3,
            metric: 0,
            nexthops: Vec::new(),
            metrics: Vec::new(),
            is_special: false,
        };
        facts.routes.push(route);
        facts
    }

    #[test]
    fn a_place_before_them_is_named() {
        let plan = Plan { families: [Family::V4].into(), ..Plan::default() };
        let advice = |rules: &[(u32, Option<&str>, u32)]| {
            let settings = Settings::default();
            find(&facts(rules), &settings, &plan).map(|stray| stray.note(&settings).remedy)
        };
        assert_eq!(advice(&[(0, None, 255), (32766, None, 150)]), None);
        assert_eq!(advice(&[(0, None, 255), (100, Some("10.0.0.0/8"), 99)]), None, "no routes");
        let maas = advice(&[(0, None, 255), (100, Some("10.0.0.0/8"), 150)]).unwrap();
        assert!(maas.contains("\"rulePriority\": 96 or"), "{maas}");
        let cilium = advice(&[(100, None, 255), (104, Some("10.0.0.1/32"), 150)]).unwrap();
        assert!(cilium.starts_with("move those rules"), "{cilium}");
        // symroute's rules cannot come before a rule that precedes table local.
        let first = advice(&[(100, None, 255), (99, Some("10.0.0.1/32"), 150)]).unwrap();
        assert!(first.starts_with("move those rules"), "{first}");
    }

    #[test]
    fn a_rule_for_all_marks_but_one() {
        let plan = Plan { families: [Family::V4].into(), ..Plan::default() };
        let settings = Settings::default();
        let mut facts = facts(&[(0, None, 255), (110, None, 150)]);
        facts.rules[1].rule.mark = Some(MarkMatch { value: 0x1bd00, mask: u32::MAX });
        assert_eq!(find(&facts, &settings, &plan), None, "for one mark");
        facts.rules[1].rule.is_inverted = true;
        let note = find(&facts, &settings, &plan).unwrap().note(&settings);
        assert!(note.what.contains("110: not fwmark 0x1bd00/0xffffffff"), "{}", note.what);
        assert!(note.remedy.contains("\"rulePriority\": 106 or"), "{}", note.remedy);
        facts.routes[0].dst = "10.0.0.0/8".parse().unwrap();
        assert_eq!(find(&facts, &settings, &plan), None, "for some networks");
    }

    #[test]
    fn the_plugin_does_not_choose_to_pass_by_a_rule_that_denies() {
        let plan = Plan { families: [Family::V4].into(), ..Plan::default() };
        let settings = Settings::default();
        let mut facts = facts(&[(0, None, 255), (100, Some("10.0.0.0/8"), 150), (200, None, 0)]);
        let choice = |facts: &Facts| find(facts, &settings, &plan).and_then(|stray| stray.choice());
        assert_eq!(choice(&facts), Some(96));
        facts.rules[2].rule.action = Action::Other(8);
        assert_eq!(choice(&facts), None);
    }
}
