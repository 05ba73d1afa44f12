//! The lab's own proofs have to be able to fail.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flows::{Flow, PATIENT, assert_all_work};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::sweep;
use crate::lab::traffic::{Connection, Proto, ask};
use crate::lab::two_nics::{CLIENT6, NICS, NODE, NODE6, two_nics};

/// IPv6 has no `rp_filter`: with the source check off, the reply gets through on the wrong NIC.
#[test]
#[should_panic(expected = "came by {\"eth1\"}, left by {\"eth0\"}")]
fn capture_notices_a_reply_on_another_nic() {
    let layout = two_nics();
    layout.router.check_sources(&[]);
    let capture = Capture::start(&layout.router.ns);
    let (to, answer) = (format!("[{}]:10250", NODE6[1]), format!("host {CLIENT6}"));
    assert_all_work(&[Flow::new("host on eth1", &layout.client, Proto::Tcp, &to, &answer)]);
    assert_replies_symmetric(&capture.stop(), &NICS, true);
}

/// The node changes after the request, so `explain` describes something else than what happened.
#[test]
#[should_panic(expected = "explain is wrong")]
fn a_wrong_verdict_is_noticed() {
    let layout = two_nics();
    layout.node.up(&json!({ "uplinks": NICS }));
    let to = format!("{}:10250", NODE[1]).parse().expect("an address");
    sweep::begin_recording();
    ask(&layout.client, Proto::Tcp, to, PATIENT).expect("an answer");
    layout.node.ns.ip("rule del pref 402 fwmark 0x200/0xf00");
    sweep::assert_explain_is_right(&[layout.flow_to_host()], &[]);
}

#[test]
#[should_panic(expected = "the node is not as it was before")]
fn snapshot_notices_a_leftover() {
    let layout = two_nics();
    let before = Snapshot::take(&layout.node);
    layout.node.ns.sysctl("ipv4/conf/eth1/src_valid_mark", "1");
    before.assert_unchanged(&Snapshot::take(&layout.node));
}

/// Each kind of rule, chain and set that a program may leave behind. nft does not show what a `set`
/// match says.
#[test]
fn snapshot_notices_what_iptables_and_ipset_leave() {
    let node = Node::new("node");
    node.legacy.store(false, Ordering::Relaxed);
    let exec = |command: &str| node.ns.exec(&command.split(' ').collect::<Vec<_>>(), "");
    let first = Snapshot::take(&node);
    assert_eq!(first.difference(&Snapshot::take(&node)), "", "a snapshot changes nothing");
    for command in [
        "ipset create probe hash:ip",
        "ipset create other hash:ip",
        "ipset add probe 192.0.2.1",
        "iptables-nft -t mangle -N probe",
        "ip6tables-nft -t nat -N probe",
        "iptables-nft -t mangle -A probe -m set --match-set probe dst",
        "iptables-nft -t mangle -R probe 1 -m set --match-set other dst",
        "iptables-legacy -t mangle -N probe",
        "ip6tables-legacy -t raw -N probe",
        "iptables-legacy -t mangle -A probe -m set --match-set probe dst",
        "ip6tables-legacy -t filter -P FORWARD DROP",
    ] {
        let before = Snapshot::take(&node);
        exec(command);
        let now = Snapshot::take(&node);
        assert_ne!(before.difference(&now), "", "{command}");
        // Also where no program is to blame for an empty table.
        node.legacy.store(true, Ordering::Relaxed);
        assert_ne!(before.difference(&Snapshot::take(&node)), "", "{command}, after legacy");
        node.legacy.store(false, Ordering::Relaxed);
    }
}

/// The kernel creates a table of iptables-legacy when a program first reads it, and keeps it.
#[test]
fn snapshot_lets_an_empty_table_of_legacy_pass_only_after_legacy() {
    let node = Node::new("node");
    node.legacy.store(false, Ordering::Relaxed);
    let before = Snapshot::take(&node);
    node.ns.exec(&["iptables-legacy", "-t", "mangle", "-S"], "");
    assert!(before.difference(&Snapshot::take(&node)).contains("*mangle"), "nobody asked for it");
    node.legacy.store(true, Ordering::Relaxed);
    assert_eq!(before.difference(&Snapshot::take(&node)), "");
}

#[test]
fn connection_answers_twice() {
    let layout = two_nics();
    let host: SocketAddr = "10.20.0.10:10250".parse().expect("an address and port");
    let mut connection =
        Connection::open(&layout.client, host, Duration::from_secs(8)).expect("connect");
    let first = connection.ask().expect("a first answer");
    assert_eq!(first.who, "host");
    assert_eq!(connection.ask().expect("a second answer"), first);
}

#[test]
fn namespace_goes_with_its_value() {
    let netns = Netns::new("short");
    let path = netns.path();
    assert!(Path::new(&path).exists());
    drop(netns);
    assert!(!Path::new(&path).exists());
}
