//! NodePorts whose backend is on another node: the request is forwarded out of an uplink again.
//!
//! ```text
//!   client 203.0.113.9      far0 10.20.0.77      far1 10.21.0.77
//!          |                     |                     |
//!  +-------+---------------------+---------------------+-------+
//!  |                          router                           |
//!  +-----------+------------------------------------+----------+
//!            eth0, main's default                 eth1
//!  +-----------+------------------------------------+----------+
//!  |   node: NodePort 30000 -> far0:8080, 30001 -> far1:8080   |
//!  +-----------------------------------------------------------+
//! ```
//!
//! The hard case is far1 by eth1: its reply comes in on eth1, must leave by eth1 again, and main would
//! send it out of eth0. With iptables it does not work over IPv4. Its mark depends on the destination
//! after DNAT, and the mangle table sees the packet before DNAT.

use serde_json::json;

use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_only_these_fail};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::proof::Proof;
use crate::lab::traffic::{Proto, Server};
use crate::lab::two_nics::{NICS, NODE, NODE6, TwoNics, two_nics};

const FAR: [&str; 2] = ["10.20.0.77", "10.21.0.77"];
const FAR6: [&str; 2] = ["2001:db8:20::77", "2001:db8:21::77"];

struct Layout {
    nics: TwoNics,
    _far: Vec<(Netns, [Server; 2])>,
}

fn layout(kube_proxy: Flavour) -> Layout {
    let mut nics = two_nics();
    let (mut far, mut services) = (Vec::new(), Vec::new());
    for (port, who, address, address6) in
        [(30000, "far0", FAR[0], FAR6[0]), (30001, "far1", FAR[1], FAR6[1])]
    {
        let ns = nics.router.host(who, &[address, address6]);
        for proto in [Proto::Tcp, Proto::Udp] {
            for backend in [format!("{address}:8080"), format!("[{address6}]:8080")] {
                services.push(Service {
                    frontend: Frontend::NodePort(port),
                    proto,
                    backend: backend.parse().expect("an address and port"),
                    policy: Policy::Cluster,
                });
            }
        }
        let servers = [Proto::Tcp, Proto::Udp].map(|proto| Server::start(&ns, proto, 8080, who));
        far.push((ns, servers));
    }
    kubeproxy::install(&nics.node.ns, kube_proxy, &services);
    Layout { nics, _far: far }
}

/// By each NIC to each backend, which sees the node's address on the NIC towards it.
fn flows(layout: &TwoNics) -> Vec<Flow<'_>> {
    let backends = [
        (30000, "far0 10.20.0.10", "far0 2001:db8:20::10"),
        (30001, "far1 10.21.0.10", "far1 2001:db8:21::10"),
    ];
    let mut flows = Vec::new();
    for (nic, (node, node6)) in NICS.iter().zip(NODE.iter().zip(NODE6)) {
        for (port, answer, answer6) in backends {
            for proto in [Proto::Tcp, Proto::Udp] {
                for (to, answer) in
                    [(format!("{node}:{port}"), answer), (format!("[{node6}]:{port}"), answer6)]
                {
                    let name = format!("{nic}: {to} over {proto:?}");
                    flows.push(Flow::new(&name, &layout.client, proto, &to, answer));
                }
            }
        }
    }
    flows
}

/// Puts the two flows that iptables can't serve last.
fn beyond_iptables(flows: &mut [Flow<'_>]) -> usize {
    let is_beyond = |flow: &Flow<'_>| flow.name.starts_with("eth1: 10.21.0.10:30001 ");
    flows.sort_by_key(is_beyond);
    flows.iter().filter(|flow| is_beyond(flow)).count()
}

fn by_either_nic(kube_proxy: Flavour) {
    let today = layout(kube_proxy);
    let flows_today = flows(&today.nics);
    let broken: Vec<&str> = flows_today
        .iter()
        .map(|flow| flow.name.as_str())
        .filter(|name| name.starts_with("eth1"))
        .collect();
    assert_only_these_fail(&flows_today, &broken);
    assert!(
        today.nics.node.rp_filter_drops() >= 4,
        "strict rp_filter drops the four flows over IPv4"
    );
    assert!(
        today.nics.router.source_check_drops()["eth0"] >= 4,
        "the source check drops the replies over IPv6"
    );

    let layout = &layout(kube_proxy).nics;
    let settings = json!({"uplinks": NICS});
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.up(&settings);
    let mut flows = flows(layout);
    let beyond = if Backend::of_run().is_iptables() { beyond_iptables(&mut flows) } else { 0 };
    let off = flows.split_off(flows.len() - beyond);
    // Each flow crosses the router twice: client to node, and node to backend.
    proof.assert_flows_work(&flows, &NICS, 2 * flows.len());
    // Strict rp_filter drops these requests, as it does without symroute.
    let before = layout.node.rp_filter_drops();
    assert_only_these_fail(&off, &off.iter().map(|flow| flow.name.as_str()).collect::<Vec<_>>());
    assert!(layout.node.rp_filter_drops() >= before + beyond as u64, "dropped by strict rp_filter");
    layout.node.down();
    proof.assert_as_before();
}

#[test]
fn behind_kube_proxy_in_iptables() {
    by_either_nic(Flavour::Iptables);
}

#[test]
fn behind_kube_proxy_in_nftables() {
    by_either_nic(Flavour::Nftables);
}
