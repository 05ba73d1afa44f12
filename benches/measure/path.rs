//! Measures the cost of a packet on its path through the node.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Netns, Release};
use crate::stats::{Dice, Measured};
use crate::way::{Conntrack, POD, Way, without_node};

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

/// Name of a measurement, its unit and its function, which returns `None` if a path lacks it.
type Call = (&'static str, &'static str, fn(&mut Way) -> Option<f64>);

const PACKETS: [Call; 3] = [
    ("request, 64 bytes", "ns", |way| Some(way.request())),
    ("reply, 64 bytes", "ns", |way| Some(way.reply())),
    ("DNATed request, 64 bytes", "ns", |way| way.dnated_request()),
];
/// Further measurements where the kernel has flowtables.
const OF_FLOWTABLES: [Call; 2] = [
    ("DNATed reply, 64 bytes", "ns", |way| way.dnated_reply()),
    ("short TCP connection", "µs", |way| Some(way.short_connection())),
];
const TCP: [Call; 2] = [
    ("TCP_RR", "µs", |way| Some(way.round_trip())),
    ("TCP stream", "Gbit/s", |way| Some(way.throughput())),
];

/// Measures all candidates in each round, in random order. Without flowtables in the kernel, the
/// rows with a flowtable are missing.
pub(crate) fn measure(section: &str, rounds: u32) -> Vec<Measured> {
    let probe = Netns::new("probe");
    let (legacy, offload) = (probe.can("iptables-legacy", &["-S"]), probe.can("nft", &[FLOWTABLE]));
    let backends = BACKENDS.into_iter().filter(|name| legacy || *name != "iptables-legacy");
    let mut ways = without_rules();
    for release in Release::all() {
        for backend in backends.clone() {
            let label = format!("{}, {backend}", release.label);
            ways.push(with_symroute(&label, &release, backend, Conntrack::Alone));
        }
    }
    let mut calls = [PACKETS.as_slice(), TCP.as_slice()].concat();
    if offload {
        calls = [PACKETS.as_slice(), &OF_FLOWTABLES, &TCP].concat();
        ways.insert(0, Way::new("no node", Conntrack::Without, without_node));
        let release = Release::now();
        for backend in backends.clone() {
            let label = format!("{}, {backend}, offload", release.label);
            ways.push(with_symroute(&label, &release, backend, Conntrack::Offload));
        }
    }
    ways.extend(aws(legacy));
    settle(&mut ways);
    let samples = take_turns(&mut ways, &calls, rounds);
    for way in &ways {
        way.settled().unwrap_or_else(|words| panic!("at the end: {words}"));
    }
    let mut measured = Vec::new();
    for (way, samples) in ways.iter().zip(samples) {
        for ((call, unit, _), samples) in
            calls.iter().zip(samples).filter(|(_, all)| !all.is_empty())
        {
            measured.push(Measured::of(section, &way.label, call, unit, samples));
        }
    }
    measured
}

/// `nft` commands that fail if the kernel has no flowtables.
const FLOWTABLE: &str = "add table inet f; add flowtable inet f f { hook ingress priority 0; devices = { lo }; }; \
    add chain inet f f { type filter hook forward priority 0; }; add rule inet f f flow add @f";

/// Paths without rules of a plugin: the lower bound of any plugin without a flowtable.
fn without_rules() -> Vec<Way> {
    vec![
        Way::new("no plugin, no conntrack", Conntrack::Without, |_, _| {}),
        Way::new("no plugin, conntrack", Conntrack::Alone, |_, _| {}),
        Way::new("no plugin, conntrack and an ip rule", Conntrack::Alone, |node, _| {
            node.ip("rule add pref 32000 fwmark 0x1 lookup main");
        }),
    ]
}

fn aws(legacy: bool) -> Vec<Way> {
    let variants = ["nft", "legacy"].into_iter().filter(|name| legacy || *name != "legacy");
    let way = |variant| {
        let tool = format!("iptables-{variant}-restore");
        let label = format!("AWS connmark rules, iptables-{variant}");
        Way::new(&label, Conntrack::Alone, |node, _| {
            node.exec(&tool, &["--noflush"], AWS);
            node.ip(AWS_RULES);
        })
    };
    variants.map(way).collect()
}

/// Sends traffic in both directions until the node's kernel has all connections established.
fn settle(ways: &mut [Way]) {
    let begin = Instant::now();
    loop {
        ways.iter_mut().for_each(Way::exchange);
        let unsettled = ways.iter().find_map(|way| way.settled().err());
        let Some(words) = unsettled else { return };
        assert!(begin.elapsed() < Duration::from_secs(30), "{words}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Takes the samples. Returns a list for each call of each path.
fn take_turns(ways: &mut [Way], calls: &[Call], rounds: u32) -> Vec<Vec<Vec<f64>>> {
    let mut samples = vec![vec![Vec::new(); calls.len()]; ways.len()];
    let mut dice = Dice::new();
    for round in 0..rounds {
        crate::progress("data path", round, rounds);
        for at in dice.order(ways.len()) {
            for (list, (_, _, call)) in samples[at].iter_mut().zip(calls) {
                let sample = call(&mut ways[at]);
                // The first burst fills caches.
                list.extend(sample.filter(|_| round > 0));
            }
        }
    }
    samples
}

/// The ip rules that the AWS VPC CNI adds for one pod and for its mark.
const AWS_RULES: &str =
    "rule add pref 512 to 10.99.0.2 lookup main\nrule add pref 1024 fwmark 0x80/0x80 lookup main";
/// The iptables rules of the AWS VPC CNI, including SNAT.
const AWS: &str = "*mangle
-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80
-A PREROUTING -i eni+ -j CONNMARK --restore-mark --mask 0x80
-A PREROUTING -i vlan+ -j CONNMARK --restore-mark --mask 0x80
COMMIT
*nat
:AWS-CONNMARK-CHAIN-0 - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
-A PREROUTING -i eni+ -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -j CONNMARK --restore-mark --mask 0x80
-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/8 -j RETURN
-A AWS-CONNMARK-CHAIN-0 -j CONNMARK --set-xmark 0x80/0x80
-A POSTROUTING -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/8 -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.0.10 --random-fully
COMMIT
";

/// A path on a node with symroute, after an ADD for the pod.
fn with_symroute(label: &str, release: &Release, backend: &str, conntrack: Conntrack) -> Way {
    let offload = if conntrack == Conntrack::Offload { "\"offload\":true," } else { "" };
    let input = format!(
        "{{\"cniVersion\":\"1.0.0\",\"name\":\"bench\",\"type\":\"symroute\",\"uplinks\":[\"eth0\"],\
         {offload}\"backend\":\"{backend}\",\"prevResult\":{{\"cniVersion\":\"1.0.0\",\"ips\":\
         [{{\"address\":\"{POD}/16\"}}]}}}}"
    );
    Way::new(label, conntrack, |node, pod| {
        let netns = format!("CNI_NETNS={}", pod.path());
        let words = [
            "CNI_COMMAND=ADD",
            "CNI_CONTAINERID=pod",
            "CNI_IFNAME=eth0",
            "CNI_PATH=/opt/cni/bin",
            &netns,
            &release.program,
        ];
        node.exec("env", &words, &input);
    })
}
