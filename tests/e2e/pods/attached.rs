//! Interfaces that are attached and detached one by one, as Multus does.

use serde_json::json;

use super::plain::{assert_fails, assert_no_files};
use super::site::{Site, address, name, settings};
use crate::lab::flows::{assert_all_work, assert_only_these_fail};
use crate::lab::netns::Netns;
use crate::lab::snapshot::Snapshot;

/// A pod with eight interfaces. Without the plugin only the one with the default route answers.
#[test]
fn each_of_eight_interfaces_answers_by_itself() {
    let site = Site::new(8);
    let (before, host) = (site.snapshot(), Snapshot::take(&site.node));
    let flows = site.all_flows();
    let broken: Vec<&str> =
        flows.iter().map(|flow| &*flow.name).filter(|name| !name.starts_with("eth0")).collect();
    assert_only_these_fail(&flows, &broken);
    assert!(
        site.source_check_drops() > 0 && site.rp_filter_drops() > 0,
        "nothing was dropped without the plugin"
    );
    site.pod.exec(&["conntrack", "-F"], "");

    for number in 0..8 {
        site.add(&settings(), number);
    }
    for number in 0..8 {
        site.check(&settings(), number);
    }
    site.assert_answers();
    // Again, on connections that the kernel has never seen.
    site.pod.exec(&["conntrack", "-F"], "");
    site.assert_answers();
    host.assert_unchanged_but_files(&Snapshot::take(&site.node));
    for number in (0..8).rev() {
        site.del(&settings(), number);
    }
    before.assert_unchanged(&site.snapshot());
    host.assert_unchanged(&Snapshot::take(&site.node));
}

/// Multus calls the chain of one delegate after the other, and each may end with symroute. The
/// attached interfaces still answer while another one is attached or detached.
#[test]
fn the_state_grows_with_each_add_and_shrinks_with_each_del() {
    let mut site = Site::new(1);
    let mut sizes = vec![rules(&site)];
    for number in 0..4 {
        if number > 0 {
            site.plug();
        }
        site.add(&settings(), number);
        site.assert_answers();
        sizes.push(rules(&site));
    }
    // One interface needs no rules. Each one after the second adds as many as the others.
    assert_eq!(sizes[1], sizes[0], "rules for one interface: {sizes:?}");
    assert!(sizes[2] > sizes[1] && sizes[3] > sizes[2], "{sizes:?}");
    assert_eq!(sizes[4] - sizes[3], sizes[3] - sizes[2], "{sizes:?}");
    for number in [3, 2, 1] {
        site.detach(&settings(), number);
        let left: Vec<_> = (0..number).flat_map(|left| site.flows(left)).collect();
        assert_all_work(&left);
        assert_eq!(rules(&site), sizes[number], "after the DEL of {}", name(number));
    }
    site.del(&settings(), 0);
    assert_eq!(rules(&site), sizes[0]);
}

/// Number of ip rules in the pod, in both families.
fn rules(site: &Site) -> usize {
    let of = |family| site.pod.exec(&["ip", family, "rule"], "").lines().count();
    of("-4") + of("-6")
}

/// symroute also serves an interface whose own chain does not contain it.
#[test]
fn an_interface_without_symroute_in_its_chain_answers_too() {
    let site = Site::new(3);
    // Only the delegate of net2 has symroute; it does not know the results of the others.
    let settings =
        json!({"scope": "pod", "gateways": {"net1": ["10.100.1.1", "2001:db8:100:1::1"]}});
    site.add(&settings, 2);
    site.assert_answers();
    site.del(&settings, 2);
}

/// An interface that vanishes while the pod lives. The others answer, the next call cleans up, and
/// the last DEL leaves nothing.
#[test]
fn an_interface_that_vanishes_takes_nothing_along() {
    let site = Site::new(3);
    let mut settings = settings();
    settings["backend"] = json!("nftables");
    for number in 0..3 {
        site.add(&settings, number);
    }
    site.assert_answers();
    site.pod.ip("link del net1");
    let left: Vec<_> = [0, 2].into_iter().flat_map(|number| site.flows(number)).collect();
    assert_all_work(&left);
    assert_fails(&site.call("CHECK", &settings, 1), 102, &["no interface net1"]);
    site.check(&settings, 2);
    // An ADD may also run before the DEL.
    for verb in ["ADD", "DEL"] {
        let number = if verb == "ADD" { 2 } else { 1 };
        site.call(verb, &settings, number).assert_success(verb);
        site.check(&settings, 2);
        let listed = site.pod.exec(&["ip", "rule"], "");
        assert!(!listed.contains("net1") && !listed.contains(&address(1)), "{verb}: {listed}");
        assert_all_work(&left);
    }
    for number in [2, 0] {
        site.del(&settings, number);
    }
    assert_no_files(&site.node, "an interface has gone");
    assert_eq!(rules(&site), 3 + 2, "the kernel's own rules are left");
    assert_eq!(site.pod.exec(&["nft", "list", "tables"], ""), "", "tables");
}

/// The patterns in `uplinks` match the names of the pod's interfaces.
#[test]
fn patterns_are_about_the_names_in_the_pod() {
    let site = Site::new(3);
    let settings = json!({"scope": "pod", "uplinks": ["eth0", "net*", "!net2"]});
    for number in 0..3 {
        site.add(&settings, number);
    }
    let mut flows: Vec<_> = (0..2).flat_map(|number| site.flows(number)).collect();
    assert_all_work(&flows);
    flows = site.flows(2);
    let broken: Vec<&str> = flows.iter().map(|flow| &*flow.name).collect();
    assert_only_these_fail(&flows, &broken);
}

/// The network namespace of a pod with `hostUsers: false` belongs to a user namespace, where the
/// node's root has all rights.
#[test]
fn a_pod_with_a_user_namespace_of_its_own() {
    let site = Site::of(Netns::of_user_namespace("pod"), 2);
    let before = site.snapshot();
    let flows = site.flows(1);
    let broken: Vec<&str> = flows.iter().map(|flow| &*flow.name).collect();
    assert_only_these_fail(&flows, &broken);
    site.pod.exec(&["conntrack", "-F"], "");
    for number in 0..2 {
        site.add(&settings(), number);
    }
    site.check(&settings(), 1);
    site.assert_answers();
    for number in [1, 0] {
        site.del(&settings(), number);
    }
    before.assert_unchanged(&site.snapshot());
}

/// STATUS reports whether an ADD could succeed, which needs no pod.
#[test]
fn status_needs_no_pod() {
    let site = Site::new(1);
    for scope in [json!("pod"), json!(["host", "pod"])] {
        let network = site.node.network(&json!({"scope": scope, "cniVersion": "1.1.0"}), None);
        site.node.cni("STATUS", &network, "", "", "").assert_success("STATUS");
    }
    let network = site.node.network(&json!({"scope": "nowhere", "cniVersion": "1.1.0"}), None);
    let ran = site.node.cni("STATUS", &network, "", "", "");
    assert!(!ran.success && ran.stdout.contains("scope"), "{}", ran.stdout);
}
