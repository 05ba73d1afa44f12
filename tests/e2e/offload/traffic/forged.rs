//! Forged packets of an offloaded connection on other interfaces, and packets that filters of other
//! programs drop.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::lab::fates::{Fate, Fates, Port};
use crate::lab::flowtable::{Forwarded, is_offloaded, kernel_has_flowtables};
use crate::lab::forge::{self, ACK, RST};
use crate::lab::netns::Netns;
use crate::lab::talk::Talk;
use crate::lab::traffic::{Connection, Proto};
use crate::lab::two_nics::{NICS, POD, POD6, TwoNics, two_nics};

use super::super::{assert_by_eth1, settings};
use super::{assert_all_bypass_rules, begin, offload_all};

const POD1: [&str; 2] = [POD[1], POD6[1]];
/// How long a connection attempt may take that is expected to fail.
const SHORT: Duration = Duration::from_millis(400);

/// Counts the forged packets that the node forwards to this namespace, even those that bypass the
/// node's rules.
fn count_arrivals(ns: &Netns) {
    let forwarded = forge::TTL - 1;
    ns.nft(&format!(
        "table inet arrivals {{
            counter forged {{ }}
            chain arrive {{
                type filter hook prerouting priority -450; policy accept;
                ip ttl {forwarded} counter name forged
                ip6 hoplimit {forwarded} counter name forged
            }}
        }}"
    ));
}

/// Forged packets of the connection; over TCP they have this flag.
fn forged(proto: Proto, from: SocketAddr, to: SocketAddr, flag: u8) -> Vec<Vec<u8>> {
    match proto {
        Proto::Tcp => forge::all_kinds_of_tcp(from, to, flag),
        Proto::Udp => vec![forge::udp(from, to, b"forged")],
    }
}

/// The interfaces from which the node gets packets: both NICs, and the veth of another pod.
fn ports(layout: &TwoNics) -> Vec<Port<'_>> {
    let mut ports = Vec::new();
    for name in NICS {
        let mac = layout.router.peer_mac(name).to_owned();
        ports.push(Port { ns: &layout.router.ns, name, mac });
    }
    let mac = layout.node.ns.mac("enipod0");
    ports.push(Port { ns: &layout.pods[0].ns, name: "eth0", mac });
    ports
}

/// Outcome of requests and replies on each other interface: what was sent, the fates, how many
/// reached the pod, and how many left the node through a NIC.
type ForgedFates = Vec<(String, Vec<Fate>, u64, u64)>;

fn fates_of_forged(offload: bool) -> ForgedFates {
    let layout = two_nics();
    let (node, pod) = (&layout.node, &layout.pods[1].ns);
    count_arrivals(pod);
    count_arrivals(&layout.router.ns);
    node.up(&json!({"uplinks": NICS, "offload": offload}));
    // The kernel treats connections like this once it has offloaded them.
    node.ns.sysctl("netfilter/nf_conntrack_tcp_be_liberal", "1");
    // A busy machine may need long for this test.
    for what in [
        "nf_conntrack_udp_timeout",
        "nf_conntrack_udp_timeout_stream",
        "nf_flowtable_udp_timeout",
        "nf_flowtable_tcp_timeout",
    ] {
        node.ns.sysctl(&format!("netfilter/{what}"), "600");
    }
    let mut talks = begin(&layout.client, pod, &POD1);
    if offload {
        offload_all(node, &mut talks);
    }
    let fates = Fates::new(&layout.router, node);
    let mut became = Vec::new();
    for (talk, proto) in talks.iter_mut().zip([Proto::Tcp, Proto::Tcp, Proto::Udp, Proto::Udp]) {
        for (at, port) in ports(&layout).iter().enumerate() {
            assert_eq!(is_offloaded(&node.ns, talk), offload);
            let (client, server) = (talk.client(), talk.server());
            let by_its_own = at == 1;
            let calls = [("request", client, server), ("reply", server, client)];
            for (kind, from, to) in calls.into_iter().skip(usize::from(by_its_own)) {
                let packets = forged(proto, from, to, ACK);
                let arrived =
                    || [pod, &layout.router.ns].map(|ns| ns.counter("arrivals", "forged"));
                let before = arrived();
                let fates = fates.send(port, &NICS, &packets);
                let now = arrived();
                let what = format!("{kind} {proto:?} IPv4 {} by port {at}", client.is_ipv4());
                became.push((what, fates, now[0] - before[0], now[1] - before[1]));
            }
        }
        talk.assert_goes_on("forged packets");
    }
    if offload {
        offload_all(node, &mut talks);
        assert_by_eth1(&layout, &mut talks, "after forged packets");
    }
    became
}

#[test]
fn by_another_interface_they_are_treated_as_without() {
    if !kernel_has_flowtables() {
        return;
    }
    let (without, with) = (fates_of_forged(false), fates_of_forged(true));
    for (without, with) in without.iter().zip(&with) {
        assert_eq!(with, without, "with offload, and without");
    }
    // Strict rp_filter drops a forged reply on a NIC.
    let replies =
        with.iter().filter(|one| one.0.starts_with("reply") && one.0.contains("IPv4 true"));
    let (mut count, is_nic) = (0, |what: &str| !what.ends_with("port 2"));
    for (what, fates, to_pod, out) in replies.filter(|one| is_nic(&one.0)) {
        assert!(fates.iter().all(|fate| *fate == Fate::Dropped), "{what}: {fates:?}");
        assert_eq!((*to_pod, *out), (0, 0), "{what}");
        count += 1;
    }
    assert_eq!(count, 4, "replies by each NIC over each protocol");
}

/// Blind RSTs take a connection out of the flowtable, but it goes on through its uplink.
#[test]
fn it_outlives_blind_rsts() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    layout.node.up(&settings());
    let mut talks = begin(&layout.client, &layout.pods[1].ns, &POD1);
    talks.truncate(2);
    offload_all(&layout.node, &mut talks);
    let fates = Fates::new(&layout.router, &layout.node);
    for port in &ports(&layout) {
        for talk in &talks {
            fates.send(port, &NICS, &forged(Proto::Tcp, talk.client(), talk.server(), RST));
        }
        assert_by_eth1(&layout, &mut talks, "blind RSTs");
    }
    offload_all(&layout.node, &mut talks);
}

/// Adds a filter in forward that drops the client's requests of connections that have already
/// begun.
fn drop_requests(layout: &TwoNics, priority: &str, talks: &[Talk]) {
    let mut rules = String::new();
    for talk in talks {
        let (client, family) = (talk.client(), if talk.client().is_ipv4() { "ip" } else { "ip6" });
        let (ip, port) = (client.ip(), client.port());
        let _ = writeln!(rules, "{family} saddr {ip} udp sport {port} counter name dropped drop");
    }
    layout.node.ns.nft(&format!(
        "table inet guard {{
            counter dropped {{ }}
            chain forward {{
                type filter hook forward priority {priority}; policy accept;
                {rules}
            }}
        }}"
    ));
}

fn dropped_by_a_filter(priority: &str) {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let (node, pod) = (&layout.node, &layout.pods[1].ns);
    let forwarded = Forwarded::watch(&node.ns);
    node.up(&settings());
    // The UDP connections are not assured yet.
    let mut guarded = begin(&layout.client, pod, &POD1).split_off(2);
    drop_requests(&layout, priority, &guarded);
    let mut control = begin(&layout.client, pod, &POD1);
    while !control.iter().all(|talk| is_offloaded(&node.ns, talk)) {
        for talk in &mut guarded {
            // The server's word arrives, and the client's does not.
            talk.reply().expect("a reply");
            talk.say().expect("a word");
        }
        for talk in &mut control {
            talk.assert_goes_on("a word");
        }
    }
    assert_all_bypass_rules(&forwarded, &mut control, "what no filter drops");
    let dropped = node.ns.counter("guard", "dropped");
    assert!(dropped >= 2, "{dropped} dropped");
    for talk in &guarded {
        assert!(!is_offloaded(&node.ns, talk), "what a filter drops is offloaded");
    }
    node.down();
}

#[test]
fn what_a_filter_drops_stays_dropped() {
    dropped_by_a_filter("0");
}

#[test]
fn what_a_late_filter_drops_stays_dropped() {
    dropped_by_a_filter("100");
}

/// Where a filter drops the client's packets from the start, no TCP connection begins.
#[test]
fn a_filter_by_address_keeps_tcp_out() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    layout.node.ns.nft(
        "table inet guard {
            chain forward {
                type filter hook forward priority 100; policy accept;
                ip saddr 203.0.113.9 drop
                ip6 saddr 2001:db8:9::9 drop
            }
        }",
    );
    layout.node.up(&settings());
    for to in ["10.21.0.50:8080", "[2001:db8:21::50]:8080"] {
        let to = to.parse().expect("an address and port");
        assert!(Connection::open(&layout.client, to, SHORT).is_err(), "{to} is reached");
    }
    let known = layout.node.ns.exec(&["conntrack", "-L"], "");
    assert!(!known.contains("[OFFLOAD]"), "{known}");
    layout.node.down();
}
