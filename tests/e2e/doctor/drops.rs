//! Packets that the reverse path filter drops while `doctor` watches, and their senders.

use std::thread;

use super::{Value, found, report};
use crate::lab::flows::{BASELINE, PATIENT};
use crate::lab::traffic::{Proto, ask};
use crate::lab::two_nics::{CLIENT, NODE, two_nics};

/// The evidence of the first finding with this id.
fn evidence(report: &Value, id: &str) -> Option<String> {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().find(|finding| finding["id"] == id).map(|one| one["evidence"].to_string())
}

/// `doctor` counts drops while the client asks all the time.
#[test]
fn the_source_is_named() {
    let layout = two_nics();
    let node = &layout.node;
    let to = format!("{}:10250", NODE[1]).parse().expect("an address");
    let report = thread::scope(|scope| {
        let client = scope.spawn(|| ask(&layout.client, Proto::Tcp, to, 2 * BASELINE));
        let report = report(node, &["--for", "2s"]);
        assert!(client.join().expect("no panic").is_err());
        report
    });
    let evidence = evidence(&report, "rp-filter-drops").expect("the drops");
    for words in [
        "TcpExtIPReversePathFilter grew by".to_owned(),
        format!("seen meanwhile: {CLIENT} by eth1, "),
        format!("for instance to {}", NODE[1]),
    ] {
        assert!(evidence.contains(&words), "{words:?} in {report:#}");
    }
    assert!(!evidence.contains("by eth0"), "nothing is lost there: {report:#}");
}

/// `doctor` also sees requests that are answered; these are not a finding.
#[test]
fn a_busy_node_has_no_drops() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&super::json!({ "uplinks": super::NICS }));
    thread::scope(|scope| {
        let looking = scope.spawn(|| found(node, &["--for", "2s"]));
        for address in NODE.into_iter().cycle() {
            let to = format!("{address}:10250").parse().expect("an address");
            ask(&layout.client, Proto::Tcp, to, PATIENT).expect("an answer");
            if looking.is_finished() {
                break;
            }
        }
        assert_eq!(looking.join().expect("no panic"), ["note no-agent"]);
    });
}
