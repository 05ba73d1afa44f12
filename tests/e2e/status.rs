//! What `status` shows of the uplinks' interfaces: repeatedly, on a terminal, and without root.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::lab::agent::until;
use crate::lab::flows::assert_all_work;
use crate::lab::node::Node;
use crate::lab::plugin::{Call, Ran, TOOL};
use crate::lab::two_nics::{CLIENT, NICS, NODE, two_nics};

fn settings() -> Value {
    json!({ "uplinks": NICS })
}

fn report(node: &Node) -> Value {
    serde_json::from_str(&node.symroute(&["status", "--json"]).stdout).expect("a report")
}

#[test]
fn the_interfaces_of_uplinks() {
    let layout = two_nics();
    let node = &layout.node;
    // Also where nothing is in force.
    node.ns.sysctl("ipv4/conf/all/rp_filter", "0");
    node.ns.sysctl("ipv4/conf/eth1/rp_filter", "2");
    let ran = node.symroute(&["status"]);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    node.up(&settings());
    assert_all_work(&[layout.flow_to_host()]);
    let found = report(node);
    let eth1 = &found["uplinks"][1];
    assert_eq!(eth1["addresses"], json!(["10.21.0.10/24", "2001:db8:21::10/64"]));
    assert_eq!(eth1["link"], json!({"up": true, "carrier": true}));
    let filter = json!({"all": 0, "interface": 2, "inForce": 2, "decidedBy": "interface"});
    assert_eq!(eth1["rpFilter"], filter);
    let mark = json!({"all": 0, "interface": 1, "inForce": 1, "decidedBy": "interface"});
    assert_eq!(eth1["srcValidMark"], mark);
    assert_eq!(eth1["counters"]["connectionsBound"], 1, "{eth1}");
    assert!(eth1["counters"]["packetsSteered"].as_u64() > Some(0), "{eth1}");
    assert_eq!(eth1["counters"]["packetsSteeredPerSecond"], Value::Null, "one look has no rates");
    assert_eq!(found["uplinks"][0]["counters"]["connectionsBound"], 0);
    assert_eq!(found["notSeen"], json!([]));
    let text = node.symroute(&["status"]).stdout;
    let row = text.lines().find(|line| line.starts_with("eth1") && line.contains("/24"));
    let row: Vec<&str> = row.expect(&text).split_whitespace().collect();
    assert_eq!(row[..9], ["eth1", "up", "2", "by", "eth1", "1", "by", "eth1", "1"], "{text}");
    // The cable is pulled.
    layout.router.ns.ip("link set eth1 down");
    until("the signal is lost", || report(node)["uplinks"][1]["link"]["carrier"] == false);
    assert!(node.symroute(&["status"]).stdout.contains("eth1       no carrier"), "{text}");
    node.ns.sysctl("ipv4/conf/all/rp_filter", "1");
    let filter = json!({"all": 1, "interface": 1, "inForce": 1, "decidedBy": "both"});
    assert_eq!(report(node)["uplinks"][0]["rpFilter"], filter);
}

/// A `status --watch` on a node, with its output. `under`: what the command line begins with.
fn watching(node: &Node, under: &[&str], arguments: &[&str]) -> Child {
    let private = "mount --bind \"$0\" /run/symroute && exec \"$@\"";
    fs::create_dir_all("/run/symroute").expect("make /run/symroute");
    Command::new("ip")
        .args(["netns", "exec", node.ns.name(), "sh", "-c", private])
        .arg(node.dir.join("run"))
        .args(under)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start status --watch")
}

fn interrupt(mut child: Child) -> (Option<i32>, String) {
    let pid = Pid::from_raw(child.id().try_into().expect("a process id"));
    kill(pid, Signal::SIGINT).expect("send a signal");
    let mut rest = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut rest).expect("read");
    (child.wait().expect("wait").code(), rest)
}

#[test]
fn rates_for_programs() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&settings());
    let words = [TOOL, "status", "--watch", "--json", "--every", "100ms"];
    let mut child = watching(node, &[], &words);
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        serde_json::from_str::<Value>(&line).expect("one object to a line")
    };
    let bound = |report: &Value| report["uplinks"][1]["counters"]["connectionsBound"].as_u64();
    let rate =
        |report: &Value| report["uplinks"][1]["counters"]["connectionsBoundPerSecond"].as_f64();
    let first = next();
    assert_eq!((bound(&first), rate(&first)), (Some(0), None), "the first look has no rates");
    assert_eq!(rate(&next()), Some(0.0));
    assert_all_work(&[layout.flow_to_host()]);
    let mut seen = next();
    until("the connection is counted", || {
        let is_counted = bound(&seen) == Some(1);
        assert_eq!(rate(&seen) > Some(0.0), is_counted, "a rate is a difference: {seen}");
        if !is_counted {
            seen = next();
        }
        is_counted
    });
    child.stdout = Some(reader.into_inner());
    assert_eq!(interrupt(child).0, Some(0));
}

#[test]
fn reports_follow_each_other_where_there_is_no_terminal() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&settings());
    let mut child = watching(node, &[], &[TOOL, "status", "--watch", "--every", "100ms"]);
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let (mut text, mut reports) = (String::new(), 0);
    while reports < 3 {
        let begin = text.len();
        assert_ne!(reader.read_line(&mut text).expect("a line"), 0, "{text}");
        reports += usize::from(text[begin..].starts_with("symroute is in force"));
    }
    child.stdout = Some(reader.into_inner());
    let (code, rest) = interrupt(child);
    text += &rest;
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains('\x1b'), "neither colours nor a screen: {text}");
    assert_eq!(
        text.matches("\n\nsymroute is in force").count() + 1,
        text.matches("symroute is in force").count()
    );
    assert!(text.contains("(0.0/s)"), "{text}");
    // `status --watch` ends when its reader goes away.
    let mut child = watching(node, &[], &[TOOL, "status", "--watch", "--every", "100ms"]);
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("wait").code(), Some(0));
}

/// Returns the bytes that a terminal of the program `script` received. ^C ends the command.
fn on_terminal(node: &Node, variables: &str) -> (Option<i32>, String) {
    // With "exec" every shell becomes the command; one that waits for it would end by ^C too.
    let command = format!("exec env {variables} {TOOL} status --watch --every 100ms");
    let mut child = watching(node, &["script", "-qec"], &[&command, "/dev/null"]);
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = child.stdout.take().expect("a pipe");
    let (mut sent, mut part) = (Vec::new(), [0; 4096]);
    while String::from_utf8_lossy(&sent).matches("\x1b[H\x1b[J").count() < 3 {
        let count = output.read(&mut part).expect("read");
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&sent));
        sent.extend_from_slice(&part[..count]);
    }
    input.write_all(b"\x03").expect("send ^C");
    output.read_to_end(&mut sent).expect("read");
    (child.wait().expect("wait").code(), String::from_utf8_lossy(&sent).into_owned())
}

#[test]
fn a_terminal_is_given_back() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&settings());
    let (code, sent) = on_terminal(node, "");
    assert_eq!(code, Some(0), "{sent:?}");
    // Another screen without a cursor, renewed, and at the end everything as before.
    assert!(sent.starts_with("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[J"), "{sent:?}");
    assert!(sent.ends_with("\x1b[?7h\x1b[?25h\x1b[?1049l"), "{sent:?}");
    assert!(sent.contains("\x1b[32msymroute is in force\x1b[0m"), "{sent:?}");
    let (_, sent) = on_terminal(node, "NO_COLOR=1");
    assert!(sent.contains("symroute is in force") && !sent.contains("\x1b[32m"), "{sent:?}");
}

/// Calls a copy of the tool, which every user may read, as a user without root.
fn as_user(node: &Node, arguments: &[&str]) -> Ran {
    let copy = node.dir.join("symroutectl");
    if !copy.exists() {
        fs::copy(TOOL, &copy).expect("copy the tool");
    }
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let copy = copy.to_str().expect("UTF-8");
    node.call_program(&[&user[..], &[copy]].concat(), &Call::tool(arguments))
}

/// Users without root may ask the kernel for routes, and read neither nftables nor the state.
#[test]
fn a_user_without_root_is_told_what_is_not_seen() {
    let layout = two_nics();
    let node = &layout.node;
    let unseen = "cannot see the rules of nftables and iptables: ";
    let explain = ["explain", "--from", CLIENT, "--to", NODE[1], "--in", "eth1"];
    let ran = as_user(node, &explain);
    assert_eq!(ran.code, Some(4), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("strict rp_filter drops the request at eth1"), "{}", ran.stdout);
    assert!(ran.stdout.contains(unseen) && ran.stdout.contains("run as root"), "{}", ran.stdout);
    let ran = as_user(node, &["doctor", "--for", "0s"]);
    assert!(ran.stdout.contains(unseen), "{}{}", ran.stdout, ran.stderr);
    let ran = as_user(node, &["status"]);
    assert_eq!(ran.code, Some(3), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains(unseen), "{}", ran.stdout);

    // What is in force is known by the state, which only root may read.
    node.up(&settings());
    for words in [&["status"][..], &["doctor", "--for", "0s"], &explain] {
        let ran = as_user(node, words);
        assert_eq!(ran.code, Some(1), "{words:?}: {}{}", ran.stdout, ran.stderr);
        let said = &ran.stderr;
        assert!(said.contains("/run/symroute") && said.contains("run as root"), "{said}");
    }
}
