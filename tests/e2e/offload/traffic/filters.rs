//! What other programs see of offloaded packets at an interface, before the flowtable. Also the
//! flowtable itself on a node with many pods and beside iptables rules.

use std::fmt::Write as _;
use std::fs;

use serde_json::Value;

use crate::lab::backend::Backend;
use crate::lab::flowtable::{Forwarded, flowtable_devices, kernel_has_flowtables};
use crate::lab::netns::Netns;
use crate::lab::proof::Proof;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{POD, POD6, two_nics};

use super::super::{PROTOS, settings};
use super::{assert_all_bypass_rules, begin, offload_all};

const POD1: [&str; 2] = [POD[1], POD6[1]];

/// The interfaces on which the uplink's requests and the pod's replies arrive.
const INTERFACES: [&str; 2] = ["eth1", "enipod1"];

/// Adds an early and a late chain of the family netdev to each interface.
fn add_ingress_counters(node: &Netns) {
    let mut chains = String::new();
    for interface in INTERFACES {
        for (word, priority) in [("early", "-500"), ("late", "2147483646")] {
            let _ = writeln!(
                chains,
                "counter {word}_{interface} {{ }}
                chain {word}_{interface} {{
                    type filter hook ingress device {interface} priority {priority}
                    meta l4proto {{ tcp, udp }} counter name {word}_{interface}
                }}"
            );
        }
    }
    node.nft(&format!("table netdev others {{ {chains} }}"));
}

/// Packets that each of the netdev chains has seen.
fn ingress_counts(node: &Netns) -> Vec<u64> {
    let text = node.exec(&["nft", "-j", "list", "counters", "table", "netdev", "others"], "");
    let listing: Value = serde_json::from_str(&text).expect("JSON of nft");
    let entries = listing["nftables"].as_array().expect("a list").iter();
    let counters = entries.filter_map(|entry| entry.get("counter"));
    counters.map(|counter| counter["packets"].as_u64().expect("a count")).collect()
}

/// Packets that a filter of traffic control has seen at an interface.
fn traffic_control_count(node: &Netns, interface: &str) -> u64 {
    let list = ["tc", "-s", "-j", "filter", "show", "dev", interface, "ingress"];
    let listing: Value = serde_json::from_str(&node.exec(&list, "")).expect("JSON of tc");
    let filters = listing.as_array().expect("a list").iter();
    let actions = filters.filter_map(|filter| filter["options"]["actions"].as_array());
    let counts = actions.flatten().filter_map(|action| action["stats"]["packets"].as_u64());
    counts.sum()
}

#[test]
fn filters_at_an_interface_see_all_packets() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node.ns;
    let forwarded = Forwarded::watch(node);
    layout.node.up(&settings());
    add_ingress_counters(node);
    for interface in INTERFACES {
        node.exec(&["tc", "qdisc", "add", "dev", interface, "clsact"], "");
        let filter =
            format!("tc filter add dev {interface} ingress protocol all matchall action pass");
        let argv: Vec<&str> = filter.split(' ').collect();
        node.exec(&argv, "");
    }
    let mut talks = begin(&layout.client, &layout.pods[1].ns, &POD1);
    offload_all(&layout.node, &mut talks);
    let seen = || {
        let mut seen = ingress_counts(node);
        seen.extend(INTERFACES.map(|interface| traffic_control_count(node, interface)));
        seen
    };
    let before = seen();
    assert_eq!(before.len(), 6, "two chains and a filter at each interface");
    assert_all_bypass_rules(&forwarded, &mut talks, "seen at the interface");
    for (before, after) in before.into_iter().zip(seen()) {
        // Each of four connections sends five words in each direction.
        assert!(after >= before + 20, "{before} packets, then {after}");
    }
    layout.node.down();
}

/// A filter at an interface drops the client's packets, as it would without offload.
#[test]
fn what_is_dropped_at_an_interface_stays_dropped() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    layout.node.up(&settings());
    let pod = &layout.pods[1].ns;
    let mut talks = begin(&layout.client, pod, &POD1);
    offload_all(&layout.node, &mut talks);
    layout.node.ns.nft(
        "table netdev others {
            counter dropped { }
            chain eth1 {
                type filter hook ingress device eth1 priority 2147483646
                ip saddr 203.0.113.9 counter name dropped drop
                ip6 saddr 2001:db8:9::9 counter name dropped drop
            }
        }",
    );
    pod.nft(
        "table inet arrivals {
            counter requests { }
            chain input {
                type filter hook input priority 0
                meta l4proto { tcp, udp } counter name requests
            }
        }",
    );
    for talk in &talks {
        talk.say().expect("a word that nobody hears");
    }
    let dropped = || {
        let text =
            layout.node.ns.exec(&["nft", "list", "counter", "netdev", "others", "dropped"], "");
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    assert!(dropped() >= 4_u64, "{} dropped", dropped());
    assert_eq!(pod.counter("arrivals", "requests"), 0, "requests that came to the pod");
    layout.node.ns.nft("delete table netdev others");
    for talk in &mut talks {
        talk.assert_goes_on("the filter");
    }
    layout.node.down();
}

#[test]
fn three_hundred_pods() {
    const PODS: usize = 300;
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let (node, pods) = (&layout.node, Netns::new("pods"));
    let mut batch = String::new();
    for number in 0..PODS {
        let _ = writeln!(
            batch,
            "link add v{number} type veth peer name w{number} netns {}",
            pods.name()
        );
        let _ = writeln!(batch, "link set v{number} up");
    }
    node.ns.ip(&batch);
    let proof = Proof::begin(node, &layout.router);
    node.up(&settings());
    let found = flowtable_devices(&node.ns);
    let missing: Vec<_> =
        (0..PODS).map(|number| format!("v{number}")).filter(|name| !found.contains(name)).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    assert_eq!(found.len(), PODS + 4, "with the uplinks, and the lab's pods: {found:?}");
    let changes = || {
        let log = fs::read_to_string(node.log()).expect("a log");
        let table = node.ns.exec(&["nft", "-a", "list", "table", "inet", "symroute"], "");
        (log.lines().filter(|line| line.contains(" DEBUG ")).count(), table)
    };
    let before = changes();
    assert!(before.0 > 0, "the first one changes something");
    node.up(&settings());
    assert_eq!(changes(), before, "the second one changes nothing");
    let mut talks = begin(&layout.client, &layout.pods[1].ns, &POD1);
    offload_all(node, &mut talks);
    node.down();
    proof.assert_as_before();
}

/// With an iptables backend, symroute's nftables table contains only the flowtable.
#[test]
fn the_table_of_each_backend() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    let proof = Proof::begin(node, &layout.router);
    node.up(&settings());
    let table = node.ns.exec(&["nft", "list", "table", "inet", "symroute"], "");
    assert!(table.contains("flowtable "), "{table}");
    let marks = !Backend::of_run().is_iptables();
    assert_eq!(table.contains("hook prerouting"), marks, "{table}");
    assert_eq!(table.contains("ct mark set"), marks, "{table}");
    let mut talks = begin(&layout.client, &layout.pods[1].ns, &POD1);
    offload_all(node, &mut talks);
    for (talk, proto) in talks.iter().zip(PROTOS.into_iter().flat_map(|proto: Proto| [proto; 2])) {
        assert_eq!(node.mark_of(proto, talk.client()), Some(0x200), "{table}");
    }
    node.down();
    assert_eq!(node.ns.backends(), [], "down leaves nothing");
    let tables = node.ns.exec(&["nft", "list", "tables"], "");
    assert!(!tables.contains("inet symroute"), "{tables}");
    drop(talks);
    proof.assert_as_before();
}
