//! Rules and devices that take packets past connection tracking or netfilter.

use std::process::Command;

use super::{NICS, found, json, report};
use crate::lab::backend::Backend;
use crate::lab::flows::{BASELINE, PATIENT};
use crate::lab::not_run::kernel_lacks;
use crate::lab::traffic::{Proto, ask};
use crate::lab::two_nics::{CLIENT, NODE, two_nics};

#[test]
fn requests_that_are_not_tracked() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let to = format!("{}:10250", NODE[1]).parse().expect("an address");
    let asks = |deadline| ask(&layout.client, Proto::Tcp, to, deadline);
    asks(PATIENT).expect("an answer");
    // Rules that do no harm. Those of NodeLocal DNS are not about an uplink's address; those of
    // Calico are about tunnels, whose packets need no reply through their NIC.
    node.ns.nft(
        "table ip site { chain raw { type filter hook prerouting priority raw;
           ip daddr 169.254.20.10 udp dport 53 notrack;
           udp dport 4789 notrack;
           udp dport 8472 jump encapsulated;
           iifname \"cni*\" notrack;
         }
         chain encapsulated { notrack; }
         chain called { iifname eth1 tcp dport 10250 notrack; }
         }",
    );
    assert_eq!(found(node, &[]), ["note no-agent"]);
    for rule in [
        "nft add rule ip site raw iifname eth1 tcp dport 10250 notrack",
        "nft insert rule ip site raw notrack",
        "nft add rule ip site raw jump called",
        "iptables-nft -t raw -A PREROUTING -i eth1 -p tcp --dport 10250 -j CT --notrack",
        "iptables-legacy -t raw -A PREROUTING -i eth1 -p tcp --dport 10250 -j CT --notrack",
    ] {
        let words: Vec<_> = rule.split(' ').collect();
        node.ns.exec(&words, "");
        let mut wanted = vec!["warning notrack", "note no-agent"];
        // One variant of iptables has symroute's rules, and the other has this one.
        let backend = Backend::of_run();
        if backend.is_iptables() && words[0].starts_with("iptables") && words[0] != backend.name() {
            wanted.insert(1, "note legacy-rules");
        }
        // The rule names no port, so it affects each request. symroute's rules let the request in.
        // Its reply belongs to no connection and leaves by main.
        let is_any = rule.ends_with("raw notrack");
        if is_any {
            wanted.insert(0, "problem reply-elsewhere");
        }
        assert_eq!(found(node, &[]), wanted, "{rule}");
        let (filtered, elsewhere) = (node.rp_filter_drops(), layout.router.dropped());
        asks(BASELINE).expect_err("it is not bound");
        assert_eq!(node.rp_filter_drops(), filtered, "the request is let in");
        assert!(layout.router.dropped() > elsewhere, "the reply left by eth0");
        let text = report(node, &[]).to_string();
        let which =
            if is_any { "TCP and UDP requests by eth0 and eth1" } else { "TCP requests by eth1" };
        assert!(text.contains(&format!("{which} from being tracked")), "{text}");
        let to = format!("{}:10250", NODE[1]);
        let ran = node.symroute(&["explain", "--from", CLIENT, "--to", &to, "--in", "eth1"]);
        assert!(ran.stdout.contains("a rule keeps it from being tracked"), "{}", ran.stdout);
        if words[0] == "nft" {
            node.ns.exec(&["nft", "flush", "chain", "ip", "site", "raw"], "");
        } else {
            node.ns.exec(&[words[0], "-t", "raw", "-F", "PREROUTING"], "");
        }
        assert_eq!(found(node, &[]), ["note no-agent"], "without {rule}");
    }
    println!("neighbour NOTRACK: found by name");
    asks(PATIENT).expect("an answer");
    node.down();
}

#[test]
fn a_flowtable_of_an_uplink() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let added = |name: &str, device: &str| {
        let ruleset = format!(
            "add table ip {name}; add flowtable ip {name} fast \
             {{ hook ingress priority 0; devices = {{ {device} }}; }}"
        );
        let inside = ["netns", "exec", node.ns.name(), "nft", &ruleset];
        Command::new("ip").args(inside).status().expect("run ip").success()
    };
    if !added("inside", "enipod0") {
        return kernel_lacks("flowtables");
    }
    assert_eq!(found(node, &[]), ["note no-agent"]);
    assert!(added("outside", "eth1"));
    assert_eq!(found(node, &[]), ["note flowtable", "note no-agent"]);
}

#[test]
fn ipvs_that_does_not_track() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    if !layout.node.ns.run(|| std::fs::exists("/proc/sys/net/ipv4/vs")).expect("a look at /proc") {
        return kernel_lacks("IPVS");
    }
    node.ns.sysctl("ipv4/vs/conntrack", "0");
    assert_eq!(found(node, &[]), ["note no-agent"], "there are no services");
    node.ns.exec(&["ipvsadm", "-A", "-t", "10.20.0.10:80", "-s", "rr"], "");
    assert_eq!(found(node, &[]), ["warning ipvs-conntrack", "note no-agent"]);
    node.ns.sysctl("ipv4/vs/conntrack", "1");
    assert_eq!(found(node, &[]), ["note no-agent"]);
}
