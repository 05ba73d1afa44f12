//! Programs in the pod that run while the plugin works.

use super::*;

/// Sends messages that look like the kernel's to every netlink socket that the plugin may have
/// there.
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

/// Waits for a netlink message from another program than the kernel.
const TRUSTING: &str = r"
import socket
own = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
own.bind((2**32 - 4200, 0))
while own.recvfrom(4096)[1][0] == 0:
    pass
";

#[test]
fn forged_messages() {
    let (node, pod) = node_and_pod();
    let before = pod.snapshot(&node);
    let forger = Program::python(&pod, FORGER);
    // A socket that trusts all senders gets such a message, so this test can fail.
    let trusting = ["netns", "exec", pod.ns.name(), "timeout", "20", "python3", "-c", TRUSTING];
    let got = Command::new("ip").args(trusting).output().expect("run Python");
    assert!(got.status.success(), "no forged message has arrived: {got:?}");
    for _ in 0..10 {
        for verb in ["ADD", "CHECK", "DEL"] {
            pod.both(&node, verb);
            let path = pod.path.to_str().expect("UTF-8");
            let ran = node.symroute(&["status", "--netns", path]);
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
    let (node, pod) = node_and_pod();
    let restless = Program::python(&pod, RESTLESS);
    let mut done = 0;
    for _ in 0..8 {
        for verb in ["ADD", "CHECK", "DEL"] {
            for leg in 0..2 {
                let ran = pod.ran(&node, verb, leg);
                assert_error_is_clear(&ran);
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
        pod.both(&node, verb);
    }
    let rules = pod.ns.exec(&["ip", "rule"], "");
    assert!(
        !rules.lines().any(|line| line.starts_with("40") || line.starts_with("399")),
        "{rules}"
    );
    assert!(!pod.has_rules(), "the table");
    assert_no_files(&node, "a calm pod");
}

/// Kills all programs in the pod.
fn stop_all(program: Program, pod: &Plain) {
    drop(program);
    // A program may have started another one before it ended.
    until("no program of the pod's runs", || {
        let left = Command::new("ip").args(["netns", "pids", pod.ns.name()]).output();
        let left = String::from_utf8(left.expect("run ip").stdout).expect("UTF-8");
        for pid in left.lines() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().expect("a process id"));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        left.is_empty()
    });
}
