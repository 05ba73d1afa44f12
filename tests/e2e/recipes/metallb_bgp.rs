//! MetalLB in BGP mode: the virtual address is on no NIC and in no subnet. The routers have a route to
//! it from the speaker of each node, and kube-proxy's rules send it to a pod.
//!
//! The sessions are real. BIRD speaks in place of MetalLB's speaker and on the routers.

use crate::lab::agent::until;
use crate::lab::flows::Flow;
use crate::lab::kubeproxy::{self, Flavour, Policy};
use crate::lab::netns::Netns;
use crate::lab::traffic::Proto;

use super::bird::Bird;
use super::site::{PODS, Site, Watch, service};

const VIP: &str = "198.51.100.100";
/// Routes that a speaker announces without one in its kernel.
const ANNOUNCED: &str = "protocol static { ipv4; route 198.51.100.100/32 unreachable; }";

/// Port 80: the pod of the node, with `externalTrafficPolicy: Local`. Port 81: the pod on node b with
/// `Cluster`.
fn site(kube_proxy: Flavour) -> Site {
    let site = Site::new();
    for (node, own) in site.nodes.iter().zip(PODS) {
        let services = [
            service(VIP, 80, Proto::Tcp, &format!("{own}:8080"), Policy::Local),
            service(VIP, 81, Proto::Tcp, &format!("{}:8080", PODS[1]), Policy::Cluster),
        ];
        kubeproxy::install(&node.ns, kube_proxy, &services);
    }
    site
}

/// Waits until the router sends the address to this node.
pub(super) fn await_route(edge: &Netns, via: &str) {
    until(&format!("the router has a route by {via}"), || {
        edge.exec(&["ip", "route", "show", VIP], "").contains(&format!("via {via} "))
    });
}

pub(super) fn await_no_route(edge: &Netns) {
    until("the router has no route", || edge.exec(&["ip", "route", "show", VIP], "").is_empty());
}

/// Node a's sessions with the router of each NIC, and these routers.
fn sessions(site: &Site) -> [Bird; 3] {
    let routers = [0, 1].map(|n| {
        let (own, node) = (format!("10.1{n}.0.1"), format!("10.1{n}.0.10"));
        Bird::listening(&site.edges[n], &own, &[&node])
    });
    let peers = [("10.10.0.10", "10.10.0.1"), ("10.11.0.10", "10.11.0.1")];
    let speaker = Bird::announcing(&site.nodes[0].ns, ANNOUNCED, &peers);
    for (edge, (own, _)) in site.edges.iter().zip(peers) {
        await_route(edge, own);
    }
    let [first, second] = routers;
    [speaker, first, second]
}

/// Flows by the second NIC, and by the first one.
fn flows(site: &Site) -> [Vec<Flow<'_>>; 2] {
    let to = |port: u16| format!("{VIP}:{port}");
    let near = |name, port, answer| Flow::new(name, &site.near, Proto::Tcp, &to(port), answer);
    [
        vec![
            site.flow("Local by eth1", Proto::Tcp, &to(80), "pod-a 203.0.113.9"),
            site.flow("Cluster by eth1", Proto::Tcp, &to(81), "pod-b 10.10.0.10"),
        ],
        vec![
            near("Local by eth0", 80, "pod-a 203.0.113.8"),
            near("Cluster by eth0", 81, "pod-b 10.10.0.10"),
        ],
    ]
}

fn recipe(kube_proxy: Flavour) {
    let today = site(kube_proxy);
    let sessions_today = sessions(&today);
    let [by_eth1, by_eth0] = flows(&today);
    today.assert_strict_rp_filter_drops(&by_eth1);
    crate::lab::flows::assert_all_work(&by_eth0);
    today.assert_replies_leave_by_eth0(&by_eth1, VIP);
    drop(sessions_today);

    let site = site(kube_proxy);
    let _sessions = sessions(&site);
    let watch = Watch::begin(&site);
    site.up();
    let flows: Vec<_> = flows(&site).into_iter().flatten().collect();
    watch.assert_flows_work(&flows, 2 * 3);
    watch.assert_down_leaves_nothing();
}

#[test]
fn sessions_by_both_nics_and_kube_proxy_in_iptables() {
    recipe(Flavour::Iptables);
}

#[test]
fn sessions_by_both_nics_and_kube_proxy_in_nftables() {
    recipe(Flavour::Nftables);
}

/// Both nodes announce the address. The session of the one that the router prefers ends.
#[test]
fn the_router_turns_to_another_node() {
    let site = site(Flavour::Iptables);
    let speakers = [10, 20].map(|n| {
        let own = format!("10.11.0.{n}");
        Bird::announcing(&site.nodes[usize::from(n == 20)].ns, ANNOUNCED, &[(&own, "10.11.0.1")])
    });
    let _router = Bird::listening(&site.edges[1], "10.11.0.1", &["10.11.0.10", "10.11.0.20"]);
    // Of two equal routes BIRD takes that of the lower router id.
    await_route(&site.edges[1], "10.11.0.10");
    let to = format!("{VIP}:80");
    assert!(!site.is_answered_by("pod-a", &to), "it works without the plugin");
    site.up();
    let open = site.connection(&to);
    let [preferred, _other] = speakers;
    drop(preferred);
    await_route(&site.edges[1], "10.11.0.20");
    site.assert_moved_to("pod-b", &to, open);
}
