//! `symroutectl marks` and the findings of `doctor` about marks: rules of other programs are loaded
//! on a node, and exactly those that clash with symroute's are named.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::agent::plugin_object;
use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::node::Node;
use crate::lab::not_run::kernel_lacks;
use crate::lab::plugin::Call;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{CLIENT, NICS, two_nics};

/// The JSON report of `marks`, whose exit code has to fit.
fn marks(node: &Node) -> Value {
    let ran = node.symroute(&["marks", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let clashes = report["clashes"].as_array().expect("clashes");
    assert_eq!(ran.code, Some(if clashes.is_empty() { 0 } else { 4 }), "{report:#}");
    report
}

/// The number of clashes in a report.
pub(crate) fn clashes(node: &Node) -> usize {
    marks(node)["clashes"].as_array().expect("clashes").len()
}

/// The findings of `doctor` about marks: severity and text.
fn findings(node: &Node) -> Vec<(String, String)> {
    let config = plugin_object(node, &json!({ "uplinks": NICS }));
    let ran = node.symroute(&["doctor", "--for", "0s", "--json", "--config", &config]);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let word = |finding: &Value, key: &str| finding[key].as_str().expect("text").to_owned();
    let findings = report["findings"].as_array().expect("findings").iter();
    let about = findings.filter(|one| word(one, "id").starts_with("mark-"));
    about.map(|one| (word(one, "severity"), word(one, "what"))).collect()
}

/// Asserts that `doctor` finds exactly these: severity and a part of the text.
#[track_caller]
fn assert_found(node: &Node, wanted: &[(&str, &str)]) {
    let found = findings(node);
    let fits = found.len() == wanted.len()
        && wanted.iter().all(|(severity, words)| {
            found.iter().any(|(s, what)| s == severity && what.contains(words))
        });
    assert!(fits, "wanted {wanted:#?}, found {found:#?}\n{:#}", marks(node));
    let of_clashes = found.iter().filter(|(_, what)| !what.starts_with("cannot see")).count();
    assert_eq!(clashes(node), of_clashes, "marks and doctor say the same");
}

/// Whether a row of the report says this.
fn has_row(report: &Value, owner: &str, mark: &str, does: &str, bits: &str) -> bool {
    report["marks"].as_array().expect("rows").iter().any(|row| {
        row["owner"] == owner && row["mark"] == mark && row["does"] == does && row["bits"] == bits
    })
}

/// Loads the iptables chains that other programs have today, in both families, with the run's variant.
fn neighbours(node: &Node) {
    let by = Backend::of_run();
    for line in [
        // AWS VPC CNI, for connections that come in by the first NIC.
        "-t mangle -A PREROUTING -i eth0 -m comment --comment AWS,primary -j CONNMARK --set-xmark 0x80/0x80",
        "-t mangle -A PREROUTING -i eni+ -m comment --comment AWS,primary -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
        // kube-proxy
        "-t nat -N KUBE-MARK-MASQ",
        "-t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-t nat -N KUBE-POSTROUTING",
        "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-t nat -A POSTROUTING -j KUBE-POSTROUTING",
        "-t filter -N KUBE-FIREWALL",
        "-t filter -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
        "-t filter -A INPUT -j KUBE-FIREWALL",
        // Calico
        "-t mangle -N cali-PREROUTING",
        "-t mangle -A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT",
        "-t filter -N cali-FORWARD",
        "-t filter -A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000",
        "-t filter -A FORWARD -j cali-FORWARD",
        // Tailscale
        "-t mangle -N ts-forward",
        "-t mangle -A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000",
        "-t mangle -A FORWARD -j ts-forward",
    ] {
        node.ns.iptables(by, line);
    }
    node.ns.ip("rule add pref 5210 fwmark 0x80000/0xff0000 lookup main");
    node.ns.nft(
        "table ip kube-proxy {
            chain mark-for-masquerade { meta mark set mark or 0x4000; }
            chain output { type nat hook output priority -100; ip daddr 10.96.0.1 jump mark-for-masquerade; }
        }",
    );
}

#[test]
fn programs_that_keep_to_their_bits_are_listed_and_no_clash() {
    let layout = two_nics();
    let node = &layout.node;
    neighbours(node);
    let flows = [layout.flow_to_host()];
    assert_only_these_fail(&flows, &["host on eth1"]);
    assert_found(node, &[]);
    node.up(&json!({ "uplinks": NICS }));
    assert_all_work(&flows);
    assert_found(node, &[]);
    let report = marks(node);
    for (owner, mark, does, bits) in [
        ("AWS VPC CNI", "connection", "sets", "0x80"),
        ("AWS VPC CNI", "packet", "restores", "0x80"),
        ("kube-proxy", "packet", "sets", "0x4000"),
        ("kube-proxy", "packet", "compares-masked", "0x4000"),
        ("kubelet", "packet", "compares-masked", "0x8000"),
        ("Calico", "packet", "clears", "0xe0000"),
        ("Tailscale", "packet", "sets", "0xff0000"),
        ("Tailscale", "packet", "compares-masked", "0xff0000"),
        ("symroute", "packet", "compares-masked", "0xf00"),
    ] {
        assert!(has_row(&report, owner, mark, does, bits), "{owner} {does} {bits}: {report:#}");
    }
    let text = node.symroute(&["marks"]).stdout;
    assert!(text.starts_with("OWNER") && text.contains("\nok: nothing clashes"), "{text}");
    node.down();
}

/// symroute alone, with each backend: `marks` recognises its rules.
#[test]
fn a_healthy_node_has_no_clash() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    assert_found(node, &[]);
    let report = marks(node);
    for row in report["marks"].as_array().expect("rows") {
        assert_eq!(row["ours"], true, "{row:#}");
    }
    assert!(has_row(&report, "symroute", "packet", "sets", "0x1f00"), "{report:#}");
    assert_eq!((&report["inForce"], &report["markMask"]), (&json!(true), &json!("0x1f00")));
    node.down();
    // symroute's rules are gone.
    assert_eq!(marks(node)["marks"], json!([]));
}

/// A program that writes the whole mark before the routing decision breaks the reply's way. The same
/// rule is harmless before symroute's, or if it keeps the other bits.
#[test]
fn a_whole_mark_between_symroute_and_the_routing_decision() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let settings = json!({ "uplinks": NICS });
    node.add(&settings, &pod);
    let flows = [layout.flow_to_pod(1, "pod101 203.0.113.9")];
    assert_all_work(&flows);
    let table = |priority: &str, rule: &str| {
        node.ns.nft(&format!(
            "table inet vpn
             delete table inet vpn
             table inet vpn {{
                chain pre {{ type filter hook prerouting priority {priority}; jump later; }}
                chain later {{ {rule}; }}
             }}"
        ));
    };
    let overwrites = "table vpn overwrites the whole packet mark";
    table("-70", "meta mark set 0x20000");
    assert_found(node, &[("problem", overwrites)]);
    assert_only_these_fail(&flows, &["pod 10.21.0.101:8080"]);
    for (priority, rule) in [
        ("-70", "meta mark set meta mark & 0xfffdffff | 0x20000"),
        ("-290", "meta mark set 0x20000"),
    ] {
        table(priority, rule);
        assert_found(node, &[]);
        assert_all_work(&flows);
    }
    // A value with bits of symroute's.
    table("-290", "meta mark set 0x1bd00");
    assert_found(node, &[("warning", "table vpn gives packets a mark that has bits 0x1d00")]);
    assert_all_work(&flows);
    // The mark of the second uplink: the first pod's packets leave by the wrong NIC.
    let to = format!("{CLIENT}:8080");
    let sent = [Flow::new("pod0 sends", &layout.pods[0].ns, Proto::Tcp, &to, "client 10.20.0.50")];
    assert_all_work(&sent);
    table("-290", "meta mark set 0x20200");
    assert_found(node, &[("problem", "table vpn gives packets a mark that has bits 0x200")]);
    assert_only_these_fail(&sent, &["pod0 sends"]);
    node.ns.nft("delete table inet vpn");
    node.del(&settings, &pod);
}

/// A program that overwrites the conntrack mark erases the NIC that replies leave by.
#[test]
fn a_whole_connection_mark() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let settings = json!({ "uplinks": NICS });
    node.add(&settings, &pod);
    let flows = [layout.flow_to_pod(1, "pod101 203.0.113.9")];
    let table = |rule: &str| {
        node.ns.nft(&format!(
            "table ip netbird
             delete table ip netbird
             table ip netbird {{
                chain post {{ type filter hook postrouting priority 110; {rule}; }}
             }}"
        ));
    };
    table("ct mark set 0x1bd00");
    assert_found(node, &[("problem", "NetBird overwrites the whole connection mark")]);
    let explain = || {
        let words = ["explain", "--from", CLIENT, "--to", "10.21.0.101:8080", "--in", "eth1"];
        node.symroute(&words).stdout
    };
    let text = explain();
    assert!(text.contains("symroute's mark is not on each packet"), "{text}");
    assert_only_these_fail(&flows, &["pod 10.21.0.101:8080"]);
    // By then symroute has taken its mark off the packet.
    table("ct mark set meta mark");
    let saves = ("warning", "NetBird saves bits 0x1f00 of the packet mark over symroute's");
    assert_found(node, &[saves]);
    assert_only_these_fail(&flows, &["pod 10.21.0.101:8080"]);
    table("ct mark set ct mark & 0xffffff7f | 0x80");
    assert_found(node, &[]);
    let text = explain();
    assert!(!text.contains("symroute's mark is not on each packet"), "{text}");
    assert_all_work(&flows);
    node.ns.nft("delete table ip netbird");
    node.del(&settings, &pod);
}

/// AWS VPC CNI 1.23 writes the whole mark of first packets at -90. That is before symroute's chain of
/// nftables, and after the one of iptables, where it erases the evidence for `rp_filter`.
#[test]
fn the_rules_of_aws_vpc_cni_1_23() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let settings = json!({ "uplinks": NICS });
    node.add(&settings, &pod);
    let flows = [layout.flow_to_pod(1, "pod101 203.0.113.9")];
    assert_all_work(&flows);
    node.ns.nft(
        "table ip aws-cni {
            chain snat-mark { ip daddr 10.0.0.0/8 return; ct mark set ct mark | 0x80; }
            chain nat-prerouting {
                type nat hook prerouting priority -90;
                fib daddr type local return
                iifname \"eni*\" jump snat-mark
                meta mark set ct mark & 0x80
            }
        }",
    );
    if Backend::of_run().is_iptables() {
        assert_found(node, &[("warning", "AWS VPC CNI overwrites the whole packet mark")]);
        assert_only_these_fail(&flows, &["pod 10.21.0.101:8080"]);
    } else {
        assert_found(node, &[]);
        assert_all_work(&flows);
    }
    let report = marks(node);
    for (mark, does, bits) in [
        ("connection", "sets", "0x80"),
        ("packet", "restores", "0x80"),
        ("packet", "overwrites", "0xffffffff"),
    ] {
        assert!(has_row(&report, "AWS VPC CNI", mark, does, bits), "{does}: {report:#}");
    }
    node.ns.nft("delete table ip aws-cni");
    node.del(&settings, &pod);
}

/// The other kinds of clash, by iptables of the run's kind and by ip rules.
#[test]
fn the_other_clashes() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let by = Backend::of_run();
    let owner = "chain FORWARD";
    for (rule, severity, words) in [
        ("MARK --set-xmark 0x100/0x100", "problem", "writes bits 0x100 of the packet mark"),
        ("MARK --set-xmark 0x0/0xff00", "problem", "writes bits 0x1f00 of the packet mark"),
        ("CONNMARK --set-xmark 0x0/0x1000", "problem", "writes bits 0x1000 of the connection mark"),
        ("CONNMARK --save-mark", "warning", "saves bits 0x1f00 of the packet mark over"),
        ("CONNMARK --restore-mark", "warning", "restores bits 0x1f00 of the packet mark"),
        ("ACCEPT -m mark --mark 0x300/0xf00", "warning", "looks at bits 0xf00 of the packet mark"),
        ("ACCEPT -m mark --mark 0x1", "warning", "compares the whole packet mark"),
        ("ACCEPT -m connmark --mark 0x1", "warning", "compares the whole connection mark"),
    ] {
        let (add, delete) =
            (format!("-t mangle -A FORWARD -j {rule}"), format!("-t mangle -D FORWARD -j {rule}"));
        node.ns.iptables(by, &add);
        assert_found(node, &[(severity, &format!("{owner} {words}"))]);
        node.ns.iptables(by, &delete);
    }
    assert_found(node, &[]);
    let exact = ("warning", "an ip rule compares the whole packet mark");
    for (rule, wanted) in [
        ("fwmark 0x1 lookup 77", &[exact][..]),
        ("not fwmark 0xca6c lookup 77", &[]),
        ("fwmark 0x1/0xff lookup 77", &[]),
    ] {
        node.ns.ip(&format!("rule add pref 32000 {rule}"));
        assert_found(node, wanted);
        node.ns.ip("rule del pref 32000");
    }
    let text = node.symroute(&["doctor", "--for", "0s"]).stdout;
    assert!(!text.contains("mark-clash"), "{text}");
    node.down();
}

/// `doctor` sees rules of iptables-legacy beside those of nftables. Without the program iptables-legacy
/// it says that it can't.
#[test]
fn rules_of_iptables_legacy() {
    let layout = two_nics();
    let node = &layout.node;
    let legacy = Backend::IptablesLegacy;
    node.ns.iptables(legacy, "-t mangle -A POSTROUTING -j CONNMARK --set-mark 7");
    assert_found(node, &[("problem", "chain POSTROUTING overwrites the whole connection mark")]);
    let report = marks(node);
    assert_eq!(report["marks"][0]["place"]["kind"], "iptables-legacy", "{report:#}");
    let hook = json!([{"point": "postrouting", "priority": -150}]);
    assert_eq!(report["marks"][0]["hooks"], hook, "{report:#}");
    let hidden =
        "mount -t tmpfs none /usr/sbin && mount -t tmpfs none /usr/local/sbin && exec \"$@\"";
    let call = Call::tool(&["marks", "--json"]);
    let ran = node.call_under(&["sh", "-c", hidden, "sh"], &call);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let unseen = report["unseen"].as_array().expect("a list");
    assert_eq!(unseen.len(), 2, "{report:#}");
    assert!(
        unseen[0]["what"].to_string().contains("iptables-legacy (tables mangle)"),
        "{report:#}"
    );
    let config = plugin_object(node, &json!({"uplinks": NICS, "backend": "nftables"}));
    let call = Call::tool(&["doctor", "--for", "0s", "--json", "--config", &config]);
    let ran = node.call_under(&["sh", "-c", hidden, "sh"], &call);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let of_marks = |finding: &&Value| finding["id"] == "mark-unseen";
    let findings = report["findings"].as_array().expect("findings");
    assert_eq!(findings.iter().filter(of_marks).count(), 2, "{report:#}");
    assert!(fs::exists("/usr/sbin/iptables-legacy-save").expect("a look"), "hidden in there only");
}

/// Users of marks other than rules: `IPsec` policies, BPF programs of tc, and sysctls.
#[test]
fn users_of_marks_that_are_no_rules() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let policy = |mark: &str, verb: &str| {
        let prefixes = "src 10.99.0.0/24 dst 10.98.0.0/24";
        let action = if verb == "add" { "action block" } else { "" };
        node.ns.ip(&format!("xfrm policy {verb} dir out {prefixes} {mark} {action}"));
    };
    for (mark, wanted) in [
        ("mark 0x20000 mask 0x30000", &[][..]),
        ("mark 0x100 mask 0xf00", &[("warning", "IPsec looks at bits 0xf00 of the packet mark")]),
        ("mark 0x1 mask 0xffffffff", &[("warning", "IPsec compares the whole packet mark")]),
    ] {
        policy(mark, "add");
        assert_found(node, wanted);
        let report = marks(node);
        let rows = report["marks"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["place"]["kind"] == "xfrm").expect("the policy");
        assert_eq!(row["place"]["object"], "policy out 10.99.0.0/24 -> 10.98.0.0/24");
        policy(mark, "delete");
    }
    for words in ["qdisc add dev eth1 clsact", "filter add dev eth1 ingress bpf bytecode 1,6_0_0_0"]
    {
        let words: Vec<_> = words.split(' ').map(|word| word.replace('_', " ")).collect();
        let argv: Vec<&str> =
            std::iter::once("tc").chain(words.iter().map(String::as_str)).collect();
        node.ns.exec(&argv, "");
    }
    node.ns.sysctl("ipv4/fwmark_reflect", "1");
    node.ns.sysctl("ipv4/conf/lo/src_valid_mark", "1");
    assert_found(node, &[]);
    let report = marks(node);
    for (owner, does) in
        [("tc on eth1", "unknown"), ("sysctl fwmark_reflect", "copies"), ("symroute", "looks-up")]
    {
        assert!(has_row(&report, owner, "packet", does, "0xffffffff"), "{owner}: {report:#}");
    }
    // symroute has set it on the uplinks only.
    assert!(
        has_row(&report, "sysctl src_valid_mark", "packet", "looks-up", "0xffffffff"),
        "{report:#}"
    );
    node.down();
}

/// The mark of a `WireGuard` device is on its outer packets.
#[test]
fn the_mark_of_a_wireguard_device() {
    let layout = two_nics();
    let node = &layout.node;
    let inside = ["ip", "netns", "exec", node.ns.name()];
    let run = |words: &str| {
        let argv: Vec<&str> = inside.iter().copied().chain(words.split(' ')).collect();
        let status = Command::new(argv[0]).args(&argv[1..]).output().expect("start ip").status;
        status.success()
    };
    if !run("ip link add wg0 type wireguard") {
        return kernel_lacks("WireGuard");
    }
    assert!(run("wg set wg0 fwmark 0x20000"));
    node.up(&json!({ "uplinks": NICS }));
    assert_found(node, &[]);
    assert!(has_row(&marks(node), "WireGuard wg0", "packet", "overwrites", "0xffffffff"));
    assert!(run("wg set wg0 fwmark 0x200"));
    assert_found(node, &[("problem", "WireGuard wg0 gives packets a mark that has bits 0x200")]);
    node.down();
}
