//! Clients and files that could starve the agent. It goes on and takes no more memory or
//! descriptors.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;

use serde_json::json;

use crate::agent::{answers, conflist};
use crate::lab::agent::{Agent, LISTENS, until};
use crate::lab::damage::Damage;
use crate::lab::node::Node;
use crate::lab::process::{capabilities, memory};
use crate::lab::two_nics::{NICS, NODE, two_nics};

/// More connections than the agent serves at a time.
const CLIENTS: usize = 200;

/// Opens connections that send no request or only half of one.
fn slow_clients(node: &Node) -> Vec<TcpStream> {
    let open = |number: usize| {
        let mut stream = TcpStream::connect(LISTENS).expect("connect");
        if number % 2 == 0 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").expect("begin to ask");
        }
        stream
    };
    node.ns.run(|| (0..CLIENTS).map(open).collect())
}

#[test]
fn slow_clients_do_not_keep_the_kubelet_out() {
    let layout = two_nics();
    let config = crate::agent::plugin_object(&layout.node, &json!({"uplinks": NICS}));
    let agent = Agent::ready(&layout.node, &["--config", &config]);
    let mut clients = slow_clients(&layout.node);
    for _ in 0..5 {
        for page in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(agent.get(page).0, 200, "{page}");
        }
        // The clients connect again at once.
        clients.extend(slow_clients(&layout.node));
    }
}

#[test]
fn a_foreign_host_name_is_refused() {
    let layout = two_nics();
    let node = &layout.node;
    let config = crate::agent::plugin_object(node, &json!({"uplinks": NICS}));
    let agent = Agent::ready(node, &["--config", &config, "--allow-host", "metrics.example"]);
    let asked_by = |host: &str| node.agents_page_by(host, "/metrics").0;
    for host in ["127.0.0.1:9617", "10.20.0.10", "[::1]:9617", "localhost", "metrics.example:80"] {
        assert_eq!(asked_by(host), 200, "{host}");
    }
    for host in ["evil.example", "evil.example:9617", "metrics.example.evil", "127.0.0.1.evil"] {
        let (code, text) = node.agents_page_by(host, "/metrics");
        assert_eq!(code, 421, "{host}");
        assert!(text.contains("--allow-host"), "{text}");
    }
    drop(agent);
}

/// Puts files of other kinds into each folder that the agent reads. The agent still repairs the
/// node.
#[test]
fn odd_files_stop_nothing() {
    let layout = two_nics();
    let node = &layout.node;
    let (folder, cache) = (node.dir.join("net.d"), node.dir.join("cache"));
    fs::create_dir_all(&folder).expect("make the folder");
    fs::create_dir_all(&cache).expect("make the folder");
    let uplinks = json!({"uplinks": NICS});
    fs::write(folder.join("10-lab.conflist"), conflist(node, Some(&uplinks))).expect("write it");
    let state = node.dir.join("run");
    let places = [
        folder.join("05-a.conflist"),
        folder.join("99-z.conflist"),
        cache.join("lab-c9-eth0"),
        state.join("pods/stray"),
        state.join("node.json"),
    ];
    for damage in Damage::all() {
        // The agent starts with some of these files; the others are added while it runs.
        for place in &places[..3] {
            damage.put(place);
        }
        let agent = Agent::ready(node, &["--conf-dir", folder.to_str().expect("UTF-8")]);
        fs::create_dir_all(state.join("pods")).expect("make the folder");
        for place in &places {
            damage.put(place);
        }
        node.ns.ip("rule del pref 402\nrule del pref 402");
        until("mended", || answers(&layout, NODE[1], 10250));
        let most = memory(agent.pid(), "VmHWM");
        assert!(most < 64 * 1024, "{damage:?}: {most} kB");
        drop(agent);
        node.symroute(&["down", "--force"]).assert_success("down");
        for place in &places[..3] {
            remove(place);
        }
    }
}

fn remove(path: &Path) {
    let is_folder = path.symlink_metadata().expect("it is there").is_dir();
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.expect("remove it");
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("list the descriptors").count()
}

/// Many times the events, connections and conflist versions of a day.
#[test]
fn memory_and_descriptors_stay_flat() {
    let layout = two_nics();
    let node = &layout.node;
    let folder = node.dir.join("net.d");
    fs::create_dir(&folder).expect("make the folder");
    let file = folder.join("10-lab.conflist");
    let texts = [false, true]
        .map(|hairpin| conflist(node, Some(&json!({"uplinks": NICS, "hairpin": hairpin}))));
    fs::write(&file, &texts[0]).expect("write the conflist");
    let agent = Agent::ready(node, &["--conf-dir", folder.to_str().expect("UTF-8")]);
    let round = |events: usize, connections: usize, rewrites: usize| {
        let batch: Vec<_> = (0..events / 2)
            .map(|number| {
                let to = format!("10.97.{}.{}", number / 250, number % 250 + 1);
                format!("route add {to} dev eth0\nroute del {to} dev eth0")
            })
            .collect();
        node.ns.ip(&batch.join("\n"));
        for _ in 0..connections {
            assert_eq!(agent.get("/healthz").0, 200);
        }
        for number in 0..rewrites {
            fs::write(folder.join(".new"), &texts[number % 2]).expect("write a conflist");
            fs::rename(folder.join(".new"), &file).expect("rename it");
            let wanted = number % 2 == 1;
            let in_force = || crate::agent::status(node)["settings"]["hairpin"] == wanted;
            until("the conflist is in force", in_force);
        }
        until("ready", || agent.get("/readyz").0 == 200);
        let looks = agent.metric("symroute_looks_total");
        node.ns.ip("rule del pref 402");
        until("a look after all that", || agent.metric("symroute_looks_total") > looks);
        memory(agent.pid(), "RssAnon")
    };
    // The first round makes the allocator take its own pages.
    round(10_000, 1000, 10);
    let before = round(10_000, 1000, 10);
    let open = descriptors(agent.pid());
    let after = round(10_000, 1000, 10);
    println!("10,000 events, 1,000 connections: {before} to {after} kB, {open} descriptors");
    assert!(after <= before + 256, "{before} kB grew to {after} kB");
    // The last connection may be about to end.
    until("no descriptor more than before", || descriptors(agent.pid()) <= open);
}

/// Bits of `CapPrm` that an agent without a conflist keeps: `NET_ADMIN`, `NET_RAW`, `SETPCAP` and
/// `DAC_READ_SEARCH`.
const KEPT: u64 = 1 << 12 | 1 << 13 | 1 << 8 | 1 << 2;

#[test]
fn capabilities_that_are_not_needed_are_given_up() {
    let layout = two_nics();
    let config = crate::agent::plugin_object(&layout.node, &json!({"uplinks": NICS}));
    let agent = Agent::ready(&layout.node, &["--config", &config]);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it runs");
    let of = |name| capabilities(&status, name);
    for name in ["CapPrm", "CapEff"] {
        assert_eq!(of(name) & !KEPT, 0, "{name} is {:x}", of(name));
    }
    assert_eq!(of("CapInh"), 0);
}
