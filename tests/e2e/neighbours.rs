//! symroute never touches other programs' marks on packets and connections, and never leaves its own
//! behind. The files below test each program that is known to share a node with a CNI plugin; `beside`
//! runs both.

mod beside;
mod chained;

mod clouds;
mod firewalls;
mod policies;
mod proxies;
mod vpns;

use serde_json::json;

use crate::lab::flows::Flow;
use crate::lab::proof::Proof;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};

/// AWS and Antrea (0x80), kube-proxy (0x4000), Calico and Cilium (0xff000000): all at once.
const FOREIGN: u32 = 0xff00_4080;
const OURS: u32 = 0x1f00;

/// Flows by either NIC, to the host and to both pods.
fn flows(layout: &TwoNics) -> Vec<Flow<'_>> {
    let mut flows = Vec::new();
    for (address, port, answer) in [
        (NODE[0], 10250, "host 203.0.113.9"),
        (NODE[1], 10250, "host 203.0.113.9"),
        (POD[0], 8080, "pod0 203.0.113.9"),
        (POD[1], 8080, "pod1 203.0.113.9"),
        (NODE6[0], 10250, "host 2001:db8:9::9"),
        (NODE6[1], 10250, "host 2001:db8:9::9"),
        (POD6[0], 8080, "pod0 2001:db8:9::9"),
        (POD6[1], 8080, "pod1 2001:db8:9::9"),
    ] {
        let to = if address.contains(':') {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        };
        flows.push(Flow::new(&to, &layout.client, Proto::Tcp, &to, answer));
    }
    flows
}

/// A program that sets marks at priority `set`, and checks the marks after symroute's chains.
fn neighbour(layout: &TwoNics, set: &str) {
    layout.node.ns.nft(&format!(
        "table inet neighbour {{
            counter kept {{ }}
            counter lost {{ }}
            counter left {{ }}
            chain neighbour_marks {{
                type filter hook prerouting priority {set}; policy accept;
                meta mark set meta mark | {FOREIGN:#x}
                ct mark set ct mark | {FOREIGN:#x}
            }}
            chain forwarded {{
                type filter hook forward priority -140; policy accept;
                jump look
            }}
            chain delivered {{
                type filter hook input priority -140; policy accept;
                jump look
            }}
            chain sent {{
                type filter hook postrouting priority 200; policy accept;
                meta mark & {OURS:#x} != 0 counter name left
                iifname \"eni*\" jump look
            }}
            chain look {{
                iifname lo return
                meta l4proto ipv6-icmp return
                meta mark & {FOREIGN:#x} == {FOREIGN:#x} ct mark & {FOREIGN:#x} == {FOREIGN:#x} counter name kept return
                counter name lost
            }}
        }}"
    ));
}

fn marks_are_kept(set: &str) {
    let layout = two_nics();
    neighbour(&layout, set);
    let settings = json!({"uplinks": NICS});
    let proof = Proof::begin(&layout.node, &layout.router);
    for pod in &layout.pods {
        layout.node.add(&settings, pod);
    }
    let flows = flows(&layout);
    proof.assert_flows_work(&flows, &NICS, flows.len());
    let count = |name| layout.node.ns.counter("neighbour", name);
    assert!(count("kept") > 60, "packets with the neighbour's marks went by");
    assert_eq!(count("lost"), 0, "packets that lost a mark of the neighbour");
    assert_eq!(count("left"), 0, "packets that left with a mark of ours");
    let connections = layout.node.ns.exec(&["conntrack", "-L"], "");
    for nic in [1, 2] {
        let mark = format!("mark={}", FOREIGN | nic << 8);
        assert!(connections.contains(&mark), "a connection bound to uplink {nic} has {mark}");
    }
    for pod in &layout.pods {
        layout.node.del(&settings, pod);
    }
    proof.assert_as_before();
}

#[test]
fn marks_set_before_us_are_kept() {
    // After conntrack (-200), before all chains of symroute.
    marks_are_kept("-199");
}

#[test]
fn marks_set_after_us_are_kept() {
    // Between symroute's chain (-80) and the routing decision.
    marks_are_kept("-70");
}

/// Another program's rule for its own mark goes on working for packets that symroute does not mark.
#[test]
fn rules_of_others_still_see_their_marks() {
    let layout = two_nics();
    layout.node.ns.ip("rule add pref 1024 fwmark 0x80/0x80 lookup main");
    layout.node.ns.nft(
        "table inet neighbour {
            chain neighbour_marks {
                type filter hook prerouting priority -150; policy accept;
                iifname enipod1 meta mark set meta mark | 0x80
            }
        }",
    );
    let settings = json!({"uplinks": NICS});
    // The neighbour sends pod1's own connections out of eth0, where the source check drops them.
    let egress = Flow::new(
        "pod1 to client",
        &layout.pods[1].ns,
        Proto::Tcp,
        "203.0.113.9:8080",
        "client 10.21.0.50",
    );
    layout.node.add(&settings, &layout.pods[1]);
    let before = layout.router.source_check_drops()["eth0"];
    crate::lab::flows::assert_only_these_fail(&[egress], &["pod1 to client"]);
    assert!(layout.router.source_check_drops()["eth0"] > before, "they left by eth0");
    // A connection that came in by eth1 is bound and leaves by eth1, whatever the other program marks.
    let bound = Flow::new(
        "client to pod1",
        &layout.client,
        Proto::Tcp,
        "10.21.0.50:8080",
        "pod1 203.0.113.9",
    );
    crate::lab::flows::assert_all_work(&[bound]);
    layout.node.del(&settings, &layout.pods[1]);
}
