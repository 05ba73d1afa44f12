//! Something changes while connections are in the flowtable. They go on through the right NIC, and
//! return to the flowtable. An agent follows each change, and in another run `up` does.
//!
//! ```text
//!            client
//!              |
//!  +-----------+-----------+
//!  |        router         |   a source check on both NICs
//!  +----+-------------+----+
//!     eth0          eth1
//!  +----+-------------+----+
//!  | node: strict rp_filter|   DNAT of the node's address on eth1 to "behind"
//!  +--------+---------+----+
//!         behind     pod1, which is called by its own address
//! ```

mod damage;
mod links;
mod moved;
mod pods;
mod settings;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::PROTOS;
use crate::agent::plugin_object;
use crate::lab::agent::{Agent, until};
use crate::lab::capture::Capture;
use crate::lab::flowtable::{is_offloaded, line_of, offload};
use crate::lab::node::{Node, Pod};
use crate::lab::talk::{Listening, Talk};
use crate::lab::two_nics::{NODE, NODE6, POD, POD6, TwoNics, two_nics};

/// Addresses of the pod that DNAT leads to.
const BEHIND: [&str; 2] = ["10.244.0.5", "2001:db8:244::5"];
/// The node's addresses on eth1, which clients call for that pod.
const CALLED: [&str; 2] = [NODE[1], NODE6[1]];

fn settings() -> Value {
    json!({"uplinks": ["eth*"], "offload": true})
}

struct Scene {
    layout: TwoNics,
    behind: Pod,
}

impl Scene {
    fn new() -> Self {
        let layout = two_nics();
        let behind = layout.node.pod("behind", &BEHIND);
        let scene = Self { layout, behind };
        scene.dnat(CALLED, BEHIND);
        // A connection may rest longer than the default of 30 s on a slow machine.
        for (what, seconds) in [
            ("conntrack_udp_timeout_stream", "900"),
            ("flowtable_udp_timeout", "600"),
            ("flowtable_tcp_timeout", "600"),
        ] {
            scene.layout.node.ns.sysctl(&format!("netfilter/nf_{what}"), seconds);
        }
        scene
    }

    /// Makes new connections to the addresses `called` go to the pod at `to`.
    fn dnat(&self, called: [&str; 2], to: [&str; 2]) {
        self.layout.node.ns.nft(&format!(
            "table inet lab
            flush table inet lab
            table inet lab {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat
                    meta l4proto {{ tcp, udp }} ip daddr {} dnat ip to {}
                    meta l4proto {{ tcp, udp }} ip6 daddr {} dnat ip6 to {}
                }}
            }}",
            called[0], to[0], called[1], to[1]
        ));
    }

    /// Opens connections to the addresses `called`, for each protocol. The servers are in the pod,
    /// at the addresses `at`.
    fn begin(&self, called: [&str; 2], pod: &Pod, at: [&str; 2]) -> Vec<Talk> {
        let mut talks = Vec::new();
        for proto in PROTOS {
            for (called, at) in called.into_iter().zip(at) {
                let server = Listening::at(&pod.ns, proto, at, 0);
                let to =
                    SocketAddr::new(called.parse().expect("an address"), server.address().port());
                talks.push(Talk::through(&self.layout.client, server, to));
            }
        }
        talks
    }

    /// Opens connections through eth1: to pod1 at its own addresses, and to the pod behind DNAT.
    fn talks(&self) -> Vec<Talk> {
        let at = [POD[1], POD6[1]];
        let mut talks = self.begin(at, &self.layout.pods[1], at);
        talks.extend(self.begin(CALLED, &self.behind, BEHIND));
        talks
    }

    /// Waits until the connections are in the flowtable, and asserts that they use this NIC.
    fn offload(&self, nic: &str, talks: &mut [Talk], what: &str) {
        for talk in talks.iter_mut() {
            offload(&self.layout.node.ns, talk);
        }
        self.assert_goes_by([nic; 2], talks, what);
        self.assert_offloaded(talks, what);
    }

    /// Asserts that the connections are in the flowtable. Sends no packet.
    fn assert_offloaded(&self, talks: &[Talk], what: &str) {
        for talk in talks {
            let ns = &self.layout.node.ns;
            assert!(is_offloaded(ns, talk), "not offloaded after {what}: {}", line_of(ns, talk));
        }
    }

    /// Asserts that the connections are not in the flowtable. Sends no packet.
    fn assert_at_rules(&self, talks: &[Talk], what: &str) {
        for talk in talks {
            let ns = &self.layout.node.ns;
            assert!(!is_offloaded(ns, talk), "offloaded after {what}: {}", line_of(ns, talk));
        }
    }

    /// Asserts that both ends speak, with requests on the first NIC alone and replies on the
    /// second.
    fn assert_goes_by(&self, nics: [&str; 2], talks: &mut [Talk], what: &str) {
        self.assert_seen_at(nics[0], &[nics[1]], talks, what);
    }

    /// Asserts that both ends speak. The router sends requests through this port alone, and sees
    /// each reply at all of `replies`.
    fn assert_seen_at(&self, requests: &str, replies: &[&str], talks: &mut [Talk], what: &str) {
        let capture = Capture::start(&self.layout.router.ns);
        for talk in talks.iter_mut() {
            talk.assert_goes_on(what);
        }
        let packets = capture.stop();
        let by_nics = || packets.iter().filter(|packet| packet.port != "client");
        for client in talks.iter().map(Talk::client) {
            let sent = by_nics().filter(|packet| packet.outgoing && packet.from == client);
            let sent: BTreeSet<&str> = sent.map(|packet| packet.port.as_str()).collect();
            assert_eq!(sent, BTreeSet::from([requests]), "{what}: requests of {client}");
            let seen = by_nics().filter(|packet| !packet.outgoing && packet.to == client);
            let seen: BTreeSet<&str> = seen.map(|packet| packet.port.as_str()).collect();
            let wanted = replies.iter().copied().collect();
            assert_eq!(seen, wanted, "{what}: replies to {client}");
        }
    }

    /// Asserts that the connections go on through this NIC and return to the flowtable, once
    /// symroute has followed a change.
    fn assert_back(&self, nic: &str, talks: &mut [Talk], what: &str) {
        self.assert_goes_by([nic; 2], talks, what);
        self.offload(nic, talks, what);
    }
}

/// Makes symroute follow changes: an agent, or `up` after each change.
struct Keeper<'a> {
    node: &'a Node,
    settings: Value,
    agent: Option<Agent<'a>>,
}

impl<'a> Keeper<'a> {
    fn begin(node: &'a Node, with_agent: bool) -> Self {
        Self::with(node, settings(), with_agent)
    }

    fn with(node: &'a Node, settings: Value, with_agent: bool) -> Self {
        node.up(&settings);
        let agent =
            with_agent.then(|| Agent::ready(node, &["--config", &plugin_object(node, &settings)]));
        Self { node, settings, agent }
    }

    /// Waits until symroute has followed the change.
    fn follow(&self) {
        if self.agent.is_none() {
            self.node.up(&self.settings);
        }
        until("nothing differs", || self.node.symroute(&["status"]).success);
    }

    /// Name of the keeper in a test's messages.
    fn name(&self) -> &'static str {
        if self.agent.is_some() { "the agent" } else { "up" }
    }
}

/// One change of a node: a name, and the function that makes it.
type Change = (&'static str, fn(&Scene));

/// Asserts that connections go on through eth1 after each of these changes, with each keeper.
fn go_on_after(changes: &[Change]) {
    for with_agent in [false, true] {
        let scene = Scene::new();
        let keeper = Keeper::begin(&scene.layout.node, with_agent);
        let mut talks = scene.talks();
        scene.offload("eth1", &mut talks, "the begin");
        for (what, change) in changes {
            let what = format!("{what}, followed by {}", keeper.name());
            println!("{what}");
            change(&scene);
            // A node without rules may send this packet anywhere, and offload the connection like
            // that.
            talks.iter_mut().for_each(Talk::call);
            keeper.follow();
            scene.assert_back("eth1", &mut talks, &what);
        }
    }
}
