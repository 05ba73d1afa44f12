//! The lab's own proofs have to be able to fail.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flows::{Flow, assert_all_work};
use crate::lab::netns::Netns;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Connection, Proto};
use crate::lab::two_nics::{CLIENT6, NICS, NODE6, two_nics};

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

#[test]
#[should_panic(expected = "the node is not as it was before")]
fn snapshot_notices_a_leftover() {
    let layout = two_nics();
    let before = Snapshot::take(&layout.node);
    layout.node.ns.sysctl("ipv4/conf/eth1/src_valid_mark", "1");
    before.assert_unchanged(&Snapshot::take(&layout.node));
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
