//! The spoof matrix: a packet in the name of each party, by each interface, to each destination, and into connections
//! that exist. `spoofs/nftables.txt` and `spoofs/iptables.txt` list each packet that only the node with
//! the plugin lets in, or only the node without. Maintainers have reviewed them.
//!
//! ```text
//!   client   stranger   far0 10.20.0.77   far1 10.21.0.77     no one has any of the other addresses
//!  +--+---------+-----------+-----------------+----+
//!  |                    router                     |   sends what is forged
//!  +-------+---------------+---------------+-------+
//!        eth0            eth1            eth2              eth2 is no uplink, but leads outside
//!  +-------+---------------+---------------+-------+
//!  |   node: strict rp_filter, kube-proxy          |   10.99.0.0/16 blackholed
//!  +---+-------+-----------+-------------+---------+
//!    pod0    pod1        pod101        cni0, a bridge: pod 10.244.0.5
//!    sends   own table   without an    sends what is forged, too
//!    too                 attachment
//! ```
//!
//! docs/security.md explains each reason for which the plugin may let in what strict `rp_filter` would drop. A packet
//! for which no reason holds fails the test, whatever the table says.

mod calls;
mod connections;
mod scene;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::thread;

use serde_json::json;

use crate::lab::backend::Backend;
use crate::lab::fates::Fate;
use crate::lab::two_nics::NICS;
use scene::Scene;

/// The place of a source or a destination, as seen from the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Outside,
    Inside,
    /// The node itself: its addresses and its Services.
    Node,
    /// Localhost and multicast, which no packet may have as source.
    Nowhere,
}

/// One forged packet.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Cell {
    family: usize,
    who: String,
    by: String,
    to: String,
    packet: &'static str,
    from: Place,
    at: Place,
    is_of_a_connection: bool,
}

/// Two nodes that differ in one thing, and the fate of a packet on each.
struct Difference {
    /// Of the second node.
    hairpin: bool,
    cell: Cell,
    fates: [Fate; 2],
}

impl Difference {
    /// Both nodes have a route for the packet, and the second one sends it out.
    fn is_sent_out(&self) -> bool {
        self.fates[0] != Fate::Dropped && matches!(self.fates[1], Fate::Out(_))
    }

    /// The reason why the plugin may let this packet in, in the words of docs/security.md.
    fn reason(&self) -> &'static str {
        let Cell { family, by, packet, from, at, is_of_a_connection, .. } = &self.cell;
        let by_uplink = NICS.contains(&by.as_str());
        match (by_uplink, self.hairpin, *from, *at) {
            _ if self.fates[1] == Fate::Dropped => NO_REASON,
            _ if self.is_sent_out() => "Sent out instead of let in",
            (true, _, Place::Outside, _) if *packet == "ICMP error" => "An ICMP error from outside",
            (true, _, Place::Outside, _) if *is_of_a_connection => {
                "A packet of a connection by another uplink"
            }
            (true, _, Place::Outside, Place::Inside | Place::Node) => "A request from outside",
            (true, _, Place::Outside, Place::Outside)
                if *family == 0 && Backend::of_run().is_iptables() =>
            {
                "What only passes through, with iptables"
            }
            (true, true, Place::Inside, _) => "Hairpin is on",
            _ => NO_REASON,
        }
    }
}

const NO_REASON: &str = "NO REASON";

/// The fate of each forged packet on a node with these settings, or without the plugin.
fn fates(hairpin: Option<bool>) -> Vec<(Cell, Fate)> {
    let scene = Scene::new();
    if let Some(hairpin) = hairpin {
        let settings = json!({"uplinks": NICS, "hairpin": hairpin});
        scene.layout.pods.iter().for_each(|pod| scene.layout.node.add(&settings, pod));
    }
    let mut fates = calls::fates(&scene);
    fates.extend(connections::fates(&scene));
    fates
}

/// The packets whose fates differ.
fn differences(hairpin: bool, one: &[(Cell, Fate)], other: &[(Cell, Fate)]) -> Vec<Difference> {
    assert_eq!(one.len(), other.len());
    let mut differences = Vec::new();
    for ((cell, before), (same, after)) in one.iter().zip(other) {
        assert_eq!(cell, same, "the same packet");
        if before != after {
            let fates = [before.clone(), after.clone()];
            differences.push(Difference { hairpin, cell: cell.clone(), fates });
        }
    }
    differences
}

/// Whether docs/security.md has a row for the reason.
fn is_explained(reason: &str) -> bool {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md");
    let text = fs::read_to_string(path).expect("docs/security.md");
    text.contains(&format!("| {reason} |"))
}

#[test]
fn what_the_plugin_lets_in_is_in_the_table() {
    let [without, with, hairpin] = thread::scope(|scope| {
        [None, Some(false), Some(true)]
            .map(|hairpin| scope.spawn(move || fates(hairpin)))
            .map(|node| node.join().expect("the packets are sent"))
    });
    let packets = with.len() + hairpin.len();
    let mut found = differences(false, &without, &with);
    found.extend(differences(true, &with, &hairpin));
    let wrong: BTreeSet<_> =
        found.iter().map(Difference::reason).filter(|r| !is_explained(r)).collect();
    let unknown = table::compare(&found);
    println!("spoofs: {packets} packets, {unknown} differences that are not in the table");
    assert!(wrong.is_empty(), "docs/security.md has no such reason: {wrong:?}");
    assert_eq!(unknown, 0, "{}", table::REMEDY);
}
