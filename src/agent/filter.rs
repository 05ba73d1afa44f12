//! Decides which events of the kernel may matter. On a node with many pods the kernel reports
//! thousands of events a minute for interfaces and routes of pods. A look for each of them would
//! read the whole node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use super::cause::Cause;
use crate::backend::iptables::table_size::Sizes;
use crate::config::{Pattern, Settings};
use crate::model::{Facts, Link, Variant};
use crate::names;
use crate::netlink::uapi::{IFF_UP, RT_TABLE_LOCAL};
use crate::plan::offload::leads_to_pods;

/// Kinds of interface that `auto` never takes as an uplink and of which a node has many.
const POD_LINK_KINDS: [&str; 3] = ["veth", "bridge", "dummy"];

/// Event of rtnetlink, reduced to the fields that the filter reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// An interface was added or changed.
    Link(Link),
    /// The interface with this index was removed.
    Gone(u32),
    /// An address was added to or removed from the interface with this index.
    Address(u32),
    /// A route was added or removed.
    Route {
        table: u32,
        /// Length of the destination prefix in bits.
        prefix: u8,
        /// Indexes of the outgoing interfaces. Empty unless the route is unicast.
        links: Vec<u32>,
    },
    /// A rule was added or removed.
    Rule {
        priority: u32,
        table: u32,
        /// Whether the rule selects by packet mark.
        marked: bool,
        /// Source addresses that the rule selects.
        from: Option<IpNetwork>,
    },
    /// The kernel dropped events.
    Lost,
}

/// Properties of an interface whose change needs a look.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    name: String,
    port_of: Option<String>,
    up: bool,
    carrier: bool,
    mtu: u32,
}

impl Shape {
    /// Only a flowtable depends on the MTU, so without `offloads` the MTU counts as 0.
    fn of(link: &Link, offloads: bool) -> Self {
        Self {
            name: link.name.clone(),
            port_of: link.port_of.clone(),
            up: link.flags & IFF_UP != 0,
            carrier: link.carrier,
            mtu: if offloads { link.mtu } else { 0 },
        }
    }
}

/// Results of the last look at the node, used to judge later events.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// Highest rule priority number that symroute uses. The kernel reads rules of other programs
    /// with a higher number after symroute's rules.
    last_priority: u32,
    /// Numbers of symroute's routing tables. `None` before the first look.
    tables: Option<RangeInclusive<u32>>,
    /// The setting `uplinks`.
    names: Vec<Pattern>,
    uplinks: BTreeSet<u32>,
    /// Addresses of the uplinks. Source rules for them name the tables with the uplinks' gateways.
    own: Vec<IpAddr>,
    /// Interfaces that may become uplinks or are uplinks, by index.
    known: BTreeMap<u32, Shape>,
    /// Interfaces of pods by index, and whether a flowtable would take packets from them.
    pod_links: BTreeMap<u32, bool>,
    /// Whether a flowtable takes the packets of pods.
    pub(super) offloads: bool,
    /// Variant of iptables that marks; `None` where nftables marks.
    pub(super) variant: Option<Variant>,
    /// Table sizes of iptables-legacy right before the last look; `None` if that look repaired
    /// something. If another program then undoes the repair, the sizes are the same as before it.
    pub(super) sizes: Option<Sizes>,
}

impl Filter {
    /// Whether a change of a table mangle by iptables-nft may matter.
    pub(crate) fn minds_iptables_nft(&self) -> bool {
        self.tables.is_none() || self.variant == Some(Variant::Nft)
    }

    /// Whether rules of iptables-legacy matter. The kernel reports no events for them.
    pub(crate) fn minds_iptables_legacy(&self) -> bool {
        self.variant == Some(Variant::Legacy)
    }

    /// [`Cause::Iptables`] if these table sizes differ from those of the last look.
    pub(crate) fn judge_sizes(&self, found: Sizes) -> Option<Cause> {
        (self.sizes != Some(found)).then_some(Cause::Iptables)
    }

    /// Takes over the results of a look.
    pub(crate) fn learn(&mut self, settings: &Settings, uplinks: BTreeSet<u32>, facts: &Facts) {
        self.last_priority = settings.priority + 3;
        self.tables = Some(settings.table(1)..=settings.table(settings.field.max_id()));
        self.names.clone_from(&settings.uplinks);
        self.uplinks = uplinks;
        let own = facts.addresses.iter().filter(|a| self.uplinks.contains(&a.link));
        self.own = own.map(|a| a.ip).collect();
        self.known.clear();
        self.pod_links.clear();
        for link in &facts.links {
            if self.is_pod_link(link) {
                self.pod_links.insert(link.index, leads_to_pods(link));
            } else {
                self.known.insert(link.index, Shape::of(link, self.offloads));
            }
        }
    }

    fn is_pod_link(&self, link: &Link) -> bool {
        let named = || {
            let fits =
                |p: &Pattern| matches!(p, Pattern::Name(glob) if Pattern::fits(glob, &link.name));
            self.names.iter().any(fits)
        };
        let of_pods = link.kind.as_deref().is_some_and(|kind| POD_LINK_KINDS.contains(&kind));
        let port = link.port_of.as_deref() == Some("bridge");
        (of_pods || port) && !self.uplinks.contains(&link.index) && !named()
    }

    /// The cause for a look that this event gives; `None` if the event does not matter.
    pub(crate) fn judge(&mut self, event: Event) -> Option<Cause> {
        match event {
            Event::Lost => Some(Cause::Lost),
            Event::Link(link) => self.link(&link),
            Event::Gone(index) => {
                self.pod_links.remove(&index);
                let known = self.known.remove(&index).is_some();
                (known || self.uplinks.contains(&index)).then_some(Cause::Links)
            }
            Event::Address(link) => {
                (!self.pod_links.contains_key(&link)).then_some(Cause::Addresses)
            }
            Event::Route { table, prefix, links } => {
                let ours = self.tables.as_ref().is_none_or(|tables| tables.contains(&table));
                let wide = prefix <= 1 && !links.is_empty();
                let by_uplink = links.iter().any(|link| self.uplinks.contains(link));
                let matters = table != RT_TABLE_LOCAL && (ours || wide || by_uplink);
                matters.then_some(Cause::Routes)
            }
            // Network plugins add rules by pod address with a higher priority number; ignore those.
            Event::Rule { priority, table, marked, from } => {
                let ours = self.tables.as_ref().is_none_or(|tables| tables.contains(&table));
                let by_own = from.is_some_and(|net| self.own.iter().any(|&ip| net.contains(ip)));
                let matters = marked || ours || by_own || priority <= self.last_priority;
                matters.then_some(Cause::Rules)
            }
        }
    }

    fn link(&mut self, link: &Link) -> Option<Cause> {
        if self.is_pod_link(link) {
            let now = leads_to_pods(link);
            let before = self.pod_links.insert(link.index, now);
            let is_new = before.is_none();
            // The interface might have been an uplink until now, or kube-proxy begins to use IPVS.
            let matters = self.known.remove(&link.index).is_some()
                || is_new && link.name == names::OF_KUBE_PROXY;
            // Before the first look the agent does not know whether a flowtable exists.
            let offloads = self.offloads || self.tables.is_none();
            let feeds = offloads && before.unwrap_or(false) != now;
            return matters.then_some(Cause::Links).or(feeds.then_some(Cause::Pods));
        }
        self.pod_links.remove(&link.index);
        let shape = Shape::of(link, self.offloads);
        // The kernel also reports changes of statistics, queues and the like.
        if self.known.get(&link.index) == Some(&shape) {
            return None;
        }
        self.known.insert(link.index, shape);
        Some(Cause::Links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        let kind = kind.map(str::to_string);
        Link { index, name: name.into(), kind, flags: IFF_UP, carrier: true, ..Link::default() }
    }

    fn filter() -> Filter {
        let facts = Facts {
            links: vec![link(2, "eth0", None), link(3, "veth1", Some("veth"))],
            ..Facts::default()
        };
        let mut filter = Filter::default();
        filter.learn(&Settings::default(), BTreeSet::from([2]), &facts);
        filter
    }

    fn route(table: u32, prefix: u8, link: u32) -> Event {
        Event::Route { table, prefix, links: vec![link] }
    }

    #[test]
    fn pods_come_and_go_unnoticed() {
        let mut filter = filter();
        assert_eq!(filter.judge(Event::Link(link(9, "veth9", Some("veth")))), None);
        assert_eq!(filter.judge(Event::Address(9)), None);
        assert_eq!(filter.judge(route(254, 32, 9)), None);
        let to_pod = Event::Rule { priority: 512, table: 254, marked: false, from: None };
        assert_eq!(filter.judge(to_pod), None);
        assert_eq!(filter.judge(Event::Gone(9)), None);
        let ipvs = || Event::Link(link(8, "kube-ipvs0", Some("dummy")));
        assert_eq!(filter.judge(ipvs()), Some(Cause::Links), "IPVS is new");
        assert_eq!(filter.judge(ipvs()), None);
        assert_eq!(filter.judge(Event::Address(8)), None, "each service has one");
        let blackhole = Event::Route { table: 254, prefix: 26, links: vec![] };
        assert_eq!(filter.judge(blackhole), None);
    }

    #[test]
    fn the_flowtable_minds_new_pods_and_no_ports_of_bridges() {
        let mut filter = filter();
        filter.offloads = true;
        let veth = |index| link(index, "cali1", Some("veth"));
        assert_eq!(filter.judge(Event::Link(veth(9))), Some(Cause::Pods));
        assert_eq!(filter.judge(Event::Link(veth(9))), None, "nothing new");
        assert_eq!(filter.judge(Event::Address(9)), None);
        let port = |index| Link { port_of: Some("bridge".into()), ..veth(index) };
        assert_eq!(filter.judge(Event::Link(port(10))), None);
        assert_eq!(filter.judge(Event::Link(port(9))), Some(Cause::Pods), "it has a master now");
        assert_eq!(filter.judge(Event::Link(port(9))), None);
        assert_eq!(filter.judge(Event::Link(link(11, "cni0", Some("bridge")))), Some(Cause::Pods));
    }

    #[test]
    fn what_uplinks_are_made_of_is_noticed() {
        let mut filter = filter();
        assert_eq!(filter.judge(Event::Link(link(2, "eth0", None))), None, "nothing new");
        assert_eq!(filter.judge(Event::Link(link(2, "wan0", None))), Some(Cause::Links));
        assert_eq!(filter.judge(Event::Link(link(5, "eth1", None))), Some(Cause::Links));
        assert_eq!(filter.judge(Event::Address(5)), Some(Cause::Addresses));
        assert_eq!(filter.judge(route(254, 0, 5)), Some(Cause::Routes));
        assert_eq!(filter.judge(route(254, 24, 2)), Some(Cause::Routes));
        assert_eq!(filter.judge(route(47001, 24, 7)), Some(Cause::Routes), "one of ours");
        assert_eq!(filter.judge(route(255, 32, 2)), None, "table local follows addresses");
        assert_eq!(filter.judge(Event::Gone(2)), Some(Cause::Links));
        let ours = Event::Rule { priority: 402, table: 47001, marked: true, from: None };
        assert_eq!(filter.judge(ours), Some(Cause::Rules));
        let local = Event::Rule { priority: 0, table: 255, marked: false, from: None };
        assert_eq!(filter.judge(local), Some(Cause::Rules));
    }

    #[test]
    fn a_veth_that_the_settings_name_is_an_uplink_to_be() {
        let mut filter = filter();
        let settings =
            Settings { uplinks: vec![Pattern::Name("eth*".into())], ..Settings::default() };
        filter.learn(&settings, BTreeSet::new(), &Facts::default());
        let event = Event::Link(link(9, "eth9", Some("veth")));
        assert_eq!(filter.judge(event), Some(Cause::Links));
    }

    #[test]
    fn a_table_of_legacy_is_looked_at_until_it_is_as_wanted() {
        let mut filter = filter();
        assert!(!filter.minds_iptables_legacy() && !filter.minds_iptables_nft());
        filter.variant = Some(Variant::Legacy);
        assert!(filter.minds_iptables_legacy());
        let of_v4 = |entries| [Some((entries, 1000)), None];
        assert_eq!(filter.judge_sizes(of_v4(40)), Some(Cause::Iptables), "unknown");
        filter.sizes = Some(of_v4(40));
        assert_eq!(filter.judge_sizes(of_v4(40)), None);
        assert_eq!(filter.judge_sizes(of_v4(39)), Some(Cause::Iptables));
        filter.sizes = None;
        assert_eq!(filter.judge_sizes(of_v4(39)), Some(Cause::Iptables), "after a repair");
    }

    #[test]
    fn before_the_first_look_everything_matters() {
        let mut filter = Filter::default();
        assert!(filter.minds_iptables_nft());
        let event = Event::Rule { priority: 512, table: 7, marked: false, from: None };
        assert_eq!(filter.judge(event), Some(Cause::Rules));
    }
}
