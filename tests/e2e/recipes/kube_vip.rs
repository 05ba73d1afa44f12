//! kube-vip: in ARP mode the leader puts the virtual address as /32 on eth1 and announces it. In BGP
//! and routing table mode each node has it on `lo`.
//!
//! kube-vip itself does not run here. The lab changes addresses and routes as kube-vip does, and
//! puts the same gratuitous ARP on the wire. BIRD speaks BGP.

use serde_json::json;

use crate::agent::plugin_object;
use crate::lab::agent::{Agent, until};
use crate::lab::arp;
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::kubeproxy::{self, Flavour, Policy};
use crate::lab::node::Node;
use crate::lab::traffic::Proto;

use super::bird::Bird;
use super::metallb_bgp::{await_no_route, await_route};
use super::site::{NICS, OneSubnet, PODS, Site, VIP, Watch, service, settings};

/// Port 6443 of each node is a socket of its own, as the API server's. Port 80 of the virtual address
/// leads to the node's pod.
fn site(vip: &str) -> Site {
    let site = Site::new();
    for (node, own) in site.nodes.iter().zip(PODS) {
        let service = service(vip, 80, Proto::Tcp, &format!("{own}:8080"), Policy::Local);
        kubeproxy::install(&node.ns, Flavour::Iptables, &[service]);
    }
    site
}

/// Makes the node the leader.
fn add_vip(node: &Node) {
    node.ns.ip(&format!("addr add {VIP}/32 dev eth1"));
    arp::announce(&node.ns, "eth1", VIP);
}

fn remove_vip(node: &Node) {
    node.ns.ip(&format!("addr del {VIP}/32 dev eth1"));
}

fn flows<'a>(site: &'a Site, vip: &str) -> Vec<Flow<'a>> {
    let (socket, pod) = (format!("{vip}:6443"), format!("{vip}:80"));
    vec![
        site.flow("API server", Proto::Tcp, &socket, "node-a 203.0.113.9"),
        site.flow("Service", Proto::Tcp, &pod, "pod-a 203.0.113.9"),
    ]
}

/// Flows of a client, and of a node without a second NIC.
fn flows_by_arp(site: &Site) -> Vec<Flow<'_>> {
    let (socket, answer) = (format!("{VIP}:6443"), "node-a 10.10.0.30");
    let worker = Flow::new("worker", &site.worker, Proto::Tcp, &socket, answer);
    let mut flows = flows(site, VIP);
    flows.push(worker);
    flows
}

/// The plugin is there before the address, and no agent runs.
#[test]
fn arp_mode() {
    let today = site(VIP);
    add_vip(&today.nodes[0]);
    today.assert_strict_rp_filter_drops(&flows_by_arp(&today));
    today.assert_replies_leave_by_eth0(&flows_by_arp(&today), VIP);

    let site = site(VIP);
    let [a, b] = &site.nodes;
    let watch = Watch::begin(&site);
    site.up();
    add_vip(a);
    watch.assert_flows_work(&flows_by_arp(&site), 3);
    // The set that decides when a connection moves between NICs does not hold the address yet.
    assert_eq!(a.symroute(&["status"]).code, Some(4));
    a.up(&settings());
    assert_eq!(a.symroute(&["status"]).code, Some(0));
    let open = site.connection(&format!("{VIP}:6443"));
    remove_vip(a);
    add_vip(b);
    site.assert_moved_to("node-b", &format!("{VIP}:6443"), open);
    let open = site.connection(&format!("{VIP}:80"));
    remove_vip(b);
    add_vip(a);
    site.assert_moved_to("pod-a", &format!("{VIP}:80"), open);
    remove_vip(a);
    watch.assert_down_leaves_nothing();
}

/// eth1 has no address but the virtual one. Strict `rp_filter` drops the router's ARP requests for it,
/// until symroute has it in a set. The agent puts it there.
#[test]
fn arp_mode_on_a_nic_without_another_address() {
    let site = site(VIP);
    let node = &site.nodes[0];
    for node in &site.nodes {
        node.ns.ip("addr flush dev eth1");
    }
    let broken = ["API server", "Service"];
    let is_unknown = || !site.edges[1].exec(&["ip", "neigh", "show", VIP], "").contains("lladdr");
    // A router learns from gratuitous ARP only while it has an entry for the address.
    let add_vip = |node: &Node| {
        add_vip(node);
        site.edges[1].ip("neigh flush dev in");
    };
    add_vip(node);
    assert_only_these_fail(&flows(&site, VIP), &broken);
    assert!(is_unknown(), "without the plugin the node does not answer ARP");
    remove_vip(node);
    site.up();
    add_vip(node);
    assert_only_these_fail(&flows(&site, VIP), &broken);
    assert!(is_unknown(), "the plugin came before the address");
    remove_vip(node);

    let file = plugin_object(node, &settings());
    let _agent = Agent::ready(node, &["--config", &file]);
    add_vip(node);
    until("the address is served", || site.is_answered_by("node-a", &format!("{VIP}:6443")));
    let watch = Watch::begin(&site);
    watch.assert_flows_work(&flows(&site, VIP), 2);
}

/// Both NICs are in one subnet, and main reaches it by the first one. So strict `rp_filter` drops ARP
/// requests for each address of the second one, until symroute has it in a set.
#[test]
fn arp_mode_with_both_nics_in_one_subnet() {
    let site = OneSubnet::new();
    let node = &site.nodes[0];
    let flow = |name: &str, address: &str| {
        let to = format!("{address}:6443");
        Flow::new(name, &site.client, Proto::Tcp, &to, "node-a 203.0.113.9")
    };
    let flows = [flow("own", "10.11.0.20"), flow("virtual", VIP)];
    let add_vip = || {
        add_vip(node);
        site.router.ip("neigh flush dev in");
    };
    let settings = json!({"uplinks": NICS});
    add_vip();
    assert_only_these_fail(&flows, &["own", "virtual"]);
    remove_vip(node);
    node.up(&settings);
    add_vip();
    assert_only_these_fail(&flows, &["virtual"]);
    remove_vip(node);

    let agent = Agent::ready(node, &["--config", &plugin_object(node, &settings)]);
    let repairs = || agent.metric("symroute_repairs_total{cause=\"addresses\"}");
    let before = repairs();
    add_vip();
    until("the agent has seen the address", || repairs() > before);
    assert_all_work(&flows);
}

/// Routing table mode: the address is on `lo`, and a BGP speaker of the node announces it because of a
/// route in table 198. In BGP mode kube-vip announces it by itself.
#[test]
fn an_address_on_lo() {
    const VIP: &str = "198.51.100.100";
    let learned = "protocol kernel { learn; kernel table 198; scan time 1; ipv4 { import all; export none; }; }";
    let add_vip = |node: &Node| {
        node.ns.ip(&format!(
            "addr add {VIP}/32 dev lo
             route add {VIP}/32 dev eth1 table 198 proto 248"
        ));
    };
    let site = site(VIP);
    let _router = Bird::listening(&site.edges[1], "10.11.0.1", &["10.11.0.10", "10.11.0.20"]);
    let _speakers = [10, 20].map(|n| {
        let (node, own) = (&site.nodes[usize::from(n == 20)], format!("10.11.0.{n}"));
        Bird::announcing(&node.ns, learned, &[(&own, "10.11.0.1")])
    });
    add_vip(&site.nodes[0]);
    await_route(&site.edges[1], "10.11.0.10");
    site.assert_strict_rp_filter_drops(&flows(&site, VIP));
    site.assert_replies_leave_by_eth0(&flows(&site, VIP), VIP);
    site.nodes[0].ns.exec(&["conntrack", "-F"], "");
    site.nodes[0].ns.ip(&format!(
        "addr del {VIP}/32 dev lo
         route flush table 198"
    ));
    await_no_route(&site.edges[1]);

    let watch = Watch::begin(&site);
    site.up();
    add_vip(&site.nodes[0]);
    add_vip(&site.nodes[1]);
    await_route(&site.edges[1], "10.11.0.10");
    watch.assert_flows_work(&flows(&site, VIP), 2);
    assert_eq!(site.nodes[0].symroute(&["status"]).code, Some(0), "it is no uplink's address");
    let open = site.connection(&format!("{VIP}:6443"));
    site.nodes[0].ns.ip("route flush table 198");
    await_route(&site.edges[1], "10.11.0.20");
    site.assert_moved_to("node-b", &format!("{VIP}:6443"), open);
}
