//! Faults of the past. Each test is named after one.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt,
    socket, sockopt,
};
use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_all_work};
use crate::lab::node::Node;
use crate::lab::proof::Proof;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Connection, Proto};
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

const PATIENT: Duration = Duration::from_secs(8);

fn settings() -> Value {
    json!({"uplinks": NICS})
}

fn flow<'a>(layout: &'a TwoNics, to: &str, answer: &'a str) -> Flow<'a> {
    Flow::new(to, &layout.client, Proto::Tcp, to, answer)
}

fn host_flows(layout: &TwoNics) -> [Flow<'_>; 2] {
    [
        flow(layout, "10.21.0.10:10250", "host 203.0.113.9"),
        flow(layout, "[2001:db8:21::10]:10250", "host 2001:db8:9::9"),
    ]
}

/// The sum that IPv4 headers and ICMP carry (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).expect("folded")).to_be_bytes()
}

/// "Fragmentation needed" about a packet of the node to the client.
fn frag_needed(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else {
        panic!("IPv4 only")
    };
    let mut icmp = vec![3, 4, 0, 0, 0, 0, 0x05, 0x78];
    let mut inner = vec![0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0];
    inner.extend_from_slice(&source.octets());
    inner.extend_from_slice(&destination.octets());
    let sum = checksum(&inner);
    inner[10..12].copy_from_slice(&sum);
    icmp.extend_from_slice(&inner);
    icmp.extend_from_slice(&from.port().to_be_bytes());
    icmp.extend_from_slice(&to.port().to_be_bytes());
    icmp.extend_from_slice(&[0; 4]);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    icmp
}

/// Any host can send an ICMP error by another NIC. It must not move the connection there.
#[test]
fn an_icmp_error_by_another_nic_moves_no_connection() {
    let layout = two_nics();
    layout.node.add(&settings(), &layout.pods[1]);
    let server: SocketAddr = "10.21.0.10:10250".parse().expect("an address");
    let mut connection = Connection::open(&layout.client, server, PATIENT).expect("it works");
    connection.ask().expect("an answer");
    let list = || layout.node.ns.exec(&["conntrack", "-L", "-p", "tcp", "--dport", "10250"], "");
    assert!(list().contains("mark=512 "), "bound to eth1: {}", list());
    // The router sends what is marked 7 out of eth0, wherever its address belongs.
    let mac = layout.node.ns.mac("eth0");
    layout.router.ns.ip(&format!(
        "route add 10.21.0.10 dev eth0 table 77
         rule add fwmark 7 lookup 77
         neigh replace 10.21.0.10 dev eth0 lladdr {mac} nud permanent"
    ));
    layout.node.ns.nft(
        "table inet seen {
            counter errors { }
            chain look {
                type filter hook prerouting priority -70; policy accept;
                iifname eth0 icmp type destination-unreachable counter name errors
            }
        }",
    );
    let error = frag_needed(server, connection.local());
    layout.router.ns.run(|| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp);
        let raw = raw.expect("a raw socket");
        setsockopt(&raw, sockopt::Mark, &7).expect("a mark");
        let to = SockaddrIn::new(10, 21, 0, 10, 0);
        sendto(raw.as_raw_fd(), &error, &to, MsgFlags::empty()).expect("send the error");
    });
    assert_eq!(layout.node.ns.counter("seen", "errors"), 1, "the error came in by eth0");
    assert!(list().contains("mark=512 "), "still bound to eth1: {}", list());
    connection.ask().expect("the connection goes on");
    layout.node.del(&settings(), &layout.pods[1]);
}

/// Routes of main that are not plain: none may fail the reconcile, none may lead replies astray.
#[test]
fn odd_routes_in_main() {
    let layout = two_nics();
    let node = &layout.node;
    node.ns.ip("route add 10.57.0.0/16 via inet6 fe80::1 dev eth0
         route add 10.58.0.0/16 via 10.99.99.1 dev eth1 onlink
         route add 203.0.113.0/24 via 10.21.0.99 dev eth1 tos 0x10
         route add 10.59.0.0/16 nexthop via 10.20.0.1 dev eth0 nexthop via 10.21.0.1 dev eth1
         route add blackhole 10.60.0.0/16
         route add 10.61.0.0/16 via 10.20.0.1 dev eth0 mtu 1400");
    node.ns.ip6(
        "route add default from 2001:db8:77::/64 via fe80::77 dev eth1 metric 1
         route add 2001:db8:78::/64 from 2001:db8:77::/64 via fe80::77 dev eth1",
    );
    let proof = Proof::begin(node, &layout.router);
    node.add(&settings(), &layout.pods[1]);
    let table = |number: &str| node.ns.exec(&["ip", "route", "show", "table", number], "");
    let (first, second) = (table("47001"), table("47002"));
    assert!(first.contains("10.57.0.0/16 via inet6 fe80::1 dev eth0"), "{first}");
    assert!(first.contains("10.61.0.0/16 via 10.20.0.1 dev eth0 proto kernel mtu 1400"), "{first}");
    assert!(first.contains("10.59.0.0/16 via 10.20.0.1 dev eth0"), "{first}");
    assert!(
        second.contains("10.58.0.0/16 via 10.99.99.1 dev eth1 proto kernel onlink"),
        "{second}"
    );
    assert!(!second.contains("10.21.0.99") && !second.contains("blackhole"), "{second}");
    let v6 = node.ns.exec(&["ip", "-6", "route", "show", "table", "47002"], "");
    assert!(!v6.contains("fe80::77"), "{v6}");
    proof.assert_flows_work(&host_flows(&layout), &NICS, 2);
    let again = node.symroute(&["status"]);
    assert_eq!(again.code, Some(0), "{}", again.stdout);
    node.del(&settings(), &layout.pods[1]);
    proof.assert_as_before();
}

/// Without `hairpin`, a source that the node blackholes (Calico does so with its pod blocks) stays
/// dropped by strict `rp_filter`.
#[test]
fn a_blackholed_source_is_not_let_in() {
    let layout = two_nics();
    layout.node.ns.ip("route add blackhole 10.66.0.0/16");
    layout.router.check_sources(&[]);
    layout.client.ip("addr add 10.66.0.5/32 dev eth0");
    layout.node.add(&settings(), &layout.pods[1]);
    let before = layout.node.rp_filter_drops();
    layout.client.run(|| {
        let socket = UdpSocket::bind("10.66.0.5:0").expect("a socket");
        socket.send_to(b"who\n", "10.21.0.10:10250").expect("send");
    });
    // What comes next is handled after it.
    assert_all_work(&host_flows(&layout));
    assert_eq!(layout.node.rp_filter_drops(), before + 1, "dropped as before");
    layout.node.del(&settings(), &layout.pods[1]);
}

/// The node's own packet with a whole mark of another program (wg-quick) keeps every bit.
#[test]
fn a_whole_mark_of_another_keeps_its_bits() {
    let layout = two_nics();
    layout.node.add(&settings(), &layout.pods[1]);
    layout.node.ns.nft(
        "table inet wireguard {
            counter whole { }
            chain look {
                type filter hook postrouting priority 200; policy accept;
                meta mark 0xca6c counter name whole
            }
        }",
    );
    layout.node.ns.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        setsockopt(&socket, sockopt::Mark, &0xca6c).expect("a mark");
        socket.send_to(b"x", "203.0.113.9:51820").expect("send");
    });
    assert_eq!(layout.node.ns.counter("wireguard", "whole"), 1);
    layout.node.del(&settings(), &layout.pods[1]);
}

type Stranger = (&'static str, fn(&Node, &str));

/// Commands by which another program changes symroute's rules, for the run's backend.
fn strangers(backend: Backend) -> Vec<Stranger> {
    if !backend.is_iptables() {
        let nft: fn(&Node, &str) = |node, stranger| node.ns.nft(stranger);
        return NFT_STRANGERS.map(|stranger| (stranger, nft)).to_vec();
    }
    let iptables: fn(&Node, &str) = |node, stranger| {
        for rule in stranger.split("; ") {
            node.ns.iptables(Backend::of_run(), &format!("-t mangle {rule}"));
        }
    };
    let ipset: fn(&Node, &str) = |node, stranger| {
        let argv: Vec<&str> = stranger.split(' ').collect();
        node.ns.exec(&[&["ipset"], argv.as_slice()].concat(), "");
    };
    vec![
        ("-A symroute-in-2 -m mark --mark 7", iptables),
        ("-I symroute-prerouting -p tcp -j RETURN", iptables),
        ("-N symroute-more; -A FORWARD -j symroute-more", iptables),
        ("-D symroute-prerouting 1", iptables),
        ("-D POSTROUTING 1", iptables),
        ("create symroute-ranges hash:net", ipset),
        ("add symroute-inside4 192.0.2.0/24", ipset),
        ("flush symroute", ipset),
    ]
}

const NFT_STRANGERS: [&str; 6] = [
    "add rule inet symroute in_2 ip saddr { 1.2.3.4, 5.6.7.8 } counter",
    "add set inet symroute range { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }",
    "add map inet symroute ways { type mark : verdict; elements = { 1 : accept, 2 : goto via_1 }; }",
    "add chain inet symroute more { type filter hook forward priority 7; }",
    "add table inet symroute { flags dormant; }",
    "delete element inet symroute arrive { \"eth1\" : goto in_2 }",
];

/// Whatever another program adds to symroute's rules, the next reconcile restores them.
#[test]
fn strangers_among_our_rules() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    node.up(&settings());
    let ours = Snapshot::take(node);
    let mut wrong = Vec::new();
    for (stranger, come) in strangers(Backend::of_run()) {
        come(node, stranger);
        let status = node.symroute(&["status"]);
        if status.code != Some(4) {
            wrong.push(format!("{stranger} is not seen:\n{}", status.stdout));
        }
        node.up(&settings());
        let left = ours.difference(&Snapshot::take(node));
        if !left.is_empty() {
            wrong.push(format!("after {stranger}:\n{left}"));
        }
        assert_all_work(&host_flows(&layout));
    }
    node.down();
    wrong.extend(Some(before.difference(&Snapshot::take(node))).filter(|left| !left.is_empty()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn add_in(node: &Node, network: &str, id: &str, settings: &Value) -> Option<i32> {
    let prev = r#"{"cniVersion":"1.0.0","ips":[{"address":"10.21.0.50/32"}]}"#;
    let text = node.network(settings, Some(prev)).replace("\"lab\"", &format!("\"{network}\""));
    let pod = crate::lab::netns::Netns::new("pod");
    node.cni("ADD", &text, id, &pod.path(), "eth0").code
}

/// The settings of the first network stay in force while it has pods, whatever the second one does.
#[test]
fn the_second_network_does_not_take_over() {
    let layout = two_nics();
    let node = &layout.node;
    let other = json!({"uplinks": NICS, "hairpin": true});
    assert_eq!(add_in(node, "one", "a", &settings()), Some(0));
    node.flush_all_rules();
    assert_eq!(add_in(node, "two", "b", &settings()), Some(0));
    assert_eq!(add_in(node, "two", "c", &other), Some(1), "the second can't change settings");
    assert_eq!(add_in(node, "one", "d", &settings()), Some(0), "the first goes on");
    assert_eq!(add_in(node, "one", "e", &other), Some(0), "and may change them");
    assert_eq!(add_in(node, "two", "f", &settings()), Some(1), "which the second has to follow");
    assert_eq!(add_in(node, "two", "g", &other), Some(0));
}

/// A new uplink does not get the id of one that has just gone: connections of the old one still carry the id.
#[test]
fn an_id_is_not_handed_on_at_once() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&settings());
    node.ns.ip("link add eth2 type veth peer name peer2
         addr add 10.22.0.10/24 dev eth2
         link set eth2 up");
    node.up(&json!({"uplinks": ["eth0", "eth2"]}));
    let rules = node.ns.exec(&["ip", "rule"], "");
    assert!(rules.contains("fwmark 0x300/0x1f00 iif eth2"), "{rules}");
    assert!(!rules.contains("0x200/"), "{rules}");
    node.down();
}

/// An attachment's file that symroute can't read counts as a pod, but names nothing to remove.
#[test]
fn an_attachment_that_cannot_be_read_does_not_keep_the_node_state_for_ever() {
    let layout = two_nics();
    let node = &layout.node;
    let before = Snapshot::take(node);
    node.add(&settings(), &layout.pods[0]);
    let file = node.dir.join("run/pods/of-a-later-release-eth0-0");
    std::fs::write(file, "{\"version\": 99}").expect("write the file");
    node.symroute(&["down", "--force"]).assert_success("down");
    before.assert_unchanged(&Snapshot::take(node));
}
