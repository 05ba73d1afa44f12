//! A pod that has prepared its network namespace. Whatever it does, each call ends and harms
//! nothing outside.

mod many;
mod odd;
mod programs;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::plain::{Plain, assert_fails, assert_no_files, node_and_pod};
use crate::lab::agent::until;
use crate::lab::node::Node;
use crate::lab::plugin::Ran;
use crate::lab::snapshot::Snapshot;

/// Asserts that a failed call has an error with a code and a text.
fn assert_error_is_clear(ran: &Ran) {
    if ran.success {
        return;
    }
    let error: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
    let has = |key: &str| error[key].as_str().is_some_and(|text| !text.is_empty());
    assert!(error["code"].is_u64() && has("msg"), "{} {}", ran.stdout, ran.stderr);
}

/// A program in the pod that runs until it is dropped.
struct Program(Child);

impl Program {
    /// Runs a Python program in the pod, and waits for its first line.
    fn python(pod: &Plain, text: &str) -> Self {
        let inside = ["netns", "exec", pod.ns.name(), "python3", "-u", "-c", text];
        let child = Command::new("ip").args(inside).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("start the program");
        let mut line = String::new();
        let out = child.stdout.take().expect("stdout was piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("a line");
        Self(child)
    }

    fn assert_runs(&mut self) {
        assert!(self.0.try_wait().expect("ask for the program").is_none(), "the program runs");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This many lines, each made of its number.
fn lines(count: u32, line: impl Fn(u32) -> String) -> String {
    (0..count).map(line).collect::<Vec<_>>().join("\n") + "\n"
}

/// Asserts that ADD, CHECK and DEL of both interfaces succeed in this pod. Nothing is left, and the
/// pod's own state is as before.
fn assert_calls_succeed(node: &Node, pod: &Plain, what: &str) {
    let before = pod.snapshot(node);
    let on_node = Snapshot::take(node);
    for verb in ["ADD", "ADD", "CHECK", "DEL"] {
        for leg in 0..2 {
            let ran = pod.ran(node, verb, leg);
            ran.assert_success(&format!("{verb}, {what}"));
            if verb != "DEL" {
                assert!(pod.has_rules(), "{verb}, {what}: the pod is served");
                on_node.assert_unchanged_but_files(&Snapshot::take(node));
            }
        }
    }
    before.assert_unchanged(&pod.snapshot(node));
    on_node.assert_unchanged(&Snapshot::take(node));
}

/// A rule of another program has one of symroute's priorities. The error names it, and with
/// `"auto"` symroute chooses other priorities.
#[test]
fn rules_at_our_places() {
    for place in 400..=405 {
        let (node, pod) = node_and_pod();
        pod.ns.ip(&format!("rule add from 192.0.2.1 lookup 7 priority {place} protocol 99"));
        pod.ns.ip6(&format!("rule add from 2001:db8::1 lookup 7 priority {place} protocol 99"));
        let before = pod.snapshot(&node);
        for leg in 0..2 {
            let ran = pod.ran(&node, "ADD", leg);
            assert_fails(&ran, 7, &["rulePriority", &format!("at {place}"), "set rulePriority to"]);
            before.assert_unchanged(&pod.snapshot(&node));
        }
        let set = json!({"scope": "pod", "backend": "nftables", "uplinks": ["net*"], "rulePriority": "auto"});
        for verb in ["ADD", "CHECK", "DEL"] {
            for leg in 0..2 {
                let ran = node.call(&pod.call_with(&node, verb, leg, &set));
                ran.assert_success(&format!("{verb}, a rule at {place}"));
            }
        }
        before.assert_unchanged(&pod.snapshot(&node));
    }
}

/// Rules of other programs have all priorities, so the ADD fails with an error.
#[test]
fn rules_at_all_places() {
    let (node, pod) = node_and_pod();
    let rules: Vec<_> = (1..600)
        .map(|at| format!("rule add from 192.0.2.1 lookup 7 priority {at} protocol 99"))
        .collect();
    pod.ns.ip(&rules.join("\n"));
    let before = pod.snapshot(&node);
    for leg in 0..2 {
        let ran = pod.ran(&node, "ADD", leg);
        assert_fails(&ran, 7, &["rulePriority"]);
        before.assert_unchanged(&pod.snapshot(&node));
    }
}

/// Rules and routes that look like symroute's count as its own: ADD removes them and serves the
/// pod.
#[test]
fn rules_and_routes_that_look_like_ours() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    pod.ns.ip("rule add fwmark 0x300/0xf00 lookup 47009 priority 402 protocol kernel
         rule add from 192.0.2.1 fwmark 0/0x1f00 lookup 47003 priority 405 protocol kernel
         rule add to 192.0.2.0/24 fwmark 0/0x1f00 goto 405 priority 403 protocol kernel
         rule add fwmark 0/0x1f00 goto 403 priority 400 protocol kernel
         route add 192.0.2.0/24 dev net1 table 47002 proto kernel
         route add default dev net1 table 47009 proto kernel");
    pod.both(&node, "ADD");
    pod.both(&node, "CHECK");
    pod.both(&node, "DEL");
    before.assert_unchanged(&pod.snapshot(&node));
}

/// symroute replaces a table of its name with other content, and leaves everything else alone.
#[test]
fn a_table_of_our_name() {
    let elements = lines(30_000, |n| format!("10.{}.{}.{},", n >> 16, n >> 8 & 255, n & 255));
    let many = format!(
        "table inet symroute {{ set big {{ type ipv4_addr; elements = {{ {elements} }}
 }}
         set owned4 {{ type ipv4_addr; elements = {{ {elements} }}
 }}
 }}"
    );
    for (what, text) in [
        (
            "a chain",
            "table inet symroute { chain in_0 { drop\n }\n chain x { type filter hook input priority 0; jump in_0\n }\n }",
        ),
        (
            "a dormant table",
            "table inet symroute { flags dormant; chain x { type filter hook input priority 0; drop\n }\n }",
        ),
        (
            "a map of verdicts",
            "table inet symroute { chain y { }\n map x { type ipv4_addr : verdict; elements = { 192.0.2.1 : jump y }\n }\n }",
        ),
        (
            "odd kinds",
            "table inet symroute { counter c { }\n quota q { 25 mbytes; }\n set s { type ipv4_addr . inet_service; flags interval, timeout; elements = { 192.0.2.0/24 . 80-90 timeout 1h }\n }\n chain z { type filter hook forward priority 0; counter name c quota name q; ip saddr . tcp dport @s drop\n }\n }",
        ),
        ("many elements", &many),
        (
            "a table of arp",
            "table arp symroute { chain x { type filter hook input priority 0; drop\n }\n }",
        ),
    ] {
        let (node, pod) = node_and_pod();
        let before = pod.snapshot(&node);
        pod.ns.nft("table inet other { set mine { type mark; elements = { 1, 2 }\n }\n chain every { type filter hook prerouting priority raw; meta mark @mine counter\n }\n }");
        let beside = pod.ns.exec(&["nft", "list", "table", "inet", "other"], "");
        pod.ns.nft(text);
        for verb in ["ADD", "CHECK", "DEL"] {
            for leg in 0..2 {
                let ran = pod.ran(&node, verb, leg);
                ran.assert_success(&format!("{verb}, {what}"));
            }
        }
        assert_eq!(pod.ns.exec(&["nft", "list", "table", "inet", "other"], ""), beside, "{what}");
        pod.ns.nft("delete table inet other");
        before.assert_unchanged(&pod.snapshot(&node));
    }
}

/// Starts a program in the pod that owns the table of symroute's name, and waits for the table.
fn own_the_table(pod: &Plain) -> Program {
    let inside = ["netns", "exec", pod.ns.name(), "nft", "-i"];
    let child = Command::new("ip").args(inside).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut owner = Program(child.expect("start nft"));
    let stdin = owner.0.stdin.as_mut().expect("stdin was piped");
    stdin.write_all(b"add table inet symroute { flags owner; }\n").expect("tell nft");
    until("the owner's table is there", || {
        owner.assert_runs();
        pod.has_rules()
    });
    owner
}

/// Only the program that created such a table may change it.
#[test]
fn a_table_with_an_owner() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    let mut owner = own_the_table(&pod);
    let occupied = pod.snapshot(&node);
    for leg in 0..2 {
        let ran = pod.ran(&node, "ADD", leg);
        assert_fails(&ran, 100, &["table inet symroute"]);
        occupied.assert_unchanged(&pod.snapshot(&node));
        let ran = pod.ran(&node, "DEL", leg);
        ran.assert_success("DEL");
        occupied.assert_unchanged(&pod.snapshot(&node));
    }
    owner.assert_runs();
    drop(owner);
    until("the owner's table has gone", || !pod.has_rules());
    before.assert_unchanged(&pod.snapshot(&node));
    assert_calls_succeed(&node, &pod, "the owner has gone");
}

/// Between ADD and DEL the pod replaces symroute's table by one that only it may change. After its
/// namespace is gone, the DEL of another pod removes its files.
#[test]
fn a_table_that_keeps_a_del_up() {
    let (node, pod) = node_and_pod();
    pod.both(&node, "ADD");
    pod.ns.nft("delete table inet symroute");
    let owner = own_the_table(&pod);
    pod.both(&node, "DEL");
    let rules = pod.ns.exec(&["ip", "rule"], "");
    assert_eq!(rules.lines().count(), 3, "all else has gone: {rules}");
    let other = Plain::new(&node, "other");
    other.ran(&node, "ADD", 0).assert_success("ADD");
    drop(owner);
    std::fs::remove_file(&pod.path).expect("remove the path");
    drop(pod);
    other.ran(&node, "DEL", 0).assert_success("DEL");
    assert_no_files(&node, "a pod that kept its DEL up");
}
