//! keepalived: VRRP on eth1 moves the virtual address between two nodes. It is the real keepalived.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::agent::plugin_object;
use crate::lab::agent::{Agent, until};
use crate::lab::flows::Flow;
use crate::lab::kubeproxy::{self, Flavour, Policy};
use crate::lab::node::Node;
use crate::lab::traffic::Proto;

use super::site::{NICS, OneSubnet, PODS, Site, VIP, Watch, service, settings};

/// A keepalived that runs on a node until this value is dropped.
struct Keepalived {
    child: Child,
}

impl Keepalived {
    fn start(node: &Node, priority: u8) -> Self {
        Self::start_on("eth1", node, priority)
    }

    /// Starts keepalived with VRRP on this NIC, by multicast, which is the default.
    fn start_on(nic: &str, node: &Node, priority: u8) -> Self {
        Self::start_with(&format!("interface {nic}"), node, priority)
    }

    fn start_with(settings: &str, node: &Node, priority: u8) -> Self {
        let text = format!(
            "vrrp_instance clients {{
                 state BACKUP
                 {settings}
                 virtual_router_id 51
                 priority {priority}
                 advert_int 1
                 virtual_ipaddress {{
                     {VIP}/24 dev eth1
                 }}
             }}"
        );
        let file = |name: &str| node.dir.join(name);
        fs::write(file("keepalived.conf"), text).expect("write the configuration");
        let child = Command::new("ip")
            .args(["netns", "exec", node.ns.name(), "keepalived", "--dont-fork", "--vrrp"])
            .args(["--log-console", "--no-syslog", "--use-file"])
            .arg(file("keepalived.conf"))
            .arg("--pid")
            .arg(file("keepalived.pid"))
            .arg("--vrrp_pid")
            .arg(file("vrrp.pid"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(file("keepalived.log")).expect("make its log"))
            .stderr(Stdio::null())
            .spawn()
            .expect("start keepalived");
        Self { child }
    }
}

impl Drop for Keepalived {
    /// Ends keepalived as systemd ends a service: it gives the address up.
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id"));
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn has_vip(node: &Node) -> bool {
    node.ns.exec(&["ip", "addr", "show", "dev", "eth1"], "").contains(&format!("inet {VIP}/"))
}

/// Waits until this keepalived alone has the address.
fn await_owner(nodes: &[Node; 2], owner: usize) {
    until(&format!("node {owner} has the address"), || {
        has_vip(&nodes[owner]) && !has_vip(&nodes[1 - owner])
    });
}

/// Port 6443 of each node is a socket of its own; port 80 of the address leads to its pod.
fn site() -> Site {
    let site = Site::new();
    for (node, own) in site.nodes.iter().zip(PODS) {
        let own = format!("{own}:8080");
        let services = [service(VIP, 80, Proto::Tcp, &own, Policy::Local)];
        kubeproxy::install(&node.ns, Flavour::Iptables, &services);
    }
    site
}

fn flows(site: &Site) -> [Flow<'_>; 2] {
    let flow = |name, port, answer| site.flow(name, Proto::Tcp, &format!("{VIP}:{port}"), answer);
    [flow("socket", 6443, "node-a 203.0.113.9"), flow("pod", 80, "pod-a 203.0.113.9")]
}

/// The plugin is there before the address, and no agent runs. The first keepalived ends, and the
/// second one takes over; the first one starts again, and takes the address back.
#[test]
fn the_address_moves_and_comes_back() {
    let site = site();
    let start = |n: usize| Keepalived::start(&site.nodes[n], [150, 100][n]);
    let first = start(0);
    let second = start(1);
    await_owner(&site.nodes, 0);
    site.assert_strict_rp_filter_drops(&flows(&site));
    site.assert_replies_leave_by_eth0(&flows(&site), VIP);
    drop((first, second));

    let watch = Watch::begin(&site);
    site.up();
    let (first, second) = (start(0), start(1));
    await_owner(&site.nodes, 0);
    watch.assert_flows_work(&flows(&site), 2);
    let open = site.connection(&format!("{VIP}:6443"));
    drop(first);
    await_owner(&site.nodes, 1);
    site.assert_moved_to("node-b", &format!("{VIP}:6443"), open);
    let open = site.connection(&format!("{VIP}:80"));
    let first = start(0);
    await_owner(&site.nodes, 0);
    site.assert_moved_to("pod-a", &format!("{VIP}:80"), open);
    drop((first, second));
    watch.assert_down_leaves_nothing();
}

/// With the agent, `status` is healthy after each move, and the next reconcile finds nothing to do.
#[test]
fn the_agent_follows_the_address() {
    let site = site();
    let agents = site
        .nodes
        .each_ref()
        .map(|node| Agent::ready(node, &["--config", &plugin_object(node, &settings())]));
    let first = Keepalived::start(&site.nodes[0], 150);
    let _second = Keepalived::start(&site.nodes[1], 100);
    let is_healthy = |node: &Node| node.symroute(&["status"]).code == Some(0);
    await_owner(&site.nodes, 0);
    until("node a is healthy", || is_healthy(&site.nodes[0]));
    let serves = |who| site.is_answered_by(who, &format!("{VIP}:6443"));
    until("node a is reached", || serves("node-a"));
    drop(first);
    await_owner(&site.nodes, 1);
    until("both are healthy", || site.nodes.iter().all(is_healthy));
    until("node b is reached", || serves("node-b"));
    until("both agents are ready", || agents.iter().all(|agent| agent.get("/readyz").0 == 200));
}

/// Both NICs are in one subnet, and main reaches it by eth0. Strict `rp_filter` drops the other
/// keepalived's multicast packets to eth1, with and without symroute, which does not mark multicast. So
/// both nodes take the address. VRRP by eth0 moves an address on eth1.
#[test]
fn both_nics_in_one_subnet() {
    let site = OneSubnet::new();
    let agents = site.nodes.each_ref().map(|node| {
        let file = plugin_object(node, &json!({"uplinks": NICS}));
        Agent::ready(node, &["--config", &file])
    });
    let start = |by: &str| [0, 1].map(|n| Keepalived::start_on(by, &site.nodes[n], [150, 100][n]));
    let pair = start("eth1");
    let drops = || site.nodes.iter().all(|node| node.rp_filter_drops() > 0);
    until("both nodes have the address", || site.nodes.iter().all(has_vip) && drops());
    drop(pair);

    let [first, _second] = start("eth0");
    await_owner(&site.nodes, 0);
    let serves = |who| site.is_answered_by(who, &format!("{VIP}:6443"));
    until("the first node is reached", || serves("node-a"));
    drop(first);
    await_owner(&site.nodes, 1);
    until("the second node is reached", || serves("node-b"));
    until("both agents are ready", || agents.iter().all(|agent| agent.get("/readyz").0 == 200));
}

/// Each node sends to the other one by unicast. The second one's packets are replies to the first
/// one's, and symroute leaves them to strict `rp_filter`. So the first one does not learn that the
/// second one has a higher priority, and keeps the address.
#[test]
fn unicast_with_both_nics_in_one_subnet() {
    let site = OneSubnet::new();
    for node in &site.nodes {
        node.up(&json!({"uplinks": NICS}));
    }
    let [first, second] = &site.nodes;
    let start = |node, own, peer, priority| {
        let settings = format!(
            "interface eth1
             unicast_src_ip {own}
             unicast_peer {{
                 {peer}
             }}"
        );
        Keepalived::start_with(&settings, node, priority)
    };
    let _first = start(first, "10.11.0.20", "10.11.0.21", 100);
    await_owner(&site.nodes, 0);
    let before = first.rp_filter_drops();
    let _second = start(second, "10.11.0.21", "10.11.0.20", 150);
    let drops = || first.rp_filter_drops() > before + 2;
    until("both nodes have the address", || has_vip(first) && has_vip(second) && drops());
    assert_eq!(second.rp_filter_drops(), 0, "the second one hears the first one");
}
