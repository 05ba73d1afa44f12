//! Which backend symroute chooses on a node.

use serde_json::json;

use super::{VARIANTS, foreign, settings};
use crate::lab::backend::Backend;
use crate::lab::flows::assert_all_work;
use crate::lab::snapshot::Snapshot;
use crate::lab::two_nics::{NICS, two_nics};

const CANARY: &str = "-t mangle -N KUBE-KUBELET-CANARY";
const HINT: &str = "-t mangle -N KUBE-IPTABLES-HINT";
const ONE_RULE: &str = "-t mangle -A FORWARD -m mark --mark 7 -j ACCEPT";
const THREE_RULES: &str = "-t filter -A FORWARD -m mark --mark 1 -j ACCEPT
     -t filter -A FORWARD -m mark --mark 2 -j ACCEPT
     -t filter -A FORWARD -m mark --mark 3 -j ACCEPT";

/// Asserts that `up` with this setting, on a node with these rules of other programs, chooses
/// `wanted`, and that flows work.
fn assert_chosen(backend: &str, nft: &str, legacy: &str, wanted: Backend) {
    let layout = two_nics();
    let node = &layout.node;
    let [on_nft, on_legacy] = VARIANTS;
    foreign(node, on_nft, nft);
    foreign(node, on_legacy, legacy);
    let before = Snapshot::take(node);
    let what = format!("{backend:?} with {nft:?} in nft and {legacy:?} in legacy");
    for verb in ["up", "up again"] {
        node.up(&settings(backend));
        assert_eq!(node.ns.backends(), [wanted], "{verb}, {what}");
    }
    assert_all_work(&[layout.flow_to_host()]);
    let status = node.symroute(&["status", "--json"]);
    assert_eq!(status.code, Some(0), "{what}: {}", status.stdout);
    assert!(status.stdout.contains(&format!("\"{}\"", wanted.name())), "{what}: {}", status.stdout);
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}

#[test]
fn auto_is_nftables_where_the_kernel_has_it() {
    assert_chosen("auto", "", "", Backend::Nftables);
    assert_chosen("auto", HINT, "", Backend::Nftables);
    assert_chosen("auto", "", CANARY, Backend::Nftables);
}

/// Kubelet makes one of these chains, the image of iptables-wrappers the other.
#[test]
fn iptables_follows_the_chains_of_kubelet() {
    for chain in [CANARY, HINT] {
        assert_chosen("iptables", chain, "", Backend::IptablesNft);
        assert_chosen("iptables", "", chain, Backend::IptablesLegacy);
        assert_chosen("iptables", chain, THREE_RULES, Backend::IptablesNft);
        assert_chosen("iptables", THREE_RULES, chain, Backend::IptablesLegacy);
    }
}

#[test]
fn iptables_follows_the_larger_number_of_rules() {
    assert_chosen("iptables", THREE_RULES, ONE_RULE, Backend::IptablesNft);
    assert_chosen("iptables", ONE_RULE, THREE_RULES, Backend::IptablesLegacy);
}

#[test]
fn a_variant_may_be_forced() {
    assert_chosen("iptables-nft", "", CANARY, Backend::IptablesNft);
    assert_chosen("iptables-legacy", CANARY, "", Backend::IptablesLegacy);
}

/// Masquerade steering is impossible with iptables. The error for a setting that asks for it names
/// the remedy.
#[test]
fn masquerade_by_name_is_refused() {
    for variant in VARIANTS {
        for masquerade in [json!({"mark": "0x4000/0x4000", "via": "eth0"}), json!({"via": "eth0"})]
        {
            let layout = two_nics();
            let node = &layout.node;
            let mut settings = settings(variant.name());
            settings["masquerade"] = masquerade.clone();
            let before = Snapshot::take(node);
            let ran = node.call(&node.call_of("ADD", &settings, &layout.pods[1]));
            let (code, text) = ran.cni_error();
            assert_eq!(code, 7, "{text}");
            for word in ["masquerade", "eth0", "iptables", "nftables", "off"] {
                assert!(text.contains(word), "does not say {word}: {text}");
            }
            before.assert_unchanged(&Snapshot::take(node));
            // A node in use refuses the settings too, and stays as it is.
            node.up(&super::settings(variant.name()));
            let in_use = Snapshot::take(node);
            let ran = node.call(&node.call_of("ADD", &settings, &layout.pods[1]));
            assert_eq!(ran.cni_error().0, 7);
            in_use.assert_unchanged(&Snapshot::take(node));
            node.down();
            before.assert_unchanged(&Snapshot::take(node));
        }
    }
}

/// `"auto"` does without masquerade steering where an uplink has no address, and `status` has a
/// note about it.
#[test]
fn masquerade_by_itself_is_noted() {
    for variant in VARIANTS {
        let layout = two_nics();
        let node = &layout.node;
        node.ns.ip("link add eth2 type veth peer name peer2
             link set eth2 up
             link set peer2 up
             route add default dev eth2 table 102");
        let before = Snapshot::take(node);
        let settings = json!({
            "uplinks": ["eth0", "eth1", "eth2"], "backend": variant.name(),
            "gateways": {"eth2": ["10.22.0.1"]},
        });
        node.add(&settings, &layout.pods[1]);
        assert_all_work(&[layout.flow_to_host()]);
        for arguments in [&["status"][..], &["status", "--json"]] {
            let status = node.symroute(arguments).stdout;
            for word in ["masquerade", "eth2", "iptables", "nftables"] {
                assert!(status.contains(word), "does not say {word}:\n{status}");
            }
        }
        node.del(&settings, &layout.pods[1]);
        before.assert_unchanged(&Snapshot::take(node));
        // Where each uplink has an address, `status` has no note.
        node.up(&json!({"uplinks": NICS, "backend": variant.name()}));
        let status = node.symroute(&["status"]).stdout;
        assert!(!status.contains("asquerade steering"), "{status}");
        node.down();
    }
}
