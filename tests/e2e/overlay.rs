//! Overlay tunnels that end on the node. The inner packet is other traffic than the outer one, although
//! the kernel leaves the packet mark on it.
//!
//! ```text
//!      far 10.21.0.77, pods 10.244.9.1 and fd00:9::1
//!          |                        outer packets: UDP 4789 to 10.21.0.10
//!  +-------+-------+
//!  |    router     |
//!  +---+-------+---+
//!    eth0    eth1
//!  +---+-------+---+
//!  |  node: vxlan0 |  inner packets: to pod0, and its replies
//!  +---------------+
//! ```

use serde_json::json;

use crate::lab::flows::{Flow, assert_all_work};
use crate::lab::netns::Netns;
use crate::lab::proof::Proof;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{NICS, NODE, POD, POD6, TwoNics, two_nics};

const FAR: &str = "10.21.0.77";
const FAR_POD: &str = "10.244.9.1";
const FAR_POD6: &str = "fd00:9::1";

/// One end of the tunnel, with static neighbours, so that nothing has to be learned.
fn tunnel(ns: &Netns, [local, remote]: [&str; 2], [mac, peer]: [&str; 2], via: &str) {
    ns.ip(&format!(
        "link add vxlan0 address {mac} type vxlan id 42 local {local} remote {remote} dstport 4789 dev {via}
         link set vxlan0 up
         neigh add 10.244.0.1 dev vxlan0 lladdr {peer} nud permanent
         neigh add fd00::1 dev vxlan0 lladdr {peer} nud permanent"
    ));
}

fn layout() -> (TwoNics, Netns) {
    let mut layout = two_nics();
    let far = layout.router.host("far", &[FAR]);
    let macs = ["02:09:00:00:00:01", "02:09:00:00:00:02"];
    tunnel(&layout.node.ns, [NODE[1], FAR], macs, "eth1");
    tunnel(&far, [FAR, NODE[1]], [macs[1], macs[0]], "eth0");
    layout.node.ns.ip(&format!(
        "route add {FAR_POD} via 10.244.0.1 dev vxlan0 onlink
         route add {FAR_POD6} via fd00::1 dev vxlan0 onlink"
    ));
    far.ip(&format!(
        "addr add {FAR_POD}/32 dev lo
         addr add {FAR_POD6}/128 dev lo nodad
         route add {} via 10.244.0.1 dev vxlan0 src {FAR_POD} onlink
         route add {} via fd00::1 dev vxlan0 src {FAR_POD6} onlink",
        POD[0], POD6[0]
    ));
    (layout, far)
}

fn works_through_the_tunnel(layout: &TwoNics, far: &Netns) {
    let mut flows = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        for (to, answer) in [
            (format!("{}:8080", POD[0]), "pod0 10.244.9.1"),
            (format!("[{}]:8080", POD6[0]), "pod0 fd00:9::1"),
        ] {
            flows.push(Flow::new(&format!("{to} over {proto:?}"), far, proto, &to, answer));
        }
    }
    assert_all_work(&flows);
    let settings = json!({"uplinks": NICS});
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.add(&settings, &layout.pods[0]);
    assert_all_work(&flows);
    proof.assert_nothing_dropped();
    layout.node.del(&settings, &layout.pods[0]);
    proof.assert_as_before();
}

#[test]
fn inner_packets_do_not_inherit_the_uplink_of_the_outer_ones() {
    let (layout, far) = layout();
    works_through_the_tunnel(&layout, &far);
}

/// Calico does so to save the cost of tracking the packets.
#[test]
fn nor_those_of_outer_packets_that_are_not_tracked() {
    let (layout, far) = layout();
    layout.node.ns.nft(
        "table inet calico {
            chain in {
                type filter hook prerouting priority raw; policy accept;
                udp dport 4789 notrack
            }
            chain out {
                type filter hook output priority raw; policy accept;
                udp dport 4789 notrack
            }
        }",
    );
    works_through_the_tunnel(&layout, &far);
}
