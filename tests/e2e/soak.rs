//! Pods come and go for as long as wanted, by both NICs, while connections go on and the agent runs. No connection
//! fails, nothing grows, and nothing is left at the end.
//!
//! `tests/soak` runs it for half an hour; the same for some seconds is a test like others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::plugin_object;
use crate::lab::agent::{Agent, until};
use crate::lab::load::Load;
use crate::lab::node::{Node, Pod};
use crate::lab::proof::Proof;
use crate::lab::traffic::{Proto, Server, ask};
use crate::lab::two_nics::{CLIENT, NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};

/// Number of pods that start or end at one time.
const WORKERS: u32 = 8;
const PATIENT: Duration = Duration::from_secs(8);

#[derive(Clone, Copy)]
enum Length {
    /// How often the test looks at each pod.
    Rounds(u32),
    For(Duration),
}

#[test]
fn for_some_seconds() {
    soak(40, Length::Rounds(6));
}

#[test]
#[ignore = "tests/soak runs it: SYMROUTE_SOAK names how many minutes it takes"]
fn for_as_long_as_asked() {
    let minutes = env::var("SYMROUTE_SOAK").ok().and_then(|text| text.parse::<u64>().ok());
    let minutes = minutes.expect("SYMROUTE_SOAK is a number of minutes");
    soak(200, Length::For(Duration::from_secs(60 * minutes)));
}

fn settings() -> Value {
    json!({"uplinks": NICS, "log": {"level": "warn"}})
}

fn soak(pods: u32, length: Length) {
    let mut layout = two_nics();
    for number in 0..pods {
        for address in addresses(number) {
            layout.router.assign(nic(number), &address);
        }
    }
    layout.router.check_sources(&NICS);
    let (layout, node) = (&layout, &layout.node);
    let proof = Proof::begin(node, &layout.router);
    let config = plugin_object(node, &settings());
    let agent = Agent::ready(node, &["--config", &config, "--resync", "5s"]);
    for pod in &layout.pods {
        node.add(&settings(), pod);
    }
    let loads = loads(layout);
    let (counts, mut samples, mut answers) = (Counts::default(), Vec::new(), 0);
    let (acts, acted) = channel();
    thread::scope(|scope| {
        let _all = EndsAll(&counts.has_failed);
        for worker in 0..WORKERS {
            let numbers: Vec<u32> = (worker..pods).step_by(WORKERS as usize).collect();
            let (acts, counts) = (acts.clone(), &counts);
            scope.spawn(move || churn(layout, &numbers, length, counts, &acts));
        }
        drop(acts);
        // One look at everything for each complete turnover of pods.
        while acted.iter().take(pods as usize).count() == pods as usize {
            answers +=
                loads.iter().map(|load| load.assert_goes_on("pods came and went")).sum::<usize>();
            samples.push(Sample::take(node, &agent));
            println!("soak: {counts:?}, {answers} answers, {:?}", samples.last());
        }
    });
    answers += loads.iter().map(|load| load.assert_goes_on("all pods had gone")).sum::<usize>();
    println!("soak: {counts:?}, {answers} answers of connections that went on, 0 failed");
    assert_flat(&samples);
    until("the agent knows of no other pod", || agent.metric("symroute_pods") == 2);
    drop(loads);
    for pod in &layout.pods {
        node.del(&settings(), pod);
    }
    assert!(agent.end(Signal::SIGTERM).success());
    node.down();
    proof.assert_as_before();
}

/// Connections that have to go on, by both NICs: kept ones, and new ones all the time.
fn loads(layout: &TwoNics) -> [Load; 6] {
    let client = &layout.client;
    [
        Load::kept(client, NODE[1], 10250),
        Load::kept(client, NODE6[0], 10250),
        Load::kept(client, POD[0], 8080),
        Load::kept(client, POD6[1], 8080),
        Load::anew(client, NODE[1], 10250),
        Load::anew(client, POD[0], 8080),
    ]
}

fn nic(number: u32) -> &'static str {
    NICS[number as usize % 2]
}

/// The addresses of a pod, of the subnets of its NIC.
fn addresses(number: u32) -> [String; 2] {
    let (net, host) = (20 + number % 2, 60 + number / 2);
    [format!("10.{net}.0.{host}"), format!("2001:db8:{net}::{host}:1")]
}

/// Counts of what the test has done so far.
#[derive(Debug, Default)]
struct Counts {
    came: AtomicU64,
    went: AtomicU64,
    checked: AtomicU64,
    asked: AtomicU64,
    has_failed: AtomicBool,
}

/// Ends all threads where one fails.
struct EndsAll<'a>(&'a AtomicBool);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn one_more(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

struct Living {
    pod: Pod,
    _server: Server,
}

/// Starts and ends these pods, and asks the living ones. Reports each act.
fn churn(layout: &TwoNics, numbers: &[u32], length: Length, counts: &Counts, acts: &Sender<()>) {
    let _all = EndsAll(&counts.has_failed);
    let (mut living, begin) = (BTreeMap::<u32, Living>::new(), Instant::now());
    let goes_on = |round| match length {
        Length::Rounds(rounds) => round < rounds,
        Length::For(time) => begin.elapsed() < time,
    };
    let mut round = 0;
    while goes_on(round) && !counts.has_failed.load(Ordering::Relaxed) {
        for (at, &number) in (0_u32..).zip(numbers) {
            // A third of them stays as it is, another one each time.
            let stays = (at + round) % 3 == 0;
            match living.remove(&number) {
                Some(one) if stays => {
                    call(layout, "CHECK", &one.pod, counts);
                    assert_served(layout, number, counts);
                    living.insert(number, one);
                    continue;
                }
                None if stays => continue,
                Some(one) => end_pod(layout, number, &one, counts),
                None => drop(living.insert(number, start_pod(layout, number, counts))),
            }
            // After a failure elsewhere nothing receives the report.
            let _ = acts.send(());
        }
        round += 1;
    }
    for (number, one) in living {
        end_pod(layout, number, &one, counts);
    }
}

/// Ends a pod as a runtime does: a DEL of symroute, then the primary plugin's, which removes the
/// interface at once. If only the namespace went, the kernel would remove the interface some time
/// later.
fn end_pod(layout: &TwoNics, number: u32, one: &Living, counts: &Counts) {
    call(layout, "DEL", &one.pod, counts);
    layout.node.ns.ip(&format!("link del enis{number}"));
}

/// Starts a pod as a runtime does: a namespace and an interface, then an ADD.
fn start_pod(layout: &TwoNics, number: u32, counts: &Counts) -> Living {
    let addresses = addresses(number);
    let name = format!("s{number}");
    let pod = layout.node.pod(&name, &addresses.each_ref().map(String::as_str));
    // All namespaces of a machine share 1024 neighbours, but for permanent ones, and many tests may run.
    let mac = pod.ns.mac("eth0");
    let permanent =
        |address| format!("neigh replace {address} dev eni{name} lladdr {mac} nud permanent\n");
    layout.node.ns.ip(&addresses.each_ref().map(permanent).concat());
    let server = Server::start(&pod.ns, Proto::Tcp, 8080, &name);
    call(layout, "ADD", &pod, counts);
    let one = Living { pod, _server: server };
    assert_served(layout, number, counts);
    one
}

fn call(layout: &TwoNics, verb: &str, pod: &Pod, counts: &Counts) {
    let call = layout.node.call_of(verb, &settings(), pod);
    layout.node.call(&call).assert_success(verb);
    one_more(match verb {
        "ADD" => &counts.came,
        "DEL" => &counts.went,
        _ => &counts.checked,
    });
}

/// The client gets an answer from the pod, by IPv4 and IPv6.
fn assert_served(layout: &TwoNics, number: u32, counts: &Counts) {
    for address in addresses(number) {
        let to = SocketAddr::new(address.parse().expect("an address"), 8080);
        let answer = ask(&layout.client, Proto::Tcp, to, PATIENT);
        let answer = answer.unwrap_or_else(|error| panic!("pod {number}, {to}: {error}"));
        assert_eq!(answer.who, format!("s{number}"));
        assert!(answer.seen_as.is_ipv6() || answer.seen_as.to_string() == CLIENT);
        one_more(&counts.asked);
    }
}

/// Names of what must not grow, and the growth allowed: the agent answers the test's own questions meanwhile.
const MEASURED: [(&str, u64); 7] = [
    ("memory that the agent has allocated, KiB", 1024),
    ("descriptors of the agent", 3),
    ("threads of the agent", 1),
    ("ip rules of the node", 0),
    ("routes of symroute's tables", 0),
    ("words that `nft` and `ipset` print", 0),
    ("files in `/run/symroute`, except those of pods", 1),
];

/// One measurement of what must not grow.
#[derive(Debug)]
struct Sample([u64; MEASURED.len()]);

/// The kernel's state of symroute, as three numbers. Counters such as packets are replaced by a word.
const KERNEL: &str = "{ ip rule; ip -6 rule; } | wc -l
    { ip route show table all; ip -6 route show table all; } | grep -c 'table 470'
    { nft list ruleset; ipset save 2>/dev/null; } | wc -w";

impl Sample {
    fn take(node: &Node, agent: &Agent<'_>) -> Self {
        let proc = format!("/proc/{}", agent.pid());
        let status = fs::read_to_string(format!("{proc}/status")).expect("read the status");
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
            line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
        };
        let count = |folder: &str| fs::read_dir(folder).expect("a folder").count() as u64;
        let kernel = node.ns.exec(&["sh", "-c", KERNEL], "");
        let mut kernel = kernel.lines().map(|word| word.trim().parse().expect("a number"));
        let mut next = || kernel.next().expect("three numbers");
        Self([
            line("RssAnon:"),
            count(&format!("{proc}/fd")),
            line("Threads:"),
            next(),
            next(),
            next(),
            count(node.dir.join("run").to_str().expect("UTF-8")),
        ])
    }
}

/// Asserts that the last third of the measurements is not above the first third.
fn assert_flat(samples: &[Sample]) {
    let third = samples.len() / 3;
    assert!(third > 0, "too few looks: {samples:?}");
    let mut grown = Vec::new();
    println!("| maximum of {} looks | first third | last third |\n|---|---:|---:|", samples.len());
    for (at, (name, allowed)) in MEASURED.into_iter().enumerate() {
        let most = |part: &[Sample]| part.iter().map(|sample| sample.0[at]).max().unwrap_or(0);
        let (first, last) = (most(&samples[..third]), most(&samples[samples.len() - third..]));
        println!("| {name} | {first} | {last} |");
        if last > first + allowed {
            grown.push(format!("{name}: {first}, then {last}"));
        }
    }
    assert!(grown.is_empty(), "{grown:?}");
}

#[test]
#[should_panic(expected = "ip rules of the node: 7, then 8")]
fn one_rule_more_is_seen() {
    let look = |rules| Sample([1000, 18, 2, rules, 18, 2000, 7]);
    assert_flat(&[look(7), look(7), look(8)]);
}
