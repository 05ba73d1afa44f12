//! Metrics of the data plane: connections bound and packets steered, by uplink.

use std::collections::BTreeMap;

use serde_json::json;

use crate::agent::{answers, plugin_object};
use crate::lab::agent::{Agent, until};
use crate::lab::backend::Backend;
use crate::lab::two_nics::{NICS, NODE, two_nics};

/// (connections bound, packets steered) of each uplink.
fn counts(agent: &Agent<'_>) -> BTreeMap<&'static str, (u64, u64)> {
    let of = |name: &str, nic| agent.metric(&format!("symroute_{name}_total{{uplink=\"{nic}\"}}"));
    NICS.map(|nic| (nic, (of("connections_bound", nic), of("packets_steered", nic)))).into()
}

fn counted_by(backend: Backend) {
    let layout = two_nics();
    let settings = json!({"uplinks": NICS, "backend": backend.name()});
    let agent = Agent::ready(&layout.node, &["--config", &plugin_object(&layout.node, &settings)]);
    assert_eq!(counts(&agent), NICS.map(|nic| (nic, (0, 0))).into());
    for (ours, other) in [(1, 0), (0, 1)] {
        let before = counts(&agent);
        for _ in 0..3 {
            assert!(answers(&layout, NODE[ours], 10250));
        }
        let (bound, steered) = before[NICS[ours]];
        // With iptables the agent may report numbers that are ten seconds old.
        until("counted", || counts(&agent)[NICS[ours]].0 == bound + 3);
        let now = counts(&agent);
        println!("{backend:?}: {now:?}");
        // SYN-ACK, the answer and its end, each with the acknowledgements around them.
        let packets = now[NICS[ours]].1 - steered;
        assert!((6..=18).contains(&packets), "{packets} packets for three connections");
        assert_eq!(now[NICS[other]], before[NICS[other]], "the other uplink");
        assert!(agent.metric("symroute_evidence_dropped_total") > 0);
    }
    // A reconcile does not replace the rules, so the counters stay.
    let before = counts(&agent);
    layout.node.up(&settings);
    assert_eq!(counts(&agent), before);
}

#[test]
fn connections_and_packets_are_counted_by_nftables() {
    counted_by(Backend::Nftables);
}

#[test]
fn connections_and_packets_are_counted_by_iptables_nft() {
    counted_by(Backend::IptablesNft);
}

#[test]
fn connections_and_packets_are_counted_by_iptables_legacy() {
    counted_by(Backend::IptablesLegacy);
}
