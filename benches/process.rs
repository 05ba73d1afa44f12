//! What one call costs as a whole process, the way a runtime makes it: ratios over a call that does
//! nothing, all kinds interleaved in one run. Needs root, ip and nft.
//!
//! `cargo bench --bench process [-- ROUNDS]`

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

const PROGRAM: &str = env!("CARGO_BIN_EXE_symroute");
/// Enrolled pods of the "full" node.
const FULL: u32 = 1000;

/// A node and a pod in namespaces of their own, and a directory as the node's `/run/symroute`.
struct Bench {
    node: String,
    pod: String,
    state: String,
}

impl Bench {
    fn new() -> Self {
        let id = std::process::id();
        let bench = Self {
            node: format!("symbench{id}-node"),
            pod: format!("symbench{id}-pod"),
            state: std::env::temp_dir().join(format!("symbench{id}")).display().to_string(),
        };
        fs::create_dir_all(&bench.state).expect("make the state directory");
        fs::create_dir_all("/run/symroute").expect("make the mount point");
        for ns in [&bench.node, &bench.pod] {
            ip(&["netns", "add", ns]);
        }
        let node = bench.node.as_str();
        for line in [
            "link add eth0 type veth peer name peer0",
            "link add eni0 type veth peer name eth0pod",
            "addr add 10.0.0.10/8 dev eth0",
            "link set eth0 up",
            "link set peer0 up",
            "link set eni0 up",
            "link set eth0pod up",
            "route add default via 10.0.0.1",
            "route add 10.99.0.0/16 dev eni0",
        ] {
            let words: Vec<&str> = ["-n", node].into_iter().chain(line.split(' ')).collect();
            ip(&words);
        }
        bench
    }

    /// Moves this process onto the node, so that each call costs one process and nothing else.
    fn enter(&self) {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing)
            .expect("mount privately");
        mount(Some(self.state.as_str()), "/run/symroute", nothing, MsFlags::MS_BIND, nothing)
            .expect("mount the state");
        let node = File::open(format!("/run/netns/{}", self.node)).expect("open the namespace");
        setns(node, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
    }

    /// Runs the program as a runtime does, and gives the time from its start to its end.
    fn call(&self, verb: &str, pod: u32) -> Duration {
        let address = format!("10.99.{}.{}", pod / 250, pod % 250 + 1);
        let input = format!(
            "{{\"cniVersion\":\"1.0.0\",\"name\":\"bench\",\"type\":\"symroute\",\"uplinks\":[\"eth0\"],\
             \"prevResult\":{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"{address}/32\"}}]}}}}"
        );
        let mut command = Command::new(PROGRAM);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("pod{pod}"))
            .env("CNI_NETNS", format!("/run/netns/{}", self.pod))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let begin = Instant::now();
        let mut child = command.spawn().expect("start the program");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("write");
        let status = child.wait().expect("wait");
        let took = begin.elapsed();
        assert!(status.success(), "{verb} of pod {pod}");
        took
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for ns in [&self.node, &self.pod] {
            let _ = Command::new("ip").args(["netns", "del", ns]).status();
        }
        let _ = fs::remove_dir_all(&self.state);
    }
}

fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().expect("run ip");
    assert!(status.success(), "ip {words:?}");
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn main() {
    let rounds = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(200);
    let bench = Bench::new();
    bench.enter();
    // The first ADD makes the node state; this pod stays until the end.
    bench.call("ADD", 0);
    println!(
        "{:>6}  {:>10}  {:>10}  {:>6}  {:>10}  {:>6}",
        "PODS", "VERSION", "ADD", "RATIO", "DEL", "RATIO"
    );
    for full in [1, FULL] {
        for pod in 1..full {
            bench.call("ADD", pod);
        }
        let (mut version, mut add, mut del) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let pod = FULL + round;
            version.push(bench.call("VERSION", pod));
            add.push(bench.call("ADD", pod));
            del.push(bench.call("DEL", pod));
        }
        let (version, add, del) = (median(&mut version), median(&mut add), median(&mut del));
        println!(
            "{full:>6}  {version:>7.0} µs  {add:>7.0} µs  {:>6.2}  {del:>7.0} µs  {:>6.2}",
            add / version,
            del / version
        );
    }
}
