//! A transparent proxy behind an uplink. The source check drops its packets, and `--fix` repairs
//! that.

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use super::{NICS, found, json, plugin_object};
use crate::lab::backend::Backend;
use crate::lab::flows::{BASELINE, PATIENT};
use crate::lab::node::Node;
use crate::lab::traffic::{Proto, Server, ask};
use crate::lab::two_nics::{CLIENT, NODE, TwoNics, two_nics};

/// An address that no host has, so only the proxy answers for it.
const PROXIED: &str = "198.51.100.7";
const ONE_BIT: &str = "meta mark or 0x1";

/// Starts a proxy on the node for what arrives on eth0 for [`PROXIED`], and for the node itself.
/// `mark` is an nft expression for the mark that the proxy sets.
fn proxy(layout: &mut TwoNics, mark: &str) -> Server {
    layout.router.assign("eth0", PROXIED);
    layout.router.check_sources(&NICS);
    let proxy = Server::start(&layout.node.ns, Proto::Tcp, 9999, "proxy");
    let Server::Tcp(listener) = &proxy else { panic!("a TCP server") };
    setsockopt(listener, sockopt::IpTransparent, &true).expect("a transparent socket");
    layout.node.ns.ip("route add local default dev lo table 100");
    // After iptables' mangle chains, and before symroute's where it uses nftables.
    layout.node.ns.nft(&format!(
        "table inet proxy {{ chain pre {{
           type filter hook prerouting priority -140;
           meta l4proto tcp th dport 80 meta mark set {mark} tproxy to :9999;
         }}
         }}"
    ));
    proxy
}

fn fix(node: &Node) -> Value {
    let config = plugin_object(node, &json!({ "uplinks": NICS }));
    let ran = node.symroute(&["doctor", "--for", "0s", "--fix", "--json", "--config", &config]);
    serde_json::from_str(&ran.stdout).expect(&ran.stderr)
}

fn rules(node: &Node) -> String {
    node.ns.exec(&["ip", "rule"], "")
}

/// Puts the proxy's rule after those of symroute, and before them.
#[test]
fn a_proxy_behind_an_uplink() {
    for (place, healed) in [
        (32_765, "pref 32764 iif lo fwmark 0x1/0x1 lookup main"),
        (300, "pref 299 iif lo fwmark 0x1/0x1 goto 400"),
    ] {
        let mut layout = two_nics();
        let _proxy = proxy(&mut layout, ONE_BIT);
        let node = &layout.node;
        node.ns.ip(&format!("rule add pref {place} fwmark 1/1 lookup 100"));
        let asks = |address: &str, deadline| {
            let to = format!("{address}:80").parse().expect("an address");
            ask(&layout.client, Proto::Tcp, to, deadline).map(|answer| answer.who)
        };
        let proxied = |deadline| asks(PROXIED, deadline);
        assert_eq!(proxied(PATIENT).expect("an answer without symroute"), "proxy");
        assert_eq!(found(node, &[])[2..], ["note not-in-force"], "nothing is lost yet");
        node.up(&json!({ "uplinks": NICS }));
        // iptables marks all that arrives on an uplink, so symroute's rule decides before the
        // proxy's.
        if place > 400 && Backend::of_run() != Backend::Nftables {
            assert_eq!(proxied(PATIENT).expect("an answer beside symroute"), "proxy");
            assert_eq!(found(node, &[]), ["note no-agent"], "{place}");
            node.down();
            continue;
        }
        proxied(BASELINE).expect_err("src_valid_mark breaks it");
        assert_eq!(found(node, &[]), ["problem tproxy", "note no-agent"], "{place}");

        let report = fix(node);
        let did = format!("ip rule add {healed} protocol kernel");
        let undo = format!("ip rule del {healed}");
        assert_eq!(report["fixed"], json!([{"did": did, "undo": undo}]), "{report:#}");
        assert_eq!(proxied(PATIENT).expect("an answer after --fix"), "proxy");
        for address in NODE {
            assert_eq!(asks(address, PATIENT).expect("an answer by each NIC"), "proxy");
        }
        assert_eq!(found(node, &[]), ["note no-agent"]);
        // A second `--fix` adds nothing.
        let before = rules(node);
        assert_eq!(fix(node)["fixed"], json!([]));
        assert_eq!(rules(node), before);
        node.up(&json!({ "uplinks": NICS }));
        assert_eq!(rules(node), before, "symroute leaves the rule where it is");
        node.ns.ip(undo.strip_prefix("ip ").expect("a command of ip"));
        assert_eq!(found(node, &[]), ["problem tproxy", "note no-agent"], "it is undone");
        node.down();
    }
    println!("neighbour TPROXY by an uplink: found by name");
}

/// A rule that matches the whole mark does not match a request that symroute has marked.
#[test]
fn a_proxy_that_looks_at_the_whole_mark() {
    let mut layout = two_nics();
    let _proxy = proxy(&mut layout, "0x1");
    let node = &layout.node;
    node.ns.ip("rule add pref 300 fwmark 1 lookup 100");
    node.up(&json!({ "uplinks": NICS }));
    let to = format!("{PROXIED}:80").parse().expect("an address");
    ask(&layout.client, Proto::Tcp, to, BASELINE).expect_err("src_valid_mark breaks it");
    let report = fix(node);
    let did = &report["fixed"][0]["did"];
    assert_eq!(
        did,
        "ip rule add pref 299 iif lo fwmark 0x1/0xffffffff lookup main protocol kernel"
    );
    let answer = ask(&layout.client, Proto::Tcp, to, PATIENT).expect("an answer after --fix");
    assert_eq!((answer.who.as_str(), answer.seen_as.to_string().as_str()), ("proxy", CLIENT));
}

/// The node's own packets use this proxy too. The repair's rule would bypass it for them, so the
/// operator has to choose.
#[test]
fn a_proxy_of_the_nodes_own_packets() {
    let mut layout = two_nics();
    let _proxy = proxy(&mut layout, ONE_BIT);
    let node = &layout.node;
    node.ns.ip("rule add pref 300 fwmark 1/1 lookup 100");
    node.ns.nft("add chain inet proxy out { type route hook output priority -150; }");
    node.ns.nft(&format!("add rule inet proxy out ip daddr {PROXIED} meta mark set {ONE_BIT}"));
    node.up(&json!({ "uplinks": NICS }));
    assert_eq!(found(node, &[]), ["problem tproxy", "note no-agent"]);
    let before = rules(node);
    assert_eq!(fix(node)["fixed"], json!([]));
    assert_eq!(rules(node), before);
    let text = node.symroute(&["doctor", "--for", "0s"]).stdout;
    assert!(text.contains("--fix leaves this to you"), "{text}");
    node.down();
}

/// A rule for a mark that no packet gets, as Cilium adds on each node, is only a note.
#[test]
fn a_rule_without_a_proxy() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.ip("route add local default dev lo table 2004
         rule add pref 9 fwmark 0x200000/0xf00000 lookup 2004");
    node.up(&json!({ "uplinks": NICS }));
    assert_eq!(found(node, &[]), ["note tproxy", "note no-agent"]);
    let before = rules(node);
    assert_eq!(fix(node)["fixed"], json!([]));
    assert_eq!(rules(node), before);
    node.down();
}

#[test]
fn nothing_to_fix() {
    let layout = two_nics();
    let node = &layout.node;
    let before = rules(node);
    assert_eq!(fix(node)["fixed"], json!([]));
    node.up(&json!({ "uplinks": NICS }));
    let in_force = rules(node);
    // A local table that no mark leads to does not belong to a proxy.
    node.ns.ip("route add local 198.51.100.0/24 dev lo table 100");
    assert_eq!(fix(node)["fixed"], json!([]));
    assert_eq!(rules(node), in_force);
    node.down();
    assert_eq!(rules(node), before);
    let text = node.symroute(&["doctor", "--for", "0s", "--fix"]).stdout;
    assert!(text.starts_with("fixed: nothing"), "{text}");
}
