//! `trace` follows real packets: its report of each, and that it leaves nothing behind.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::lab::agent::{program, until};
use crate::lab::backend::Backend;
use crate::lab::flows::{BASELINE, PATIENT};
use crate::lab::netns::Netns;
use crate::lab::not_run::kernel_lacks;
use crate::lab::traffic::{Proto, Server, ask};
use crate::lab::two_nics::{CLIENT, CLIENT6, NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};

const ATTEMPTS: u32 = 5;

/// A running `symroutectl trace` that listens.
struct Trace {
    child: Child,
    /// Text on standard error until the trace was ready.
    said: String,
}

/// The report of a trace.
struct Report {
    code: Option<i32>,
    packets: Vec<Value>,
    summary: Value,
}

impl Trace {
    /// Starts a trace in this namespace, and waits until it listens.
    fn start(ns: &Netns, words: &[&str]) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", ns.name(), &program(), "trace", "--for", "1h"])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the trace");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr was piped"));
        let mut said = String::new();
        while !said.ends_with("ready\n") {
            let read = lines.read_line(&mut said).expect("read stderr");
            assert!(read > 0, "the trace ended: {said}");
        }
        Self { child, said }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        kill(pid, signal).expect("send a signal");
    }

    /// Ends the trace by SIGINT. Returns its exit code and its output.
    fn end(mut self) -> (Option<i32>, String) {
        self.signal(Signal::SIGINT);
        let mut text = String::new();
        let mut stdout = self.child.stdout.take().expect("stdout was piped");
        stdout.read_to_string(&mut text).expect("read stdout");
        (self.child.wait().expect("wait for the trace").code(), text)
    }

    /// Ends a trace with `--json`, and returns its report.
    fn report(self) -> Report {
        assert_eq!(self.said, "ready\n", "it can see everything");
        let (code, text) = self.end();
        let objects = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let mut seen = Report { code, packets: Vec::new(), summary: Value::Null };
        for mut object in objects {
            if object["packet"].is_object() {
                seen.packets.push(object["packet"].take());
            } else {
                seen.summary = object["summary"].take();
            }
        }
        seen
    }
}

/// Whether the kernel has what a trace needs to see everything. Otherwise reports what is missing.
#[track_caller]
fn kernel_can_trace() -> bool {
    let needed = ["events/sock/sk_data_ready", "events/fib", "events/fib6", "options"];
    let missing =
        with_tracefs(|folder| needed.into_iter().find(|name| !folder.join(name).is_dir()));
    if let Some(name) = missing {
        kernel_lacks(&format!("tracefs with {name}"));
    }
    missing.is_none()
}

impl Drop for Trace {
    fn drop(&mut self) {
        // Also runs after `end`, and while a test unwinds.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Report {
    /// The first packet of this direction.
    fn first(&self, direction: &str) -> &Value {
        let found = self.packets.iter().find(|packet| packet["direction"] == direction);
        found.unwrap_or_else(|| panic!("no {direction} in {:#?}", self.packets))
    }
}

/// The trace of the packets that `act` causes. Other tests also cause events: repeats where the kernel
/// had no room for all of them.
fn traced(ns: &Netns, words: &[&str], act: impl Fn()) -> Report {
    for _ in 0..ATTEMPTS {
        let trace = Trace::start(ns, words);
        act();
        let seen = trace.report();
        if seen.summary["notSeen"] == json!([]) {
            return seen;
        }
        println!("once more: {}", seen.summary["notSeen"]);
    }
    panic!("events were lost each time");
}

/// The lines about a packet, as one text.
fn story(packet: &Value) -> String {
    let lines = packet["story"].as_array().expect("a story").iter();
    lines.flat_map(|line| [line.as_str().expect("text"), "\n"]).collect()
}

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// The client asks the host by eth1. Asserts that it is answered or not.
fn host_is_asked(layout: &TwoNics, ip: &str, answered: bool) {
    let deadline = if answered { PATIENT } else { BASELINE };
    let got = ask(&layout.client, Proto::Tcp, address(ip, 10250), deadline);
    assert_eq!(got.is_ok(), answered, "{ip}: {got:?}");
}

#[test]
fn rp_filter_drops_a_request() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    let (node, before) = (&layout.node, Cell::new(0));
    let seen = traced(&node.ns, &["--from", CLIENT, "--to", NODE[1], "--json"], || {
        before.set(node.rp_filter_drops());
        host_is_asked(&layout, NODE[1], false);
    });
    let drops = node.rp_filter_drops() - before.get();
    let request = seen.first("request");
    assert_eq!(
        story(request),
        "came in by eth1, mark 0x0\n\
         table local says: eth1\n\
         the way back to 203.0.113.9: table local says: no route\n\
         the way back to 203.0.113.9: table main says: eth0 via 10.20.0.1\n\
         dropped by rp_filter at eth1\n"
    );
    assert_eq!((&request["cameBy"], &request["dropped"]), (&json!("eth1"), &json!("IP_RPFILTER")));
    assert_eq!(seen.code, Some(4));
    // Each of them, and nothing else.
    assert!(drops > 0 && seen.packets.len() as u64 == drops, "{drops}: {:#?}", seen.packets);
    assert_eq!(seen.summary["rpFilter"], json!({ "eth1": drops }));
    assert!(!layout.node.ns.exec(&["nft", "list", "tables"], "").contains("symroute-trace"));
}

#[test]
fn symroute_answers_by_the_same_nic() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    layout.node.up(&json!({ "uplinks": NICS }));
    for (client, ip) in [(CLIENT, NODE[1]), (CLIENT6, NODE6[1])] {
        let to = address(ip, 10250).to_string();
        let words = ["--from", client, "--to", &to, "--json"];
        let seen = traced(&layout.node.ns, &words, || host_is_asked(&layout, ip, true));
        assert_eq!(seen.code, Some(0), "{ip}: {:#?}", seen.packets);
        let (request, reply) = (seen.first("request"), seen.first("reply"));
        assert_eq!(request["cameBy"], "eth1", "{request:#}");
        for words in ["came in by eth1, mark 0x0\n", " -> 0x200 ", "delivered to the node"] {
            assert!(story(request).contains(words), "{words}: {request:#}");
        }
        if ip == NODE[1] {
            // This is what satisfies strict `rp_filter`.
            let way_back = "the way back to 203.0.113.9: table 47002 says: eth1 via 10.21.0.1\n";
            assert!(story(request).contains(way_back), "{request:#}");
        }
        assert_eq!(
            (&reply["leftBy"], &reply["table"]),
            (&json!("eth1"), &json!(47002)),
            "{reply:#}"
        );
        let told = story(reply);
        let order = [
            "the node sends it, mark 0x0",
            "mark 0x0 -> 0x200 ",
            "table 47002 says: eth1",
            "left by eth1, mark",
        ];
        let places: Vec<_> = order.iter().map(|line| told.find(line)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told}");
        if Backend::of_run() == Backend::Nftables {
            assert!(told.contains("in nftables table inet symroute"), "{told}");
        }
        assert_eq!(seen.summary["elsewhere"], 0, "{:#}", seen.summary);
    }
    layout.node.down();
}

#[test]
fn a_reply_leaves_elsewhere() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    for scope in ["all", "eth0", "eth1"] {
        layout.node.ns.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0");
    }
    for (client, ip) in [(CLIENT, NODE[1]), (CLIENT6, NODE6[1])] {
        let words = ["--from", client, "--to", ip];
        let text = Trace::start(&layout.node.ns, &words);
        let with_json = [&words[..], &["--json"]].concat();
        let seen = traced(&layout.node.ns, &with_json, || host_is_asked(&layout, ip, false));
        let reply = seen.first("reply");
        assert_eq!((&reply["leftBy"], &reply["table"]), (&json!("eth0"), &json!(254)), "{reply:#}");
        assert_eq!(seen.code, Some(4));
        assert!(seen.summary["elsewhere"].as_u64() > Some(0), "{:#}", seen.summary);
        let (code, text) = text.end();
        assert_eq!(code, Some(4));
        for words in ["came in by eth1, mark 0x0", "left by eth0, mark 0x0", "by another interface"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}

/// The client asks the host by eth0 without an answer, while the node has these rules. Returns the
/// output of a trace.
fn refused(layout: &TwoNics, ruleset: &str) -> String {
    layout.node.ns.nft(ruleset);
    let trace = Trace::start(&layout.node.ns, &["--from", CLIENT, "--to", NODE[0]]);
    host_is_asked(layout, NODE[0], false);
    let (code, text) = trace.end();
    assert_eq!(code, Some(4), "{text}");
    text
}

/// Whether a line of the summary counts packets and ends with these words.
fn has_count(text: &str, words: &str) -> bool {
    let counts = |line: &str| line.trim_start().starts_with(|c: char| c.is_ascii_digit());
    text.lines().any(|line| counts(line) && line.ends_with(words))
}

#[test]
fn a_rule_drops_a_request() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    let rules = "table inet fw {
           chain c { counter; counter; meta mark set 0x40; drop; }
           chain input { type filter hook input priority 0; tcp dport 10250 jump c; }
         }";
    let text = refused(&layout, rules);
    let show = "nft -a list chain inet fw c";
    assert_eq!(text.matches(&format!("  \"{show}\" shows the rule\n")).count(), 1, "{text}");
    let shown = layout.node.ns.exec(&show.split(' ').collect::<Vec<_>>(), "");
    for (step, rule) in [("mark 0x0 -> 0x40", "meta mark set 0x00000040"), ("dropped", "drop")] {
        let handle = shown
            .lines()
            .find_map(|line| line.trim().strip_prefix(rule)?.strip_prefix(" # handle "));
        let handle = handle.unwrap_or_else(|| panic!("{rule}: {shown}"));
        let by = format!(
            "  {step} by the rule with handle {handle} of chain c in nftables table inet fw\n"
        );
        assert!(text.contains(&by), "{by}: {text}");
        assert!(step != "dropped" || has_count(&text, by.trim()), "{by}: {text}");
    }
}

#[test]
fn a_policy_drops_a_request() {
    if !kernel_can_trace() {
        return;
    }
    let rules = "table inet fw {
           chain input { type filter hook input priority 0; policy drop; }
         }";
    let text = refused(&two_nics(), rules);
    let dropped = "  dropped by the policy of chain input in nftables table inet fw\n";
    assert!(text.contains(dropped), "{text}");
    assert!(has_count(&text, dropped.trim()), "{text}");
    assert!(!text.contains("shows the rule"), "{text}");
}

/// The pod's gateway does not exist, so the node sends ICMP errors to the pod, and no reply arrives.
#[test]
fn a_gateway_does_not_answer() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node.ns;
    for family in ["ipv4", "ipv6"] {
        node.sysctl(&format!("{family}/neigh/eth1/mcast_solicit"), "1");
        node.sysctl(&format!("{family}/neigh/eth1/retrans_time_ms"), "100");
    }
    node.ip("route replace default via 10.21.0.99 dev eth1 table 101
         route replace default via fe80::99 dev eth1 table 101");
    // The trace sees errors about packets of connections that the node tracks.
    node.nft(
        "table inet tracked {
           chain c { type nat hook postrouting priority 0; }
         }",
    );
    for (client, pod) in [(CLIENT, POD[1]), (CLIENT6, POD6[1])] {
        let words = ["--from", client, "--to", pod];
        let text = Trace::start(node, &words);
        let with_json = [&words[..], &["--json"]].concat();
        let seen = traced(node, &with_json, || {
            let got = ask(&layout.client, Proto::Tcp, address(pod, 8080), BASELINE);
            assert!(got.is_err(), "{got:?}");
        });
        let error = seen.first("error");
        let said =
            format!("ICMP error from the node to {pod}: its packet could not be delivered\n");
        assert!(story(error).starts_with(&said), "{error:#}");
        assert_eq!(error["leftBy"], "enipod1", "{error:#}");
        assert_eq!(seen.code, Some(4), "{:#}", seen.summary);
        assert!(seen.summary["undelivered"][pod].as_u64() > Some(0), "{:#}", seen.summary);
        let left = seen.summary["leftBy"].as_array().expect("a list");
        assert!(left.iter().all(|left| left["interface"] == "eth1"), "{:#}", seen.summary);
        let (code, text) = text.end();
        assert_eq!(code, Some(4), "{text}");
        assert!(text.contains(&format!("  {said}")), "{text}");
        assert!(!text.contains("to the client left by enipod1"), "{text}");
    }
}

/// A pod's answers pass through the node, and meet none of its sockets.
#[test]
fn a_pod_answers_over_udp() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let to = address(POD[1], 8080);
    let words = ["--from", CLIENT, "--to", &to.to_string(), "--proto", "udp", "--json"];
    let seen = traced(&node.ns, &words, || {
        ask(&layout.client, Proto::Udp, to, PATIENT).expect("an answer");
    });
    let way = |packet: &Value| [packet["cameBy"].clone(), packet["leftBy"].clone()];
    let (request, reply) = (seen.first("request"), seen.first("reply"));
    assert_eq!(way(request), ["eth1", "enipod1"], "{request:#}");
    assert_eq!(way(reply), ["enipod1", "eth1"], "{reply:#}");
    assert_eq!((&reply["protocol"], &reply["table"]), (&json!("udp"), &json!(47002)), "{reply:#}");
    assert_eq!(seen.code, Some(0), "{:#?}", seen.packets);
    node.down();
}

/// The pod's reply has another source than what the client called, until it is translated back.
#[test]
fn a_node_port() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    node.ns.nft(&format!(
        "table ip services {{
           chain to_pod {{
             type nat hook prerouting priority dstnat;
             ip daddr {} tcp dport 30080 dnat to {}:8080
           }}
         }}",
        NODE[1], POD[0]
    ));
    node.up(&json!({ "uplinks": NICS }));
    let to = address(NODE[1], 30080);
    let words = ["--from", CLIENT, "--to", &to.to_string(), "--json"];
    let seen = traced(&node.ns, &words, || {
        let answer = ask(&layout.client, Proto::Tcp, to, PATIENT).expect("an answer");
        assert_eq!(answer.who, "pod0");
    });
    let (request, reply) = (seen.first("request"), seen.first("reply"));
    assert_eq!(request["dnatTo"], "10.20.0.50:8080", "{request:#}");
    assert!(story(request).contains("DNATed to 10.20.0.50:8080\n"), "{request:#}");
    assert!(story(request).contains("left by enipod0"), "{request:#}");
    assert_eq!(
        (&reply["cameBy"], &reply["leftBy"]),
        (&json!("enipod0"), &json!("eth1")),
        "{reply:#}"
    );
    assert!(story(reply).contains(&format!("SNATed to {to}\n")), "{reply:#}");
    assert_eq!(seen.code, Some(0), "{:#?}", seen.packets);
    node.down();
}

/// Another client, another port, and another trace: each sees its own.
#[test]
fn only_the_flow_is_seen() {
    if !kernel_can_trace() {
        return;
    }
    let mut layout = two_nics();
    let other = layout.router.host("other", &["203.0.113.77"]);
    layout.router.check_sources(&NICS);
    let second = Server::start(&layout.node.ns, Proto::Tcp, 10251, "second");
    let by = |client: &str, port: u16| {
        let to = address(NODE[0], port).to_string();
        Trace::start(&layout.node.ns, &["--from", client, "--to", &to, "--json"])
    };
    let traces = [by(CLIENT, 10250), by(CLIENT, 10251), by("203.0.113.77", 10250)];
    let nothing = by(CLIENT, 4);
    for (client, port) in [(&layout.client, 10250), (&layout.client, 10251), (&other, 10250)] {
        ask(client, Proto::Tcp, address(NODE[0], port), PATIENT).expect("an answer");
    }
    let ends = [(CLIENT, 10250), (CLIENT, 10251), ("203.0.113.77", 10250)];
    for (trace, (client, port)) in traces.into_iter().zip(ends) {
        let seen = trace.report();
        assert_eq!(seen.code, Some(0), "{:#?}", seen.packets);
        let server = address(NODE[0], port).to_string();
        assert!(seen.packets.len() > 4, "a connection: {:#?}", seen.packets);
        for packet in &seen.packets {
            let side =
                if packet["direction"] == "request" { ["from", "to"] } else { ["to", "from"] };
            let [from, to] = side.map(|key| packet[key].as_str().expect("text"));
            assert!(from.starts_with(&format!("{client}:")) && to == server, "{packet:#}");
        }
    }
    let seen = nothing.report();
    assert_eq!((seen.code, seen.packets.len()), (Some(5), 0));
    drop(second);
}

/// Runs `work` with the path of a mounted tracefs, in a mount namespace that ends with its thread. The
/// folder is empty where the kernel has no tracefs.
fn with_tracefs<T: Send>(work: impl FnOnce(&Path) -> T + Send) -> T {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let (none, root) = (None::<&str>, "/sys/kernel/tracing");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("be private");
        let _ = mount(Some("tracefs"), root, Some("tracefs"), MsFlags::empty(), none);
        work(Path::new(root))
    };
    std::thread::scope(|scope| scope.spawn(inside).join().expect("no panic"))
}

#[test]
fn a_killed_trace_leaves_nothing() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    let ns = &layout.node.ns;
    let words = ["--from", CLIENT, "--to", NODE[1], "--json"];
    let living = Trace::start(ns, &words);
    let mut killed = Trace::start(ns, &words);
    let tables = || ns.exec(&["nft", "list", "tables"], "").matches("symroute-trace-").count();
    // `ip` becomes the trace, so the process is the same.
    let of = |pid: u32| format!("symroute-{pid}-");
    let instances = || {
        with_tracefs(|folder| {
            let found = fs::read_dir(folder.join("instances")).expect("list instances");
            let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
            found.map(|entry| name(entry).to_string_lossy().into_owned()).collect::<Vec<_>>()
        })
    };
    let has = |pid: u32| instances().iter().any(|name| name.starts_with(&of(pid)));
    let (living_pid, killed_pid) = (living.child.id(), killed.child.id());
    assert_eq!((tables(), has(living_pid), has(killed_pid)), (2, true, true));
    host_is_asked(&layout, NODE[1], false);
    killed.signal(Signal::SIGKILL);
    killed.child.wait().expect("wait for the trace");
    until("the killed trace's table and instance have gone", || tables() == 1 && !has(killed_pid));
    assert!(has(living_pid), "and nothing else");
    // The next trace removes what a killed one left.
    let lost = with_tracefs(|folder| {
        let lost = folder.join("instances/symroute-1-1");
        fs::create_dir(&lost).expect("make an instance");
        lost.file_name().map(|name| name.to_string_lossy().into_owned())
    });
    let next = Trace::start(ns, &words);
    assert!(!instances().contains(&lost.expect("a name")), "the next trace removes what was left");
    assert!(has(living_pid), "and nothing else");
    drop(killed);
    host_is_asked(&layout, NODE[1], false);
    let next_pid = next.child.id();
    let first = living.report();
    assert!(first.packets.len() > next.report().packets.len(), "the first one went on");
    assert_eq!((tables(), has(living_pid), has(next_pid)), (0, false, false));
}

/// An end by a signal or by time, and words that can't be.
#[test]
fn how_it_ends() {
    if !kernel_can_trace() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    let flow = ["trace", "--from", CLIENT, "--to", NODE[1]];
    let ran = node.symroute(&[&flow[..], &["--for", "100ms"]].concat());
    assert_eq!(ran.code, Some(5), "{}", ran.stderr);
    assert!(
        ran.stdout.starts_with("no packet seen in 100ms: did the client send?"),
        "{}",
        ran.stdout
    );
    assert_eq!(ran.stderr, "ready\n");
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut trace = Trace::start(&node.ns, &flow[1..]);
        trace.signal(signal);
        assert_eq!(trace.child.wait().expect("wait for the trace").code(), Some(5), "{signal}");
    }
    let ran = node.symroute(&["trace", "--from", CLIENT, "--to", NODE6[1]]);
    assert!(
        ran.code == Some(1) && ran.stderr.contains("one is IPv4 and the other IPv6"),
        "{}",
        ran.stderr
    );
    assert!(!node.ns.exec(&["nft", "list", "tables"], "").contains("symroute-trace"));
}
