//! Field report 004: after a reboot DHCP configured the second NIC too, and the kubelet is gone.
//!
//! ```text
//!    client 203.0.113.9       peer 10.0.10.69, of the same subnet
//!             |                        |
//!  +----------+------------------------+---------+
//!  |        router, gateway 10.0.10.1            |   a source check on both NICs
//!  +-------+-----------------------------+-------+
//!        eth0                          eth1
//!        10.0.10.207/24                10.0.10.190/24
//!        2001:db8:10::207/64           2001:db8:10::190/64
//!  +-------+-----------------------------+-------+
//!  |  main: default via 10.0.10.1 dev eth1,      |   node: strict rp_filter,
//!  |  10.0.10.0/24 on eth1, then on eth0         |   kubelet on port 10250
//!  +---------------------------------------------+
//! ```
//!
//! Everything that came in by eth0 is a martian, since its way back is eth1. No default route
//! names eth0: its gateway has to be inferred from eth1's.

use serde_json::json;

use crate::lab::flows::{Flow, assert_only_these_fail};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::proof::Proof;
use crate::lab::router::Router;
use crate::lab::traffic::{Proto, Server};

const NICS: [&str; 2] = ["eth0", "eth1"];

struct Layout {
    router: Router,
    node: Node,
    client: Netns,
    peer: Netns,
    _kubelet: Server,
}

fn layout() -> Layout {
    let (mut router, node) = (Router::new(), Node::new("node"));
    for nic in NICS {
        let gateways = ["10.0.10.1", "2001:db8:10::1"];
        router.plug(nic, &node.ns, nic, &gateways);
    }
    node.ns.ip("addr add 10.0.10.190/24 dev eth1
         addr add 10.0.10.207/24 dev eth0
         addr add 2001:db8:10::190/64 dev eth1 nodad
         addr add 2001:db8:10::207/64 dev eth0 nodad
         route add default via 10.0.10.1 dev eth1
         route add default via 2001:db8:10::1 dev eth1");
    for (nic, address) in [
        ("eth0", "10.0.10.207"),
        ("eth0", "2001:db8:10::207"),
        ("eth1", "10.0.10.190"),
        ("eth1", "2001:db8:10::190"),
    ] {
        router.assign(nic, address);
    }
    let client = router.host("client", &["203.0.113.9", "2001:db8:9::9"]);
    let peer = router.host("peer", &["10.0.10.69", "2001:db8:10::69"]);
    router.check_sources(&NICS);
    let kubelet = Server::start(&node.ns, Proto::Tcp, 10250, "kubelet");
    Layout { router, node, client, peer, _kubelet: kubelet }
}

fn flows(layout: &Layout) -> Vec<Flow<'_>> {
    let clients = [
        ("client", &layout.client, "kubelet 203.0.113.9", "kubelet 2001:db8:9::9"),
        ("peer", &layout.peer, "kubelet 10.0.10.69", "kubelet 2001:db8:10::69"),
    ];
    let mut flows = Vec::new();
    for (nic, address, address6) in
        [("eth0", "10.0.10.207", "2001:db8:10::207"), ("eth1", "10.0.10.190", "2001:db8:10::190")]
    {
        for (name, ns, answer, answer6) in clients {
            let mut flow = |name: String, to: String, answer| {
                flows.push(Flow::new(&name, ns, Proto::Tcp, &to, answer));
            };
            flow(format!("{name} to {nic}"), format!("{address}:10250"), answer);
            flow(format!("{name} to {nic}, IPv6"), format!("[{address6}]:10250"), answer6);
        }
    }
    flows
}

#[test]
fn kubelet_is_reachable_on_both_nics() {
    let today = layout();
    let broken = ["client to eth0", "client to eth0, IPv6", "peer to eth0", "peer to eth0, IPv6"];
    assert_only_these_fail(&flows(&today), &broken);
    assert!(today.node.rp_filter_drops() >= 2, "strict rp_filter drops both IPv4 flows");
    assert!(
        today.router.source_check_drops()["eth1"] >= 2,
        "the source check drops both replies over IPv6"
    );
    let requests = [
        ("eth0", "203.0.113.9", "10.0.10.207"),
        ("eth0", "10.0.10.69", "10.0.10.207"),
        ("eth0", "2001:db8:9::9", "2001:db8:10::207"),
        ("eth1", "203.0.113.9", "10.0.10.190"),
    ];
    today.node.assert_explained("report_004", &json!({"uplinks": NICS}), &requests);
    drop(today);

    let layout = layout();
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.up(&json!({"uplinks": NICS}));
    let flows = flows(&layout);
    proof.assert_flows_work(&flows, &NICS, flows.len());
    layout.node.down();
    proof.assert_as_before();
}

/// `explain` predicts the result of each flow, without the plugin and with it.
#[test]
fn verdicts() {
    let layout = layout();
    let (node, settings) = (&layout.node, json!({"uplinks": NICS}));
    let broken = ["client to eth0", "client to eth0, IPv6", "peer to eth0", "peer to eth0, IPv6"];
    node.assert_verdicts("report 004", &settings, &flows(&layout), &broken);
    node.up(&settings);
    node.assert_verdicts("report 004, with symroute", &settings, &flows(&layout), &[]);
    node.down();
}
