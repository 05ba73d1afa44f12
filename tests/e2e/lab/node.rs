//! The node under test: strict `rp_filter` everywhere, forwarding on, pods behind veths.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, process, thread};

use serde_json::json;

use super::backend::Backend;
use super::netns::{Netns, has_to_keep, unique};
use super::sweep;

pub(crate) struct Node {
    pub(crate) ns: Netns,
    /// Folder that the plugin sees as `/run/symroute` (`run` in it), and its log and configuration
    /// files.
    pub(crate) dir: PathBuf,
    /// Whether a test has used iptables-legacy on this node, see [`super::snapshot`].
    pub(crate) legacy: AtomicBool,
}

pub(crate) struct Pod {
    pub(crate) ns: Netns,
    /// The container id.
    pub(crate) id: String,
    /// The prevResult of symroute's call, as raw text.
    pub(crate) prev_result: String,
}

impl Node {
    pub(crate) fn new(name: &str) -> Self {
        let ns = Netns::new(name);
        for scope in ["all", "default", "lo"] {
            ns.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "1");
        }
        ns.sysctl("ipv4/ip_forward", "1");
        ns.sysctl("ipv6/conf/all/forwarding", "1");
        let dir = env::temp_dir().join(format!("symroute-e2e-{}-{}", process::id(), unique()));
        fs::create_dir_all(dir.join("run")).expect("make the node's directory");
        let legacy = AtomicBool::new(Backend::of_run() == Backend::IptablesLegacy);
        let node = Self { ns, dir, legacy };
        sweep::register(&node);
        node
    }

    /// A second value for this node. Dropping it removes nothing.
    pub(super) fn twin(&self) -> Self {
        let legacy = AtomicBool::new(self.legacy.load(Ordering::Relaxed));
        Self { ns: self.ns.twin(), dir: self.dir.clone(), legacy }
    }

    /// Makes a pod as the AWS and flannel primaries leave it. `eth0` has addresses without a subnet
    /// and a static neighbour as gateway; the node has a host route to each address through
    /// `eni<name>`.
    pub(crate) fn pod(&self, name: &str, addresses: &[&str]) -> Pod {
        let (ns, veth) = (Netns::new(name), format!("eni{name}"));
        let number = unique().to_be_bytes().map(|byte| format!("{byte:02x}")).join(":");
        let gateway = format!("02:03:{number}");
        self.ns.ip(&format!(
            "link add {veth} address {gateway} type veth peer name eth0 netns {}
             link set {veth} up",
            ns.name()
        ));
        ns.ip(&format!(
            "link set eth0 up
             neigh add 169.254.1.1 dev eth0 lladdr {gateway} nud permanent
             neigh add fe80::1 dev eth0 lladdr {gateway} nud permanent"
        ));
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ns.ip(&format!("addr add {address} dev eth0 {nodad}"));
            self.ns.ip(&format!("route add {address} dev {veth} scope link"));
        }
        ns.ip("route add default via 169.254.1.1 dev eth0 onlink
             route add default via fe80::1 dev eth0");
        let prev_result = standard_result(&veth, &ns.path(), addresses);
        Pod { ns, id: format!("{name}-{}", unique()), prev_result }
    }

    /// Packets that strict `rp_filter` has dropped on the node (`TcpExtIPReversePathFilter`).
    pub(crate) fn rp_filter_drops(&self) -> u64 {
        rp_filter_drops(&self.ns)
    }
}

/// Packets that strict `rp_filter` has dropped in a namespace (`TcpExtIPReversePathFilter`).
pub(crate) fn rp_filter_drops(ns: &Netns) -> u64 {
    let text =
        ns.run(|| fs::read_to_string("/proc/thread-self/net/netstat")).expect("read netstat");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let position =
        names.split(' ').position(|name| name == "IPReversePathFilter").expect("the counter");
    values.split(' ').nth(position).expect("a value").parse().expect("a number")
}

/// The result of a primary plugin of CNI 1.0.0 for a pod.
fn standard_result(veth: &str, netns: &str, addresses: &[&str]) -> String {
    let ips: Vec<_> = addresses
        .iter()
        .map(|address| json!({"address": with_prefix(address), "interface": 1}))
        .collect();
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": veth}, {"name": "eth0", "sandbox": netns}],
        "ips": ips,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {}
    })
    .to_string()
}

/// An address with the prefix length of a single host, as results spell it.
pub(crate) fn with_prefix(address: &str) -> String {
    format!("{address}/{}", if address.contains(':') { 128 } else { 32 })
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.ns.is_owner() {
            return;
        }
        sweep::forget(self);
        if thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_else(|error| format!("({error})"));
            println!("---- log of symroute on {} ----\n{log}----", self.ns.name());
        }
        if has_to_keep() {
            println!("kept: {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
