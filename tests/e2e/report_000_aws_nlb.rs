//! Field report 000: AWS VPC CNI behind a load balancer that keeps the client's address.
//!
//! ```text
//!  client 203.0.113.9          remote pod 172.31.60.10
//!          |                          |
//!  +-------+--------------------------+-------+   the VPC: 172.31.48.1 on every port,
//!  |                 router                   |   a source check on each NIC of the node
//!  +---+----------------+----------------+----+
//!    eth0             eth1             eth2
//!    172.31.53.61/20  172.31.53.62     172.31.53.63     (only eth0's subnet is in main)
//!  +---+----------------+----------------+----+
//!  |   main             table 2          table 3   node: strict rp_filter,
//!  +---+----------------+----------------+----+    kube-proxy, four states of AWS's rules
//!    enipod0          enipod1          enipod2
//!    172.31.49.222    172.31.49.111    172.31.50.208    (addresses of eth0, eth1, eth2)
//! ```
//!
//! Without the plugin a request may come in by one NIC for a pod of another. Then strict `rp_filter`
//! drops it, or its reply leaves by a NIC that does not own the source address.

mod layout;

use serde_json::{Value, json};

use crate::lab::aws::Snat;
use crate::lab::backend::Backend;
use crate::lab::flows::assert_only_these_fail;
use crate::lab::proof::Proof;
use crate::ledger::clashes;
use layout::{Layout, NICS};

/// What fails without the plugin in every state, in the order of the flows.
const BROKEN: [&str; 14] = [
    "NodePort on eth0 to pod2 over Tcp",
    "NodePort on eth0 to pod2 over Udp",
    "NodePort on eth1 to pod2 over Tcp",
    "NodePort on eth1 to pod2 over Udp",
    "NodePort on eth1 to pod0 over Tcp",
    "NodePort on eth1 to pod0 over Udp",
    "NodePort on eth1 to remote over Tcp",
    "NodePort on eth1 to remote over Udp",
    "host on eth1",
    "NodePort on eth2 to pod0 over Tcp",
    "NodePort on eth2 to pod0 over Udp",
    "NodePort on eth2 to remote over Tcp",
    "NodePort on eth2 to remote over Udp",
    "host on eth2",
];
const BROKEN6: [&str; 6] = [
    "NodePort on eth0 to pod2, IPv6",
    "host on eth1, IPv6",
    "NodePort on eth1 to pod0, IPv6",
    "NodePort on eth1 to pod2, IPv6",
    "host on eth2, IPv6",
    "NodePort on eth2 to pod0, IPv6",
];

fn settings() -> Value {
    json!({"uplinks": NICS})
}

/// The IPv4 flows that fail without the plugin.
fn broken(snat: Snat) -> Vec<&'static str> {
    let egress = matches!(snat, Snat::ByIptables | Snat::ByNftables).then_some("pod egress");
    BROKEN.into_iter().chain(egress).collect()
}

/// Asserts that the named flows fail without the plugin: over IPv4 by strict `rp_filter`, over IPv6 by
/// the source check. Returns how many of the 27 work.
fn baseline(layout: &Layout) -> usize {
    let (mut flows, of4) = (layout.flows(), layout.flows().len());
    flows.extend(layout.flows6());
    let broken = broken(layout.snat);
    assert_only_these_fail(&flows, &[broken.as_slice(), &BROKEN6].concat());
    let (strict, source) = (layout.node.rp_filter_drops(), layout.router.dropped());
    assert!(strict >= broken.len() as u64, "strict rp_filter dropped only {strict} packets");
    assert!(source >= BROKEN6.len() as u64, "the source check dropped only {source} packets");
    if layout.snat == Snat::NoRules {
        layout.node.assert_explained("report_000", &settings(), &Layout::requests());
    }
    of4 - broken.len()
}

/// Asserts that everything works with the plugin, symmetrically, and that the last DEL leaves nothing
/// behind. Returns how many of the 27 work.
fn with_symroute(layout: &Layout) -> usize {
    let proof = Proof::begin(&layout.node, &layout.router);
    for pod in &layout.pods {
        layout.node.add(&settings(), pod);
    }
    // With iptables, AWS VPC CNI 1.23 writes the mark of first packets after symroute.
    let behind = layout.snat == Snat::ByNftables && Backend::of_run().is_iptables();
    assert_eq!(clashes(&layout.node), usize::from(behind), "clashes over marks");
    let (mut flows, of4) = (layout.flows(), layout.flows().len());
    flows.extend(layout.flows6());
    // Pod to pod does not cross the router; the six NodePorts of the remote pod cross it twice.
    proof.assert_flows_work(&flows, &NICS, flows.len() - 1 + 6);
    for pod in &layout.pods {
        layout.node.del(&settings(), pod);
    }
    proof.assert_as_before();
    of4
}

fn field_report(snat: Snat) {
    // A layout each: half-open connections of the first one would go on sending in the second.
    let today = baseline(&Layout::build(snat));
    let now = with_symroute(&Layout::build(snat));
    println!(
        "field report 000, AWS state {}: baseline {today} of 27, with symroute {now} of 27",
        snat.name()
    );
}

#[test]
fn without_any_rules_of_aws() {
    field_report(Snat::NoRules);
}

#[test]
fn with_externalsnat_true() {
    field_report(Snat::External);
}

#[test]
fn with_externalsnat_false_by_iptables() {
    field_report(Snat::ByIptables);
}

#[test]
fn with_externalsnat_false_by_nftables() {
    field_report(Snat::ByNftables);
}

/// `explain` predicts the result of each flow, without the plugin and with it.
fn verdicts(snat: Snat) {
    let layout = Layout::build(snat);
    let (name, broken) = (snat.name(), [broken(snat).as_slice(), &BROKEN6].concat());
    let flows = || {
        let mut flows = layout.flows();
        flows.extend(layout.flows6());
        flows
    };
    layout.node.assert_verdicts(&format!("report 000, {name}"), &settings(), &flows(), &broken);
    for pod in &layout.pods {
        layout.node.add(&settings(), pod);
    }
    let what = format!("report 000, {name}, with symroute");
    layout.node.assert_verdicts(&what, &settings(), &flows(), &[]);
    for pod in &layout.pods {
        layout.node.del(&settings(), pod);
    }
}

#[test]
fn verdicts_without_any_rules_of_aws() {
    verdicts(Snat::NoRules);
}

#[test]
fn verdicts_with_externalsnat_true() {
    verdicts(Snat::External);
}

#[test]
fn verdicts_with_externalsnat_false_by_iptables() {
    verdicts(Snat::ByIptables);
}

#[test]
fn verdicts_with_externalsnat_false_by_nftables() {
    verdicts(Snat::ByNftables);
}
