//! A pod that has prepared its namespace: whatever it does, a call comes to an end, and harms nothing outside.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::plain::{AT_ONCE, BOUND, Plain, assert_fails, assert_no_files, within};
use crate::lab::node::Node;
use crate::lab::plugin::Ran;
use crate::lab::snapshot::Snapshot;

/// A call says so when it can't do its work: with a code, and words for a person.
fn is_clear(ran: &Ran) {
    if ran.success {
        return;
    }
    let error: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
    let has = |key: &str| error[key].as_str().is_some_and(|text| !text.is_empty());
    assert!(error["code"].is_u64() && has("msg"), "{} {}", ran.stdout, ran.stderr);
}

/// A program of the pod's that runs until it is dropped.
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

/// So many lines, each made of its number.
fn lines(count: u32, line: impl Fn(u32) -> String) -> String {
    (0..count).map(line).collect::<Vec<_>>().join("\n") + "\n"
}

/// ADD, CHECK and DEL of both interfaces in this pod, each within the time. Nothing is left, and
/// what the pod has itself is as it was.
fn lives(node: &Node, pod: &Plain, bound: Duration, what: &str) {
    let before = pod.snapshot(node);
    let on_node = Snapshot::take(node);
    for verb in ["ADD", "ADD", "CHECK", "DEL"] {
        for leg in 0..2 {
            let ran = within(bound, &format!("{verb}, {what}"), || pod.ran(node, verb, leg));
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

fn site(role: &str) -> (Node, Plain) {
    let node = Node::new("node");
    let pod = Plain::new(&node, role);
    (node, pod)
}

/// A place of ours is taken by a rule of another program: an error names it, and with "auto" other places are
/// chosen.
#[test]
fn rules_at_our_places() {
    for place in 400..=405 {
        let (node, pod) = site("pod");
        pod.ns.ip(&format!("rule add from 192.0.2.1 lookup 7 priority {place} protocol 99"));
        pod.ns.ip6(&format!("rule add from 2001:db8::1 lookup 7 priority {place} protocol 99"));
        let before = pod.snapshot(&node);
        for leg in 0..2 {
            let ran = within(AT_ONCE, "ADD", || pod.ran(&node, "ADD", leg));
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

/// Every place is taken: nothing can be done, and the error says so.
#[test]
fn rules_at_all_places() {
    let (node, pod) = site("pod");
    let rules: Vec<_> = (1..600)
        .map(|at| format!("rule add from 192.0.2.1 lookup 7 priority {at} protocol 99"))
        .collect();
    pod.ns.ip(&rules.join("\n"));
    let before = pod.snapshot(&node);
    for leg in 0..2 {
        let ran = within(BOUND, "ADD", || pod.ran(&node, "ADD", leg));
        assert_fails(&ran, 7, &["rulePriority"]);
        before.assert_unchanged(&pod.snapshot(&node));
    }
}

/// What looks like ours is ours: it goes, and the pod is served.
#[test]
fn rules_and_routes_that_look_like_ours() {
    let (node, pod) = site("pod");
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

/// Thousands of them.
#[test]
fn many_rules_and_routes_that_look_like_ours() {
    let (node, pod) = site("pod");
    let before = pod.snapshot(&node);
    let rules = lines(5_000, |n| {
        format!(
            "rule add from 10.{}.{}.1 fwmark 0/0x1f00 lookup 47003 priority 405 protocol kernel",
            n >> 8,
            n & 255
        )
    });
    let routes = lines(100_000, |n| {
        format!(
            "route add 11.{}.{}.{}/32 dev net1 table 47009 proto kernel",
            n >> 16,
            n >> 8 & 255,
            n & 255
        )
    });
    within(Duration::from_secs(200), "preparation", || pod.ns.ip(&(rules + &routes)));
    for verb in ["ADD", "DEL"] {
        for leg in 0..2 {
            is_clear(&within(BOUND, verb, || pod.ran(&node, verb, leg)));
        }
    }
    // It may take more than one call.
    within(BOUND, "ADD", || pod.ran(&node, "ADD", 0)).assert_success("ADD");
    within(BOUND, "DEL", || pod.ran(&node, "DEL", 0)).assert_success("DEL");
    before.assert_unchanged(&pod.snapshot(&node));
}

/// A table of our name with other content makes room for ours, and takes nothing else along.
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
        let (node, pod) = site("pod");
        let before = pod.snapshot(&node);
        pod.ns.nft("table inet other { set mine { type mark; elements = { 1, 2 }\n }\n chain every { type filter hook prerouting priority raw; meta mark @mine counter\n }\n }");
        let beside = pod.ns.exec(&["nft", "list", "table", "inet", "other"], "");
        pod.ns.nft(text);
        for verb in ["ADD", "CHECK", "DEL"] {
            for leg in 0..2 {
                let ran = within(BOUND, &format!("{verb}, {what}"), || pod.ran(&node, verb, leg));
                ran.assert_success(&format!("{verb}, {what}"));
            }
        }
        assert_eq!(pod.ns.exec(&["nft", "list", "table", "inet", "other"], ""), beside, "{what}");
        pod.ns.nft("delete table inet other");
        before.assert_unchanged(&pod.snapshot(&node));
    }
}

/// Only the program that has made it may change such a table.
#[test]
fn a_table_with_an_owner() {
    let (node, pod) = site("pod");
    let inside = ["netns", "exec", pod.ns.name(), "nft", "-i"];
    let before = pod.snapshot(&node);
    let child = Command::new("ip").args(inside).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut owner = Program(child.expect("start nft"));
    let stdin = owner.0.stdin.as_mut().expect("stdin was piped");
    stdin.write_all(b"add table inet symroute { flags owner; }\n").expect("tell nft");
    stdin.flush().expect("tell nft");
    while !pod.has_rules() {
        owner.assert_runs();
    }
    let occupied = pod.snapshot(&node);
    for leg in 0..2 {
        let ran = within(AT_ONCE, "ADD", || pod.ran(&node, "ADD", leg));
        assert_fails(&ran, 100, &["table inet symroute"]);
        occupied.assert_unchanged(&pod.snapshot(&node));
        let ran = within(AT_ONCE, "DEL", || pod.ran(&node, "DEL", leg));
        ran.assert_success("DEL");
        occupied.assert_unchanged(&pod.snapshot(&node));
    }
    owner.assert_runs();
    drop(owner);
    while pod.has_rules() {}
    before.assert_unchanged(&pod.snapshot(&node));
    lives(&node, &pod, AT_ONCE, "the owner has gone");
}

/// The pod takes our table away, and puts one of its own in its place, between ADD and DEL. The files of
/// such a pod go when its namespace has gone, with the DEL of another one.
#[test]
fn a_table_that_keeps_a_del_up() {
    let (node, pod) = site("pod");
    pod.both(&node, "ADD");
    pod.ns.nft("delete table inet symroute");
    let inside = ["netns", "exec", pod.ns.name(), "nft", "-i"];
    let child = Command::new("ip").args(inside).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut owner = Program(child.expect("start nft"));
    let stdin = owner.0.stdin.as_mut().expect("stdin was piped");
    stdin.write_all(b"add table inet symroute { flags owner; }\n").expect("tell nft");
    while !pod.has_rules() {
        owner.assert_runs();
    }
    for leg in 0..2 {
        within(AT_ONCE, "DEL", || pod.ran(&node, "DEL", leg)).assert_success("DEL");
    }
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

#[test]
fn many_routes_and_rules_elsewhere() {
    let (node, pod) = site("pod");
    let routes = lines(100_000, |n| {
        format!("route add 11.{}.{}.{}/32 dev far1 table 9", n >> 16, n >> 8 & 255, n & 255)
    });
    let rules = lines(20_000, |n| {
        format!("rule add from 12.{}.{}.1 lookup 9 priority {}", n >> 8, n & 255, 50_000 - n)
    });
    pod.ns.ip(&(routes + &rules));
    for verb in ["ADD", "CHECK", "DEL"] {
        for leg in 0..2 {
            let ran = within(BOUND, verb, || pod.ran(&node, verb, leg));
            ran.assert_success(verb);
        }
    }
    assert!(!pod.has_rules(), "the pod is as it was");
    assert_no_files(&node, "many routes and rules");
}

/// Routes of main are of interest, so each is looked at. Half of them lead by one uplink.
#[test]
fn many_routes_in_main() {
    let (node, pod) = site("pod");
    let before = pod.ns.exec(&["ip", "rule"], "");
    let routes = lines(50_000, |n| {
        format!("route add 11.{}.{}.{}/32 dev net{}", n >> 16, n >> 8 & 255, n & 255, n & 1)
    });
    pod.ns.ip(&routes);
    for verb in ["ADD", "CHECK", "DEL"] {
        for leg in 0..2 {
            let ran = within(BOUND, verb, || pod.ran(&node, verb, leg));
            is_clear(&ran);
            assert!(ran.success || verb == "CHECK", "{verb}: {} {}", ran.stdout, ran.stderr);
        }
    }
    assert_eq!(pod.ns.exec(&["ip", "rule"], ""), before, "rules");
    assert_eq!(
        pod.ns
            .exec(&["sh", "-c", "ip route show table all | grep -c 'table 470' || true"], "")
            .trim(),
        "0"
    );
    assert_no_files(&node, "many routes");
}

#[test]
fn too_many_interfaces() {
    let (node, pod) = site("pod");
    let links: String = lines(520, |n| format!("link add a{n} type veth peer name b{n}"));
    pod.both(&node, "ADD");
    pod.ns.ip(&links);
    let ran = within(AT_ONCE, "ADD", || pod.ran(&node, "ADD", 0));
    assert_fails(&ran, 7, &["1045 interfaces", "1024"]);
    within(AT_ONCE, "CHECK", || pod.ran(&node, "CHECK", 0)).assert_success("CHECK");
    // To go is never refused.
    for leg in 0..2 {
        within(AT_ONCE, "DEL", || pod.ran(&node, "DEL", leg)).assert_success("DEL");
    }
    assert!(!pod.has_rules(), "nothing is left in the pod");
    assert_no_files(&node, "many interfaces");
    let ran = within(AT_ONCE, "ADD", || pod.ran(&node, "ADD", 0));
    assert_fails(&ran, 7, &["1024"]);
    assert!(!pod.has_rules(), "nothing is left in the pod");
    assert_no_files(&node, "many interfaces");
}

/// Names that a shell, `nft` or a terminal would take for something else.
#[test]
fn odd_names() {
    const NAMES: [&str; 12] = [
        "a\"b",
        "-x",
        "--help",
        "!net9",
        "net\u{1b}[2J",
        "$(reboot)",
        "net';x",
        "net*",
        "net%d%s",
        "net\\n",
        "net\u{fc}",
        "net}",
    ];
    let (node, pod) = site("pod");
    let mut made = Vec::new();
    for (n, name) in NAMES.iter().enumerate() {
        // In this form, `ip` takes a name that begins with a dash.
        let argv =
            ["ip", "link", "add", "name", name, "type", "veth", "peer", "name", &format!("p{n}")];
        let ran = Command::new("ip").args(["netns", "exec", pod.ns.name()]).args(argv).output();
        if ran.expect("run ip").status.success() {
            let address = format!("10.8.{n}.1/24");
            pod.ns.exec(&["ip", "addr", "add", &address, "dev", name], "");
            pod.ns.exec(&["ip", "link", "set", "dev", name, "up"], "");
            made.push(*name);
        }
    }
    println!("made: {made:?}");
    assert!(made.len() >= 8, "{made:?}");
    let before = pod.snapshot(&node);
    let set = json!({"scope": "pod", "backend": "nftables"});
    for leg in 0..2 {
        node.call(&pod.call_with(&node, "ADD", leg, &set)).assert_success("ADD");
    }
    let rules = pod.ns.exec(&["ip", "rule"], "");
    assert!(rules.contains("iif net1 "), "{rules}");
    for name in &made {
        assert!(!rules.contains(&format!("iif {name} ")), "{name:?} is an uplink: {rules}");
    }
    for arguments in [
        vec!["status"],
        vec!["status", "--json"],
        vec!["explain", "--from", "10.9.9.9", "--to", "10.7.0.10:80"],
    ] {
        let path = pod.path.to_str().expect("UTF-8");
        let ran = node.symroute(&[&arguments[..], &["--netns", path]].concat());
        assert!(
            !ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'),
            "{arguments:?}: {:?}",
            ran.stdout
        );
        assert!(!ran.stdout.is_empty(), "{arguments:?}: {}", ran.stderr);
    }
    for leg in 0..2 {
        node.call(&pod.call_with(&node, "DEL", leg, &set)).assert_success("DEL");
    }
    before.assert_unchanged(&pod.snapshot(&node));
    let log = std::fs::read_to_string(node.log()).expect("the log");
    assert!(!log.contains('\u{1b}'), "{log}");
}

/// A rule that asks for an interface by a name that no interface could have. In the log it begins no line.
const RULE: &str = r"
import socket, struct
def attr(kind, data):
    return struct.pack('=HH', 4 + len(data), kind) + data + bytes(-len(data) % 4)
body = struct.pack('=BBBBBBBBI', 2, 0, 0, 0, 7, 0, 0, 1, 0)
body += attr(6, struct.pack('=I', 400)) + attr(3, b'a\nERROR\x1b[2J\0') + attr(21, b'c')
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
s.send(struct.pack('=IHHII', 16 + len(body), 32, 0x605, 1, 0) + body)
print(-struct.unpack('=i', s.recv(4096)[16:20])[0], flush=True)
";

#[test]
fn a_name_that_would_be_a_line_of_the_log() {
    let (node, pod) = site("pod");
    pod.ns.exec(&["python3", "-c", RULE], "");
    let rules = pod.ns.exec(&["ip", "-json", "rule"], "");
    assert!(rules.contains("ERROR"), "the rule is there: {rules}");
    assert_fails(&pod.ran(&node, "ADD", 0), 7, &["rulePriority", "ERROR"]);
    let path = pod.path.to_str().expect("UTF-8");
    let file = node.dir.join("config");
    std::fs::write(&file, node.network(&Plain::settings(), None)).expect("write the settings");
    let file = file.to_str().expect("UTF-8");
    let ran = node.symroute(&[
        "explain",
        "--netns",
        path,
        "--from",
        "10.9.9.9",
        "--to",
        "10.7.0.10",
        "--config",
        file,
    ]);
    assert!(!(ran.stdout + &ran.stderr).contains('\u{1b}'), "explain");
    let log = std::fs::read_to_string(node.log()).expect("the log");
    assert!(log.contains("ERROR") && !log.contains('\u{1b}'), "{log}");
    let begins = |line: &&str| !line.starts_with("    ") && !line.starts_with('2');
    assert_eq!(log.lines().find(begins), None, "a line that the pod has written");
}

/// The names of all and of new interfaces: no kernel lets one be called so, or it is no uplink.
#[test]
fn names_of_sysctls() {
    let (node, pod) = site("pod");
    for name in ["all", "default"] {
        let argv =
            ["netns", "exec", pod.ns.name(), "ip", "link", "add", "name", name, "type", "veth"];
        let made = Command::new("ip").args(argv).status().expect("run ip").success();
        println!("an interface called {name}: {made}");
    }
    lives(&node, &pod, AT_ONCE, "such names");
}

/// Sysctls that the pod has set are as it has set them.
#[test]
fn odd_sysctls() {
    for (all, one, other, filter) in
        [("1", "0", "0", "2"), ("0", "1", "0", "1"), ("0", "2", "0", "2"), ("2", "7", "1", "0")]
    {
        let (node, pod) = site("pod");
        pod.ns.sysctl("ipv4/conf/all/src_valid_mark", all);
        pod.ns.sysctl("ipv4/conf/net0/src_valid_mark", one);
        pod.ns.sysctl("ipv4/conf/net1/src_valid_mark", other);
        for name in ["all", "net0", "net1"] {
            pod.ns.sysctl(&format!("ipv4/conf/{name}/rp_filter"), filter);
        }
        pod.ns.sysctl("ipv4/conf/all/arp_filter", "1");
        pod.ns.sysctl("ipv6/conf/net1/disable_ipv6", "1");
        lives(&node, &pod, AT_ONCE, &format!("src_valid_mark {all} {one} {other}"));
    }
}

/// Rules of the pod's own in every hook stay byte for byte.
#[test]
fn rules_of_the_pods_own() {
    use std::fmt::Write as _;
    let (node, pod) = site("pod");
    let mut text = String::new();
    for family in ["inet", "ip", "ip6"] {
        for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
            for at in ["raw", "mangle", "filter"] {
                let _ = writeln!(
                    text,
                    "table {family} own {{ chain {hook}_{at} {{ type filter hook {hook} priority {at}; policy accept; meta mark & 0xff00 == 0x1200 counter accept\n }}\n }}"
                );
            }
        }
        let _ = writeln!(
            text,
            "table {family} own {{ chain jumped {{ ct mark set 0x1\n return\n }}\n set names {{ type ifname; elements = {{ net0, net1 }}\n }}\n }}"
        );
    }
    let _ = writeln!(
        text,
        "table netdev own {{ chain in {{ type filter hook ingress device net0 priority 0; counter\n }}\n }}"
    );
    pod.ns.nft(&text);
    let list = || pod.ns.exec(&["nft", "-s", "-a", "list", "ruleset"], "");
    let before = list();
    let less_ours = |text: &str| -> String {
        let mut kept = String::new();
        let mut ours = false;
        for line in text.lines() {
            ours |=
                line.starts_with("table inet symroute ") || line.starts_with("table arp symroute ");
            if !ours {
                kept.push_str(line);
                kept.push('\n');
            }
            ours &= line != "}";
        }
        kept
    };
    pod.both(&node, "ADD");
    assert_ne!(list(), before, "ours is there");
    assert_eq!(less_ours(&list()), less_ours(&before), "while the pod is served");
    pod.both(&node, "DEL");
    assert_eq!(list(), before, "in the end");
}

/// Sends messages in the kernel's name to every socket that a plugin may have there.
const FORGER: &str = r"
import socket, struct, itertools, os
def message(kind, seq, body=b''):
    return struct.pack('=IHHII', 16 + len(body), kind, 0, seq, 0) + body
sockets = [(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, n), n) for n in (0, 12)]
for s, _ in sockets:
    s.setblocking(False)
error = message(2, 1, struct.pack('=i', -1) + bytes(16))
done = message(3, 1, struct.pack('=i', 0))
print('begun')
def last():
    with open('/proc/loadavg') as f:
        return int(f.read().split()[-1])
while True:
    pid = last()
    for port in itertools.chain(range(pid - 5, pid + 40), range(2**32 - 4200, 2**32 - 4000, 20)):
        for s, n in sockets:
            for seq in range(1, 4):
                for kind, body in ((2, struct.pack('=i', -1) + bytes(16)), (3, struct.pack('=i', 0))):
                    try:
                        s.sendto(message(kind, seq, body), (port, 0))
                    except OSError:
                        pass
";

#[test]
fn forged_messages() {
    let (node, pod) = site("pod");
    let before = pod.snapshot(&node);
    let forger = Program::python(&pod, FORGER);
    // A socket that trusts all senders is misled: so this can fail.
    let misled = || {
        let nft = ["netns", "exec", pod.ns.name(), "nft", "list", "tables"];
        !Command::new("ip").args(nft).output().expect("run nft").status.success()
    };
    assert!((0..200).any(|_| misled()), "no forged message has arrived anywhere");
    for _ in 0..10 {
        for verb in ["ADD", "CHECK", "DEL"] {
            for leg in 0..2 {
                let ran = within(AT_ONCE, verb, || pod.ran(&node, verb, leg));
                ran.assert_success(verb);
            }
            let path = pod.path.to_str().expect("UTF-8");
            let ran = within(AT_ONCE, "status", || node.symroute(&["status", "--netns", path]));
            assert_ne!(ran.code, Some(1), "status: {}{}", ran.stdout, ran.stderr);
            let says = !ran.stdout.contains("not in force") && ran.stdout.contains("net1");
            assert_eq!(says, verb != "DEL", "status: {}{}", ran.stdout, ran.stderr);
        }
    }
    stop_all(forger, &pod);
    before.assert_unchanged(&pod.snapshot(&node));
}

/// Changes addresses, routes, rules, links and tables all the time.
const RESTLESS: &str = r#"
import subprocess, threading
print('begun', flush=True)
def loop(text):
    while True:
        subprocess.run(text, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
lines = [
    'ip addr add 10.7.0.77/24 dev net0; ip addr del 10.7.0.77/24 dev net0',
    'ip link add net7 type veth peer name far7; ip addr add 10.7.7.1/24 dev net7; ip link set net7 up; ip link del net7',
    'printf "route add 10.66.0.0/24 dev net1\\nroute del 10.66.0.0/24 dev net1\\n%.0s" $(seq 200) | ip -force -batch -',
    'printf "rule add from 192.0.2.9 lookup 9 priority 700\\nrule del from 192.0.2.9 lookup 9 priority 700\\n%.0s" $(seq 200) | ip -force -batch -',
    'nft add table inet restless; nft delete table inet restless',
    'ip link set net1 down; ip link set net1 up',
]
for line in lines:
    threading.Thread(target=loop, args=(line,)).start()
"#;

#[test]
fn a_pod_that_changes_all_the_time() {
    let (node, pod) = site("pod");
    let restless = Program::python(&pod, RESTLESS);
    let mut done = 0;
    for _ in 0..8 {
        for verb in ["ADD", "CHECK", "DEL"] {
            for leg in 0..2 {
                let ran = within(BOUND, verb, || pod.ran(&node, verb, leg));
                is_clear(&ran);
                assert!(ran.success || verb != "DEL", "DEL");
                done += usize::from(ran.success);
            }
        }
    }
    println!("{done} of 48 calls succeeded");
    stop_all(restless, &pod);
    let _ = Command::new("ip")
        .args(["-n", pod.ns.name(), "link", "del", "net7"])
        .stderr(Stdio::null())
        .status();
    pod.ns.ip("link set net1 up\naddr replace 10.7.1.10/24 dev net1\naddr replace 2001:db8:7:1::10/64 dev net1 nodad");
    for verb in ["ADD", "CHECK", "DEL"] {
        for leg in 0..2 {
            within(AT_ONCE, verb, || pod.ran(&node, verb, leg)).assert_success(verb);
        }
    }
    let rules = pod.ns.exec(&["ip", "rule"], "");
    assert!(
        !rules.lines().any(|line| line.starts_with("40") || line.starts_with("399")),
        "{rules}"
    );
    assert!(!pod.has_rules(), "the table");
    assert_no_files(&node, "a calm pod");
}

/// Ends all programs of the pod's.
fn stop_all(program: Program, pod: &Plain) {
    drop(program);
    loop {
        let left = Command::new("ip").args(["netns", "pids", pod.ns.name()]).output();
        let left = String::from_utf8(left.expect("run ip").stdout).expect("UTF-8");
        if left.is_empty() {
            return;
        }
        for pid in left.lines() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().expect("a process id"));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
