//! Packets that a host outside sends into connections of other hosts. It forges replies of a local
//! pod, answers to masqueraded queries, and ICMP errors of a host inside.
//!
//! ```text
//!            client 203.0.113.9
//!                    |
//!  +-----------------+-----------------+
//!  |              router               |   sends what is forged, by either NIC
//!  +-------+-------------------+-------+
//!        eth0                eth1
//!  +-------+-------------------+-------+
//!  |     node: strict rp_filter        |
//!  +-------+-------------------+-------+
//!        pod0                pod1
//! ```
//!
//! Without the plugin, strict `rp_filter` drops all of these packets over IPv4. IPv6 has no such
//! filter: there the plugin must not let in more than a node without it.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::lab::forge::{self, ACK, Complaint, RST};
use crate::lab::netns::Netns;
use crate::lab::talk::{Listening, Talk};
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{CLIENT, CLIENT6, NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};
use crate::lab::wire::{Seen, Wire};

const DROPPED: Seen = Seen { passed: 0, strict: 1 };
const PASSED: Seen = Seen { passed: 1, strict: 0 };

fn settings() -> Value {
    json!({"uplinks": NICS})
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// Runs a test without and with the plugin.
fn without_and_with_plugin(test: impl Fn(bool, &TwoNics)) {
    for plugin in [false, true] {
        let layout = two_nics();
        if plugin {
            layout.pods.iter().for_each(|pod| layout.node.add(&settings(), pod));
        }
        test(plugin, &layout);
    }
}

/// Asserts that the node dropped an IPv4 packet. Over IPv6 the packet may pass once, because the
/// kernel passes it even without the plugin.
fn assert_dropped(seen: Seen, from: SocketAddr, what: &str) {
    if from.is_ipv4() {
        assert_eq!(seen, DROPPED, "{what}");
    } else {
        assert!(seen.passed <= 1, "{what}: {seen:?}");
    }
}

fn forged_reply(proto: Proto, talk: &Talk) -> Vec<u8> {
    let (from, to) = (talk.server(), talk.client());
    match proto {
        Proto::Tcp => forge::tcp(from, to, RST | ACK),
        Proto::Udp => forge::udp(from, to, b"forged"),
    }
}

/// Forges replies of the server on each NIC.
fn forged_replies(layout: &TwoNics, wire: &Wire<'_>, server: &Netns, address: &str) {
    for proto in [Proto::Tcp, Proto::Udp] {
        for nic in NICS {
            let mut talk = Talk::begin(&layout.client, server, proto, address);
            let mark = layout.node.mark_of(proto, talk.client());
            let seen = wire.send(nic, &[forged_reply(proto, &talk)]);
            assert_dropped(seen, talk.server(), &format!("{proto:?} of {address} by {nic}"));
            assert_eq!(layout.node.mark_of(proto, talk.client()), mark, "{address} by {nic}");
            talk.assert_goes_on("a forged reply");
        }
    }
}

#[test]
fn replies_in_the_name_of_a_pod() {
    without_and_with_plugin(|_, layout| {
        let wire = Wire::new(&layout.router, &layout.node);
        for (pod, address) in [(0, POD[0]), (1, POD[1]), (0, POD6[0]), (1, POD6[1])] {
            forged_replies(layout, &wire, &layout.pods[pod].ns, address);
        }
    });
}

/// The pod's connections need the plugin, so there is no baseline.
#[test]
fn replies_in_the_name_of_a_pod_without_an_attachment() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let wire = Wire::new(&layout.router, &layout.node);
    layout.node.up(&settings());
    for address in TwoNics::addresses_behind_eth1(1) {
        forged_replies(&layout, &wire, &pod.ns, &address);
    }
    layout.node.down();
}

/// Adds a masquerade rule like kube-proxy's, for queries to one port.
pub(crate) fn masquerade(layout: &TwoNics) {
    layout.node.ns.nft(
        "table inet masq {
            chain sent {
                type nat hook postrouting priority srcnat; policy accept;
                iifname \"eni*\" oifname \"eth*\" udp dport 5353 masquerade
            }
        }",
    );
}

/// Forges answers to a masqueraded query that has left through `nic`, on each NIC.
fn forged_answers(layout: &TwoNics, wire: &Wire<'_>, asker: &Netns, server: &str, nic: usize) {
    for by in [0, 1] {
        let listening = Listening::at(&layout.client, Proto::Udp, server, 5353);
        let to = listening.address();
        let mut talk = Talk::through(asker, listening, to);
        let seen_as = talk.client_as_seen();
        let own = [NODE[nic], NODE6[nic]].map(ip);
        assert!(own.contains(&seen_as.ip()), "masqueraded, by {}: {seen_as}", NICS[nic]);
        let seen = wire.send(NICS[by], &[forge::udp(to, seen_as, b"forged")]);
        if by == nic {
            assert_eq!(seen, PASSED, "the address belongs there: {seen_as}");
        } else {
            assert_dropped(seen, to, &format!("an answer to {seen_as} by {}", NICS[by]));
        }
        talk.assert_goes_on("a forged answer");
    }
}

#[test]
fn answers_to_what_was_masqueraded() {
    without_and_with_plugin(|_, layout| {
        let wire = Wire::new(&layout.router, &layout.node);
        masquerade(layout);
        for (nic, pod) in layout.pods.iter().enumerate() {
            forged_answers(layout, &wire, &pod.ns, CLIENT, nic);
            forged_answers(layout, &wire, &pod.ns, CLIENT6, nic);
        }
    });
}

/// An ICMP error for pod1 about a packet that it sent to the client.
fn too_big(source: &str, talk: &Talk, pod: SocketAddr) -> Vec<u8> {
    let client = if pod == talk.server() { talk.client() } else { talk.server() };
    let mtu = if pod.is_ipv4() { 600 } else { 1290 };
    let about = forge::udp(pod, client, b"what was too big");
    forge::icmp_error(ip(source), Complaint::TooBig(mtu), &about)
}

/// Whether pod1 has learnt a smaller path MTU to the client. Clears what it learnt.
fn has_learnt_smaller_mtu(layout: &TwoNics, client: &str) -> bool {
    let pod = &layout.pods[1].ns;
    let way = pod.exec(&["ip", "route", "get", client], "");
    pod.ip("route flush cache");
    pod.ip6("route flush cache");
    way.contains("mtu 600") || way.contains("mtu 1290")
}

/// How a connection of pod1 began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Begun {
    /// The client called before the plugin was there, so the connection is not bound.
    CalledBefore,
    /// The client called pod1.
    Called,
    /// Pod1 called the client.
    Calls,
}

/// Runs `look` on a connection of each kind, together with pod1's end. Without and with the plugin.
fn for_each_connection(look: impl Fn(bool, &TwoNics, &Wire<'_>, Begun, (&Talk, SocketAddr))) {
    for (plugin, family) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let layout = two_nics();
        a_neighbour_of_the_pods(&layout);
        let wire = Wire::new(&layout.router, &layout.node);
        let (pod, client) = (&layout.pods[1].ns, [CLIENT, CLIENT6][family]);
        let call = || Talk::begin(&layout.client, pod, Proto::Udp, [POD[1], POD6[1]][family]);
        let before = call();
        if plugin {
            layout.pods.iter().for_each(|pod| layout.node.add(&settings(), pod));
        }
        let (called, calls) = (call(), Talk::begin(pod, &layout.client, Proto::Udp, client));
        let ends = [before.server(), called.server(), calls.client()];
        let kinds = [Begun::CalledBefore, Begun::Called, Begun::Calls];
        for ((mut talk, end), begun) in [before, called, calls].into_iter().zip(ends).zip(kinds) {
            look(plugin, &layout, &wire, begun, (&talk, end));
            talk.assert_goes_on("ICMP errors");
        }
    }
}

/// A pod without an attachment, with the rule that AWS adds for each pod.
fn a_neighbour_of_the_pods(layout: &TwoNics) {
    layout.node.ns.ip("link add enix type veth peer name inside
         link set enix up
         link set inside up
         rule add pref 512 to 10.20.0.60 lookup main
         route add 10.20.0.60 dev enix scope link
         route add 2001:db8:20::60 dev enix");
}

#[test]
fn icmp_errors_in_the_name_of_a_host_inside() {
    for_each_connection(|_, layout, wire, begun, (talk, end)| {
        let (sources, client): (&[&str], _) = if end.is_ipv4() {
            (&[POD[0], "10.20.0.60", NODE[0], NODE[1], "127.0.0.1"], CLIENT)
        } else {
            (&[POD6[0], "2001:db8:20::60", NODE6[0], NODE6[1]], CLIENT6)
        };
        for (source, nic) in sources.iter().flat_map(|source| NICS.map(|nic| (source, nic))) {
            let seen = wire.send(nic, &[too_big(source, talk, end)]);
            // Over IPv6 the packet passes without the plugin, too.
            let passes = u64::from(end.is_ipv6());
            let what = format!("{source} by {nic} to {end}, {begun:?}");
            assert!(seen.passed <= passes, "{what}: {seen:?}");
            assert!(!has_learnt_smaller_mtu(layout, client) || end.is_ipv6(), "{what} is believed");
        }
    });
}

/// A router on the path to the client may send an error through any NIC. For connections that a pod
/// opened, only the NIC that strict `rp_filter` accepts counts, as without the plugin.
#[test]
fn icmp_errors_of_a_host_outside_are_believed() {
    for_each_connection(|plugin, layout, wire, begun, (talk, end)| {
        let (source, client) =
            if end.is_ipv4() { ("198.51.100.66", CLIENT) } else { ("2001:db8:66::66", CLIENT6) };
        for nic in NICS {
            let seen = wire.send(nic, &[too_big(source, talk, end)]);
            let passes = end.is_ipv6() || nic == "eth1" || (plugin && begun != Begun::Calls);
            let expected = if passes { PASSED } else { DROPPED };
            assert_eq!(seen, expected, "{source} by {nic} to {end}, {begun:?}");
            assert_eq!(
                has_learnt_smaller_mtu(layout, client),
                passes,
                "believed by {end} by {nic}, {begun:?}"
            );
        }
    });
}
