//! Odd names and sysctls, and the pod's own nftables rules.

use super::*;

/// Interface names that a shell, `nft` or a terminal would misread.
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
    let (node, pod) = node_and_pod();
    let mut made = Vec::new();
    for (n, name) in NAMES.iter().enumerate() {
        // In this form `ip` accepts a name that begins with a dash.
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

/// Adds a rule for an interface name that no interface can have. The name must not begin a line of
/// the log.
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
    let (node, pod) = node_and_pod();
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

/// `all` and `default` are sysctl folders that belong to no interface. The kernel refuses them as
/// names of interfaces, new or renamed. So the plugin cannot write a sysctl of all interfaces by
/// mistake.
#[test]
fn names_of_sysctls() {
    let (node, pod) = node_and_pod();
    let ip = |line: &str| {
        let argv = ["-n", pod.ns.name()].into_iter().chain(line.split(' '));
        Command::new("ip").args(argv).output().expect("run ip")
    };
    assert!(ip("link set far1 name fine").status.success(), "another name is free");
    for name in ["all", "default"] {
        for line in
            [format!("link add name {name} type veth"), format!("link set net1 name {name}")]
        {
            let ran = ip(&line);
            let says = String::from_utf8_lossy(&ran.stderr);
            assert!(!ran.status.success() && says.contains("Invalid argument"), "{line}: {says}");
        }
    }
    assert_calls_succeed(&node, &pod, "refused names");
}

/// Sysctls of the pod keep their values.
#[test]
fn odd_sysctls() {
    for (all, one, other, filter) in
        [("1", "0", "0", "2"), ("0", "1", "0", "1"), ("0", "2", "0", "2"), ("2", "7", "1", "0")]
    {
        let (node, pod) = node_and_pod();
        pod.ns.sysctl("ipv4/conf/all/src_valid_mark", all);
        pod.ns.sysctl("ipv4/conf/net0/src_valid_mark", one);
        pod.ns.sysctl("ipv4/conf/net1/src_valid_mark", other);
        for name in ["all", "net0", "net1"] {
            pod.ns.sysctl(&format!("ipv4/conf/{name}/rp_filter"), filter);
        }
        pod.ns.sysctl("ipv4/conf/all/arp_filter", "1");
        pod.ns.sysctl("ipv6/conf/net1/disable_ipv6", "1");
        assert_calls_succeed(&node, &pod, &format!("src_valid_mark {all} {one} {other}"));
    }
}

/// The pod's own rules in every hook stay byte for byte.
#[test]
fn rules_of_the_pods_own() {
    use std::fmt::Write as _;
    let (node, pod) = node_and_pod();
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
