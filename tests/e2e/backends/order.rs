//! Rules of other programs in the chains that jump to symroute's.

use super::{VARIANTS, foreign, settings};
use crate::lab::backend::Backend;
use crate::lab::flows::{assert_all_work, assert_only_these_fail};
use crate::lab::load::Load;
use crate::lab::node::Node;
use crate::lab::proof::Proof;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NODE, two_nics};

/// A firewall that accepts established connections early, and rules that show the order.
const RULES: &str = "-t mangle -N FIREWALL
    -t mangle -A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -t mangle -A PREROUTING -m mark --mark 0xb0000 -j FIREWALL
    -t mangle -A PREROUTING -m mark --mark 0xa0000 -j ACCEPT
    -t mangle -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -t mangle -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -t mangle -A FORWARD -m mark --mark 0xa0000 -j ACCEPT
    -t mangle -A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    -t mangle -A OUTPUT -m mark --mark 0xb0000 -j ACCEPT
    -t mangle -A POSTROUTING -m mark --mark 0xb0000 -j ACCEPT
    -t mangle -A POSTROUTING -m mark --mark 0xa0000 -j ACCEPT
    -t mangle -A FIREWALL -m mark --mark 0xc0000 -j DROP";

/// The table mangle without symroute's rules.
fn of_others(node: &Node, variant: Backend) -> Vec<String> {
    let text = node.ns.mangle(variant);
    let lines = text.lines().filter(|line| !line.contains("symroute"));
    lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect()
}

/// Asserts that in each base chain the first rule, and no other, jumps to symroute's chain.
fn assert_ours_are_first(node: &Node, variant: Backend) {
    for v6 in [false, true] {
        assert_ours_is_first(&node.ns.mangle_of(variant, v6));
    }
}

fn assert_ours_is_first(text: &str) {
    for chain in ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] {
        let ours = format!(" -j symroute-{}", chain.to_lowercase());
        let of_chain: Vec<_> =
            text.lines().filter(|line| line.starts_with(&format!("-A {chain} "))).collect();
        let jumps = of_chain.iter().filter(|line| line.ends_with(&ours)).count();
        assert!(of_chain[0].ends_with(&ours), "{text}");
        assert_eq!(jumps, 1, "{text}");
    }
}

#[test]
fn rules_of_others_keep_their_order() {
    for variant in VARIANTS {
        let layout = two_nics();
        let node = &layout.node;
        foreign(node, variant, RULES);
        let (there, proof) = (of_others(node, variant), Proof::begin(&layout.node, &layout.router));
        assert!(there.len() > 24, "both families: {there:?}");
        let settings = settings(variant.name());
        let step = |what: &str, is_there: bool| {
            assert_eq!(of_others(node, variant), there, "{variant:?}, after {what}");
            if is_there {
                assert_ours_are_first(node, variant);
                // Replies leave through eth1, although a later rule accepts them.
                proof.assert_flows_work(&[layout.flow_to_host()], &["eth0", "eth1"], 1);
            }
        };
        node.add(&settings, &layout.pods[0]);
        step("the first ADD", true);
        node.add(&settings, &layout.pods[1]);
        step("ADD", true);
        node.up(&settings);
        step("up", true);
        let mut other = settings.clone();
        other["hairpin"] = true.into();
        node.up(&other);
        step("up with other settings", true);
        node.del(&settings, &layout.pods[0]);
        step("DEL", true);
        node.down();
        step("down with a pod on the node", true);
        node.del(&settings, &layout.pods[1]);
        step("the last DEL", false);
        proof.assert_as_before();
    }
}

/// A firewall that starts after symroute and puts its rules first.
#[test]
fn somebody_comes_first() {
    for variant in VARIANTS {
        let layout = two_nics();
        let node = &layout.node;
        let before = Snapshot::take(node);
        let settings = settings(variant.name());
        node.up(&settings);
        assert_all_work(&[layout.flow_to_host()]);
        let rule = "PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        foreign(node, variant, &format!("-t mangle -I {rule}"));
        node.assert_status_names("PREROUTING");
        node.up(&settings);
        assert_ours_are_first(node, variant);
        assert_all_work(&[layout.flow_to_host()]);
        assert_eq!(node.symroute(&["status"]).code, Some(0));
        foreign(node, variant, &format!("-t mangle -D {rule}"));
        node.down();
        before.assert_unchanged(&Snapshot::take(node));
    }
}

/// While symroute moves its rules back to the front, there is no moment without them.
#[test]
fn first_again_without_a_gap() {
    for variant in VARIANTS {
        let layout = two_nics();
        let node = &layout.node;
        let proof = Proof::begin(node, &layout.router);
        let settings = settings(variant.name());
        node.up(&settings);
        let loads = [
            Load::kept(&layout.client, NODE[1], 10250),
            Load::anew(&layout.client, NODE[1], 10250),
        ];
        for chain in ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"] {
            foreign(node, variant, &format!("-t mangle -I {chain} -m mark --mark 0xa0000"));
            node.assert_status_names(chain);
            node.up(&settings);
            assert_ours_are_first(node, variant);
            for load in &loads {
                load.assert_goes_on(&format!(
                    "up with {variant:?} and a rule before us in {chain}"
                ));
            }
            proof.assert_nothing_dropped();
            foreign(node, variant, &format!("-t mangle -D {chain} -m mark --mark 0xa0000"));
        }
        drop(loads);
        node.down();
        proof.assert_as_before();
    }
}

/// Shows that the rule of the tests above does harm, so that those tests can fail.
#[test]
fn a_rule_before_us_harms() {
    let layout = two_nics();
    let node = &layout.node;
    let [variant, _] = VARIANTS;
    node.up(&settings(variant.name()));
    foreign(node, variant, "-t mangle -I OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT");
    assert_only_these_fail(&[layout.flow_to_host()], &["host on eth1"]);
    node.down();
}
