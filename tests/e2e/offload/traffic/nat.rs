//! Connections whose addresses kube-proxy rewrites.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::lab::backend::Backend;
use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flowtable::{ENOUGH, Forwarded, kernel_has_flowtables};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::proof::Proof;
use crate::lab::talk::Talk;
use crate::lab::two_nics::{CLIENT, CLIENT6, NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};

use super::super::{PROTOS, settings};
use super::{assert_all_bypass_rules, assert_never, begin, count_by, offload_all, through};

/// Ports of the node's Services, and of their backends.
const LOCAL: u16 = 30000;
const MASQUERADED: u16 = 30001;
const REMOTE: [u16; 2] = [30002, 30003];
/// Addresses of a host behind each uplink.
const FAR: [[&str; 2]; 2] = [["10.20.0.77", "2001:db8:20::77"], ["10.21.0.77", "2001:db8:21::77"]];

const POD1: [&str; 2] = [POD[1], POD6[1]];
const CLIENTS: [&str; 2] = [CLIENT, CLIENT6];

fn node(nic: usize) -> [&'static str; 2] {
    [NODE[nic], NODE6[nic]]
}

/// Services that lead from a port of the node to the same port of the backend, over TCP and UDP.
fn services(port: u16, backend: [&str; 2], policy: Policy) -> Vec<Service> {
    let service = |proto, address: &str| Service {
        frontend: Frontend::NodePort(port),
        proto,
        backend: (address.parse::<IpAddr>().expect("an address"), port).into(),
        policy,
    };
    PROTOS.into_iter().flat_map(|proto| backend.map(|address| service(proto, address))).collect()
}

fn kube_proxy(layout: &TwoNics, flavour: Flavour) {
    let mut all = services(LOCAL, POD1, Policy::Local);
    all.extend(services(MASQUERADED, POD1, Policy::Cluster));
    for (port, far) in REMOTE.into_iter().zip(FAR) {
        all.extend(services(port, far, Policy::Cluster));
    }
    kubeproxy::install(&layout.node.ns, flavour, &all);
}

fn add_far_hosts(layout: &mut TwoNics) -> [Netns; 2] {
    [0, 1].map(|nic| layout.router.host(&format!("far{nic}"), &FAR[nic]))
}

/// Opens connections through this uplink to the port of the node.
fn connect_through(
    layout: &TwoNics,
    nic: usize,
    port: u16,
    server: &Netns,
    own: [&str; 2],
) -> Vec<Talk> {
    through(&layout.client, (server, own, port), (node(nic), port))
}

fn assert_seen_as(talks: &[Talk], wanted: [&str; 2]) {
    for talk in talks {
        let seen = talk.client_as_seen().ip().to_string();
        assert!(wanted.contains(&seen.as_str()), "{seen} instead of one of {wanted:?}");
    }
}

fn offloaded_both_ways(flavour: Flavour) {
    if !kernel_has_flowtables() {
        return;
    }
    let mut layout = two_nics();
    let far = add_far_hosts(&mut layout);
    let layout = &layout;
    kube_proxy(layout, flavour);
    let forwarded = Forwarded::watch(&layout.node.ns);
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.up(&settings());

    let pod = &layout.pods[1].ns;
    let local = connect_through(layout, 1, LOCAL, pod, POD1);
    assert_seen_as(&local, CLIENTS);
    let masqueraded = connect_through(layout, 1, MASQUERADED, pod, POD1);
    let remote = [0, 1].map(|to| connect_through(layout, 1 - to, REMOTE[to], &far[to], FAR[to]));
    assert_seen_as(&remote[0], node(0));
    assert_seen_as(&remote[1], node(1));
    let mut all = local;
    all.extend(masqueraded);
    all.extend(remote.into_iter().flatten());
    offload_all(&layout.node, &mut all);

    let capture = Capture::start(&layout.router.ns);
    assert_all_bypass_rules(&forwarded, &mut all, "behind kube-proxy");
    let packets = capture.stop();
    // A request that leaves through the other uplink crosses the router twice.
    assert_eq!(assert_replies_symmetric(&packets, &NICS, true), 4 + 4 + 2 * 8);
    let calls = |nic| {
        let by = packets.iter().filter(|packet| packet.port == NICS[nic] && packet.outgoing);
        let is_call = |to| NODE[nic] == to || NODE6[nic] == to;
        by.filter(|packet| is_call(packet.to.ip().to_string())).count()
    };
    assert!(calls(0) > 0 && calls(1) > 0, "requests and replies by both uplinks");
    proof.assert_nothing_dropped();
    layout.node.down();
    drop(all);
    proof.assert_as_before();
}

#[test]
fn behind_kube_proxy_in_iptables() {
    offloaded_both_ways(Flavour::Iptables);
}

#[test]
fn behind_kube_proxy_in_nftables() {
    offloaded_both_ways(Flavour::Nftables);
}

/// Requests of a U-turn leave through the uplink that they arrived on.
#[test]
fn a_u_turn_is_left_to_the_rules() {
    if !kernel_has_flowtables() {
        return;
    }
    let mut layout = two_nics();
    let far = add_far_hosts(&mut layout);
    let layout = &layout;
    kube_proxy(layout, Flavour::Nftables);
    let forwarded = Forwarded::watch(&layout.node.ns);
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.up(&settings());
    // iptables cannot serve a U-turn over IPv4 through eth1.
    let nic = usize::from(!Backend::of_run().is_iptables());
    let mut turning = connect_through(layout, nic, REMOTE[nic], &far[nic], FAR[nic]);
    let mut control = begin(&layout.client, &layout.pods[1].ns, &POD1);
    assert_never(&layout.node, &mut turning, &mut control, "a U-turn");
    let capture = Capture::start(&layout.router.ns);
    for talk in &mut turning {
        forwarded.assert_passes_rules(talk, "a U-turn");
    }
    let packets = capture.stop();
    assert_eq!(assert_replies_symmetric(&packets, &[NICS[nic]], true), 8);
    assert_eq!(count_by(&packets, &[NICS[1 - nic]]), 0, "packets by the other uplink");
    proof.assert_nothing_dropped();
    layout.node.down();
    proof.assert_as_before();
}

const BALANCERS: [&str; 2] = ["10.99.0.11", "2001:db8:99::11"];

/// Rules of a load balancer that keeps the caller's address.
fn balancer() -> String {
    let mut rules = String::new();
    for protocol in ["tcp", "udp"] {
        let _ = writeln!(
            rules,
            "ip daddr {} {protocol} dport 80 dnat ip to {}:{LOCAL}
             ip6 daddr {} {protocol} dport 80 dnat ip6 to [{}]:{LOCAL}",
            BALANCERS[0], NODE[1], BALANCERS[1], NODE6[1]
        );
    }
    format!(
        "table inet balancer {{
         chain balance {{
         type nat hook prerouting priority dstnat; policy accept;
         {rules}
         }}
         }}"
    )
}

/// pod0 calls a load balancer, which sends the request back through eth1 to pod1.
#[test]
fn a_hairpin_by_a_load_balancer() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = &two_nics();
    kube_proxy(layout, Flavour::Iptables);
    layout.router.ns.nft(&balancer());
    let mut settings = settings();
    settings["hairpin"] = true.into();
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.up(&settings);
    let (caller, pod) = (&layout.pods[0].ns, &layout.pods[1].ns);
    let mut all = through(caller, (pod, POD1, LOCAL), (BALANCERS, 80));
    assert_seen_as(&all, [POD[0], POD6[0]]);
    let mut control = begin(&layout.client, pod, &POD1);
    offload_all(&layout.node, &mut control);
    let mut speak = |rounds| {
        for _ in 0..rounds {
            for talk in &mut all {
                talk.assert_goes_on("a hairpin");
            }
        }
    };
    speak(ENOUGH);
    let capture = Capture::start(&layout.router.ns);
    speak(5);
    // The caller reaches the balancer through eth0, and the balancer reaches the pod through eth1.
    assert_eq!(assert_replies_symmetric(&capture.stop(), &NICS, true), 2 * 4);
    proof.assert_nothing_dropped();
    let known = |family| layout.node.ns.exec(&["conntrack", "-L", "-f", family], "");
    let known = ["ipv4", "ipv6"].map(known);
    let is_second = |line: &&str| line.contains(" dport=30000 ") && line.contains("[OFFLOAD]");
    let count = known.iter().flat_map(|lines| lines.lines()).filter(is_second).count();
    assert_eq!(count, all.len(), "the balancer's connections, not those to it");
    layout.node.down();
    drop((all, control));
    proof.assert_as_before();
}
