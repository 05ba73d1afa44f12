//! Times calls on full nodes, and of many pods that start at once.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;

use crate::fair::{NEW, SETTLED, Site};
use crate::lab::{Lab, Netns, Plugin, Release, disturber, noop};
use crate::stats::{Dice, Measured};

struct Node {
    label: String,
    site: Site,
    /// Measured calls: name in the tables, and CNI verb.
    calls: Vec<(String, &'static str)>,
}

impl Node {
    fn new(release: &Release, label: &str, uplinks: u32, pods: u32) -> Self {
        let lab = Lab::new("scale", uplinks);
        let plugin = lab.symroute(release);
        let verbs: &[&str] =
            if release.label == Release::now().label { &VERBS } else { &VERBS_BEFORE };
        let calls = verbs.iter().map(|verb| (release.call(verb), *verb)).collect();
        Self { label: label.into(), site: Site::filled(lab, plugin, pods), calls }
    }

    fn netns(&self) -> &Netns {
        &self.site.lab.node
    }
}

const EMPTY: &str = "empty node";
const VERBS: [&str; 4] = ["ADD", "CHECK", "STATUS", "DEL"];
/// Measured verbs of the release to compare with.
const VERBS_BEFORE: [&str; 2] = ["ADD", "DEL"];
/// Samples in a round of the no-op and the empty node, which ratios are to. Other calls have one.
const BASE: usize = 3;

/// The nodes on which to measure a release.
fn nodes(release: &Release, short: bool) -> Vec<Node> {
    let pods: &[u32] = if short { &[100, 1000] } else { &[100, 1000, 5000] };
    let rules: &[u32] = if short { &[50_000] } else { &[10_000, 50_000] };
    let node = |label: &str, uplinks, pods| Node::new(release, label, uplinks, pods);
    let mut nodes = vec![node(EMPTY, 1, 0)];
    nodes.extend(pods.iter().map(|&n| node(&format!("{n} pods"), 1, n)));
    for &count in rules {
        for variant in ["nft", "legacy"] {
            let next = node(&format!("{count} iptables-{variant} rules"), 1, 0);
            if foreign_rules(next.netns(), variant, count) {
                nodes.push(next);
            }
        }
    }
    let next = node("3000 ip rules", 1, 0);
    next.netns().ip(&ip_rules(3000));
    nodes.push(next);
    nodes.push(node("15 uplinks", 15, 0));
    let next = node("all of it", 15, *pods.last().expect("one"));
    next.netns().ip(&ip_rules(3000));
    if foreign_rules(next.netns(), "nft", *rules.last().expect("one")) {
        nodes.push(next);
    }
    nodes
}

pub(crate) fn measure(rounds: u32, short: bool) -> Vec<Measured> {
    crate::say("scale: filling nodes");
    let mut nodes: Vec<Node> =
        Release::all().iter().flat_map(|release| nodes(release, short)).collect();
    let mut floor = Site::new(Lab::new("noop", 1), noop(), "");
    let calls = |(at, node): (usize, &Node)| (0..node.calls.len()).map(move |call| (at, call));
    let calls: Vec<_> = nodes.iter().enumerate().flat_map(calls).collect();
    let mut samples = vec![Vec::new(); calls.len() + 1];
    // The last index is the no-op.
    let often = |call: usize| calls.get(call).is_none_or(|(at, _)| nodes[*at].label == EMPTY);
    let turns: Vec<usize> = (0..samples.len())
        .flat_map(|call| std::iter::repeat_n(call, if often(call) { BASE } else { 1 }))
        .collect();
    let mut dice = Dice::new();
    for round in 0..rounds {
        crate::progress("scale", round, rounds);
        for turn in dice.order(turns.len()) {
            let at = turns[turn];
            samples[at].push(match calls.get(at) {
                Some(&(node, call)) => {
                    let Node { site, calls, .. } = &mut nodes[node];
                    site.timed(calls[call].1)
                }
                None => floor.timed("ADD"),
            });
        }
    }
    let nothing = samples.pop().expect("the no-op's");
    let mut all = vec![Measured::of("scale", "static no-op", "ADD", "µs", nothing)];
    for ((node, call), samples) in calls.into_iter().zip(samples) {
        let Node { label, calls, .. } = &nodes[node];
        all.push(Measured::of("scale", label, &calls[call].0, "µs", samples));
    }
    all
}

/// Times the tool on nodes with few and with many pods.
pub(crate) fn tool(rounds: u32, short: bool) -> Vec<Measured> {
    const WORDS: [&str; 2] = ["up", "status"];
    crate::say("tool: filling nodes");
    let pods = [5, if short { 1000 } else { 5000 }];
    let releases = Release::all();
    let sites: Vec<(&Release, u32, Site)> = (releases.iter())
        .flat_map(|release| pods.map(|pods| (release, pods)))
        .map(|(release, pods)| {
            let lab = Lab::new("tool", 1);
            let plugin = lab.symroute(release);
            // `filled` adds one more pod.
            (release, pods, Site::filled(lab, plugin, pods - 1))
        })
        .collect();
    let mut samples = vec![WORDS.map(|_| Vec::new()); sites.len()];
    let mut dice = Dice::new();
    for round in 0..rounds {
        crate::progress("tool", round, rounds);
        for turn in dice.order(sites.len() * WORDS.len()) {
            let (at, word) = (turn / WORDS.len(), turn % WORDS.len());
            let (release, _, site) = &sites[at];
            samples[at][word].push(site.timed_tool(&release.tool, WORDS[word]));
        }
    }
    let mut all = Vec::new();
    for ((release, pods, _), samples) in sites.iter().zip(samples) {
        for (word, samples) in WORDS.iter().zip(samples) {
            let label = format!("{pods} pods");
            all.push(Measured::of("tool", &label, &release.call(word), "µs", samples));
        }
    }
    all
}

/// Adds rules like those of kube-proxy in iptables mode: many chains with a jump and a DNAT for
/// each. Returns false if the kernel lacks this variant of iptables.
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

/// `ip` commands for rules by pod address, like those of AWS VPC CNI and others.
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

/// Times many calls at the same moment, on all cores. Measures again while another process adds and
/// deletes links without a pause, so that the kernel's RTNL lock is always held.
pub(crate) fn parallel(rounds: u32) -> Vec<Measured> {
    let (lab, floor) = (Lab::new("many", 1), Lab::new("noop", 1));
    let plugin = lab.symroute(&Release::now());
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
                        thread::sleep(SETTLED);
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

/// Starts `width` calls of a program at the same moment, after the disturber has run on each core.
fn at_once(plugin: &Plugin, lab: &Lab, first: u32, width: u32) -> Vec<f64> {
    let barrier = Barrier::new(width as usize);
    let one = &|pod| {
        barrier.wait();
        plugin.call_here(lab, "ADD", pod)
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    lab.node.run(|| {
        thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| disturber().call_here(lab, "ADD", 0));
            }
        });
        thread::scope(|scope| {
            let start = |pod| scope.spawn(move || one(pod));
            let all: Vec<_> = (first..first + width).map(start).collect();
            all.into_iter().map(|call| call.join().expect("a call")).collect()
        })
    })
}

/// Adds and deletes links in another network namespace until it is dropped. All namespaces share
/// the RTNL lock.
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
        // The loop ends when the file is gone.
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
