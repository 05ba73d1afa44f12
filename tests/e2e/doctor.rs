//! The findings of `doctor`: each test creates a condition on a node and expects exactly that
//! finding.

mod bpf;
mod bypass;
mod drops;
mod others;
mod tproxy;
mod udp;

use serde_json::{Value, json};

use crate::agent::plugin_object;
use crate::lab::agent::Agent;
use crate::lab::flows::{BASELINE, PATIENT};
use crate::lab::node::Node;
use crate::lab::traffic::{Proto, ask};
use crate::lab::two_nics::{NICS, NODE, two_nics};

/// Severity and id of each finding, in order. Asserts that the exit code fits.
fn found(node: &Node, more: &[&str]) -> Vec<String> {
    let report = report(node, more);
    let word = |finding: &Value, key: &str| finding[key].as_str().expect("text").to_owned();
    let findings = report["findings"].as_array().expect("findings").iter();
    findings.map(|one| format!("{} {}", word(one, "severity"), word(one, "id"))).collect()
}

fn report(node: &Node, more: &[&str]) -> Value {
    let config = plugin_object(node, &json!({ "uplinks": NICS }));
    let words = [&["doctor", "--for", "0s", "--json", "--config", &config], more].concat();
    let ran = node.symroute(&words);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let findings = report["findings"].as_array().expect("findings");
    let grave = findings.iter().any(|finding| finding["severity"] != "note");
    assert_eq!(ran.code, Some(if grave { 4 } else { 0 }), "{report:#}");
    for finding in findings {
        assert_ne!(finding["remedy"], "", "{finding}");
    }
    report
}

/// The node of the first field report. The finding names rule, table and router of the wrong path.
#[test]
fn a_node_without_symroute() {
    let layout = two_nics();
    let node = &layout.node;
    let wanted = ["problem rp-filter", "problem reply-elsewhere", "note not-in-force"];
    assert_eq!(found(node, &[]), wanted);
    node.ns.ip("addr add 10.21.0.11/24 dev eth1");
    assert_eq!(found(node, &[]), wanted, "another address of eth1 shows nothing new");
    let report = report(node, &[]);
    let text = report.to_string();
    for words in [
        "strict rp_filter drops requests at eth1",
        "the way back to 192.0.2.1 is eth0: rule 32766, table main, via 10.20.0.1",
        "replies to requests by eth1 leave by eth0",
        "symroute answers them by eth1",
    ] {
        assert!(text.contains(words), "{words:?} in {report:#}");
    }
    // The finding is true: the request gets no answer.
    let to = format!("{}:10250", NODE[1]).parse().expect("an address");
    assert!(ask(&layout.client, Proto::Tcp, to, BASELINE).is_err(), "the client gets no answer");
    let text = node.symroute(&["doctor", "--for", "0s"]).stdout;
    assert!(text.contains("[rp-filter]") && text.contains("remedy: "), "{text}");
}

#[test]
fn a_healthy_node_has_no_finding() {
    let layout = two_nics();
    let node = &layout.node;
    let config = plugin_object(node, &json!({ "uplinks": NICS }));
    let agent = Agent::ready(node, &["--config", &config]);
    assert_eq!(found(node, &[]), [""; 0]);
    let ran = node.symroute(&["doctor", "--for", "0s"]);
    assert!(ran.code == Some(0) && ran.stdout.starts_with("ok: "), "{}", ran.stdout);
    drop(agent);
    assert_eq!(found(node, &[]), ["note no-agent"]);
}

#[test]
fn what_other_programs_do_to_a_node() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let to = format!("{}:10250", NODE[1]).parse().expect("an address");
    let stray = "route add default via 10.20.0.1 dev eth0 table 150
                 rule add pref 100 from 10.21.0.10 lookup 150";
    for (damage, mend, wanted) in [
        (
            "rule del pref 402 fwmark 0x200/0xf00",
            "",
            &["problem rp-filter", "warning node-state", "note no-agent"][..],
        ),
        (
            stray,
            "rule del pref 100\nroute flush table 150",
            &["problem rp-filter", "warning advice", "note no-agent"],
        ),
    ] {
        node.ns.ip(damage);
        assert_eq!(found(node, &[]), wanted, "{damage}");
        assert!(ask(&layout.client, Proto::Tcp, to, BASELINE).is_err(), "{damage} breaks nothing");
        node.ns.ip(mend);
        node.up(&json!({ "uplinks": NICS }));
        assert_eq!(found(node, &[]), ["note no-agent"], "{damage} is mended");
        ask(&layout.client, Proto::Tcp, to, PATIENT).expect("an answer");
    }
    node.ns.sysctl("ipv4/conf/all/rp_filter", "0");
    node.ns.sysctl("ipv4/conf/eth1/rp_filter", "2");
    node.up(&json!({ "uplinks": NICS }));
    assert_eq!(found(node, &[]), ["note loose-rp-filter", "note no-agent"]);
    // The kernel uses the larger value, so setting that of eth1 alone would change nothing.
    node.ns.sysctl("ipv4/conf/all/rp_filter", "2");
    node.ns.sysctl("ipv4/conf/eth0/rp_filter", "1");
    node.ns.sysctl("ipv4/conf/eth1/rp_filter", "1");
    node.up(&json!({ "uplinks": NICS }));
    let loose = "note loose-rp-filter";
    assert_eq!(found(node, &[]), [loose, loose, "note no-agent"]);
    let text = report(node, &[]).to_string();
    assert!(text.contains("sysctl -w net.ipv4.conf.all.rp_filter=1\""), "{text}");
    node.ns.sysctl("ipv4/conf/all/rp_filter", "1");
    node.up(&json!({ "uplinks": NICS }));
    assert_eq!(found(node, &[]), ["note no-agent"], "the remedy");
    node.down();
}

#[test]
fn settings_that_can_not_work() {
    let layout = two_nics();
    let wrong = plugin_object(&layout.node, &json!({"uplinks": ["wan*"]}));
    let ran = layout.node.symroute(&["doctor", "--for", "0s", "--json", "--config", &wrong]);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    assert_eq!(report["findings"][0]["id"], "settings-refused", "{report:#}");
    assert!(report["findings"][0]["what"].to_string().contains("no interface matches"));
}
