//! What a call costs on a full node, and when many pods start at once.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use symroute::facts::ElementData;
use symroute::names::PODS4;
use symroute::netlink::Socket;
use symroute::netlink::nft::Batch;
use symroute::netlink::route::{Lookup, lookups};
use symroute::ruleset::sets::address_key;

use crate::lab::{Lab, Netns, Plugin, noop};
use crate::stats::{Dice, Measured};

struct Node {
    label: String,
    lab: Lab,
    plugin: Plugin,
}

impl Node {
    fn new(label: &str, uplinks: u32, pods: u32) -> Self {
        let lab = Lab::new("scale", uplinks);
        let plugin = lab.settings("1.1.0", "");
        lab.node.run(|| {
            for pod in 0..=pods {
                plugin.call_here(&lab, "ADD", pod);
            }
        });
        Self { label: label.into(), lab, plugin }
    }
}

const VERBS: [&str; 4] = ["ADD", "CHECK", "STATUS", "DEL"];
/// What the kernel alone takes for the least that an ADD asks of it.
const FLOORS: [&str; 2] = ["nf_tables alone, one element", "rtnetlink alone, one look-up"];
/// An address that no pod has.
const SPARE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 255, 200));
/// The first pod that no node has.
const NEW: u32 = 20_000;

pub(crate) fn measure(rounds: u32, short: bool) -> Vec<Measured> {
    crate::say("scale: filling nodes");
    let pods: &[u32] = if short { &[100, 1000] } else { &[100, 1000, 5000] };
    let rules: &[u32] = if short { &[10_000] } else { &[10_000, 50_000] };
    let mut filled = vec![Node::new("empty node", 1, 0)];
    filled.extend(pods.iter().map(|&n| Node::new(&format!("{n} pods"), 1, n)));
    for &count in rules {
        for variant in ["nft", "legacy"] {
            let next = Node::new(&format!("{count} iptables-{variant} rules"), 1, 0);
            if foreign_rules(&next.lab.node, variant, count) {
                filled.push(next);
            }
        }
    }
    let next = Node::new("3000 ip rules", 1, 0);
    next.lab.node.ip(&ip_rules(3000));
    filled.push(next);
    filled.push(Node::new("15 uplinks", 15, 0));
    let next = Node::new("all of it", 15, *pods.last().expect("one"));
    next.lab.node.ip(&ip_rules(3000));
    if foreign_rules(&next.lab.node, "nft", *rules.last().expect("one")) {
        filled.push(next);
    }

    let floor = Lab::new("noop", 1);
    let mut samples = vec![vec![Vec::new(); VERBS.len() + FLOORS.len()]; filled.len()];
    let (mut nothing, mut dice) = (Vec::new(), Dice::new());
    for round in 0..rounds {
        crate::progress("scale", round, rounds);
        for at in dice.order(filled.len() + 1) {
            let Some(Node { lab, plugin, .. }) = filled.get(at) else {
                nothing.push(noop().call(&floor, "ADD", 0));
                continue;
            };
            for (n, verb) in VERBS.iter().enumerate() {
                samples[at][n].push(plugin.call(lab, verb, NEW + round));
            }
            // The kernel takes its time to free what was removed.
            if round % 4 == 0 {
                for (n, took) in lab.node.run(floors).into_iter().enumerate() {
                    samples[at][VERBS.len() + n].push(took);
                }
            }
        }
    }
    let mut all = vec![Measured::of("scale", "static no-op", "ADD", "µs", nothing)];
    for (node, samples) in filled.iter().zip(samples) {
        for (verb, samples) in VERBS.iter().chain(&FLOORS).zip(samples) {
            all.push(Measured::of("scale", &node.label, verb, "µs", samples));
        }
    }
    all
}

/// Microseconds of each of [`FLOORS`], from within this process.
fn floors() -> [f64; 2] {
    let mut netfilter = Socket::netfilter().expect("a socket");
    let member = [(address_key(SPARE), ElementData::None)];
    let mut batch = Batch::default();
    batch.add_elements(PODS4, &member);
    let begin = Instant::now();
    batch.commit(&mut netfilter).expect("add an element");
    let element = begin.elapsed();
    let mut batch = Batch::default();
    batch.delete_elements(PODS4, &member);
    batch.commit(&mut netfilter).expect("remove it");
    let mut rtnetlink = Socket::route().expect("a socket");
    let question = Lookup { to: Ipv4Addr::new(192, 0, 2, 1).into(), from: None, mark: 0 };
    let begin = Instant::now();
    lookups(&mut rtnetlink, &[question]).expect("a look-up");
    [element, begin.elapsed()].map(|took| took.as_secs_f64() * 1e6)
}

/// Rules as kube-proxy's iptables mode has them: many chains, a jump to each, a DNAT in each.
fn foreign_rules(node: &Netns, variant: &str, count: u32) -> bool {
    let tool = format!("iptables-{variant}");
    if !node.can(&tool, &["-S"]) {
        crate::say(&format!("left out: {count} rules: this kernel has no {tool}"));
        return false;
    }
    let (mut chains, mut rules) = (String::new(), String::new());
    for n in 0..count / 2 {
        let (a, b, c) = (n >> 16, n >> 8 & 255, n & 255);
        let _ = writeln!(chains, ":KUBE-SVC-{n} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -d 172.{a}.{b}.{c}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{n}\n\
             -A KUBE-SVC-{n} -p tcp -m tcp -j DNAT --to-destination 10.50.{b}.{c}:8080"
        );
    }
    let text = format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n{rules}COMMIT\n"
    );
    node.exec(&format!("{tool}-restore"), &["--noflush"], &text);
    true
}

/// Rules by a pod's address, as AWS VPC CNI and others make them.
fn ip_rules(count: u32) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        let _ = writeln!(
            text,
            "rule add pref 1536 from 10.200.{}.{} lookup {}",
            n / 250,
            n % 250 + 1,
            101 + n % 10
        );
        text
    })
}

/// Many calls at the same moment, on all cores; also while somebody makes and deletes links without
/// a pause, so that the kernel's lock of network configuration is always held.
pub(crate) fn parallel(rounds: u32) -> Vec<Measured> {
    let (lab, floor) = (Lab::new("many", 1), Lab::new("noop", 1));
    let plugin = lab.settings("1.1.0", "");
    plugin.call(&lab, "ADD", 0);
    let nothing = noop();
    let mut measured = Vec::new();
    for busy in [false, true] {
        let churn = busy.then(Churn::start);
        for width in [1, 8, 64] {
            let times = (rounds / width).max(5);
            let (mut ours, mut none) = (Vec::new(), Vec::new());
            let mut dice = Dice::new();
            for round in 0..times {
                crate::progress(&format!("parallel, {width} at once"), round, times);
                for which in dice.order(2) {
                    let first = NEW + round * width;
                    if which == 0 {
                        none.extend(at_once(&nothing, &floor, first, width));
                    } else {
                        ours.extend(at_once(&plugin, &lab, first, width));
                        lab.node.run(|| {
                            for pod in first..first + width {
                                plugin.call_here(&lab, "DEL", pod);
                            }
                        });
                    }
                }
            }
            let calm = if busy { ", links change" } else { "" };
            let label = format!("{width} at once{calm}");
            measured.push(Measured::of("parallel", &label, "no-op", "µs", none));
            measured.push(Measured::of("parallel", &label, "ADD", "µs", ours));
        }
        drop(churn);
    }
    measured
}

fn at_once(plugin: &Plugin, lab: &Lab, first: u32, width: u32) -> Vec<f64> {
    let barrier = Barrier::new(width as usize);
    let one = &|pod| {
        barrier.wait();
        plugin.call_here(lab, "ADD", pod)
    };
    lab.node.run(|| {
        thread::scope(|scope| {
            let start = |pod| scope.spawn(move || one(pod));
            let all: Vec<_> = (first..first + width).map(start).collect();
            all.into_iter().map(|call| call.join().expect("a call")).collect()
        })
    })
}

/// Links that come and go in a namespace of their own; the kernel's lock is the same for all.
struct Churn {
    shell: std::process::Child,
    netns: Netns,
}

impl Churn {
    fn start() -> Self {
        let netns = Netns::new("churn");
        let batch = "link add a type veth peer name b\nlink del a\n".repeat(200);
        let file = std::env::temp_dir().join(netns.name.as_str());
        std::fs::write(&file, batch).expect("write the batch");
        let script = "while ip -batch \"$0\"; do :; done; rm -f \"$0\"";
        let shell = netns.run(|| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().expect("start sh")
        });
        // The loop ends when it finds no file.
        Self { shell, netns }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        let file = std::env::temp_dir().join(self.netns.name.as_str());
        let _ = std::fs::remove_file(file);
        let _ = self.shell.wait();
    }
}
