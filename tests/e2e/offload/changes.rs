//! Something changes while connections are in the flowtable: they go on by the right NIC, and come back to the
//! flowtable. Each change is followed by an agent, and by `up` in its place.
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

/// Addresses of the pod that is called by DNAT.
const BEHIND: [&str; 2] = ["10.244.0.5", "2001:db8:244::5"];
/// What is called for it: the node's addresses on eth1.
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
        // On a slow machine a connection may rest for longer than the 30 s that it has by default.
        for (what, seconds) in [
            ("conntrack_udp_timeout_stream", "900"),
            ("flowtable_udp_timeout", "600"),
            ("flowtable_tcp_timeout", "600"),
        ] {
            scene.layout.node.ns.sysctl(&format!("netfilter/nf_{what}"), seconds);
        }
        scene
    }

    /// From now on, new connections to these addresses go to a pod at those.
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

    /// Connections to these addresses, by each protocol. The servers are in the pod, at those addresses.
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

    /// Connections by eth1: to pod1 at its own addresses, and by DNAT.
    fn talks(&self) -> Vec<Talk> {
        let at = [POD[1], POD6[1]];
        let mut talks = self.begin(at, &self.layout.pods[1], at);
        talks.extend(self.begin(CALLED, &self.behind, BEHIND));
        talks
    }

    /// They come into the flowtable, and go by this NIC.
    fn offload(&self, nic: &str, talks: &mut [Talk], what: &str) {
        for talk in talks.iter_mut() {
            offload(&self.layout.node.ns, talk);
        }
        self.assert_goes_by([nic; 2], talks, what);
        self.assert_offloaded(talks, what);
    }

    /// They are in the flowtable. No packet is sent.
    fn assert_offloaded(&self, talks: &[Talk], what: &str) {
        for talk in talks {
            let ns = &self.layout.node.ns;
            assert!(is_offloaded(ns, talk), "not offloaded after {what}: {}", line_of(ns, talk));
        }
    }

    /// They are not in the flowtable. No packet is sent.
    fn assert_at_rules(&self, talks: &[Talk], what: &str) {
        for talk in talks {
            let ns = &self.layout.node.ns;
            assert!(!is_offloaded(ns, talk), "offloaded after {what}: {}", line_of(ns, talk));
        }
    }

    /// Both ends speak. Requests use the first NIC and no other, replies the second.
    fn assert_goes_by(&self, nics: [&str; 2], talks: &mut [Talk], what: &str) {
        self.assert_seen_at(nics[0], &[nics[1]], talks, what);
    }

    /// Both ends speak. The router sends requests by this port and no other, and sees replies at these.
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

    /// After a change that the plugin has followed: the connections go on by this NIC, and come back.
    fn assert_back(&self, nic: &str, talks: &mut [Talk], what: &str) {
        self.assert_goes_by([nic; 2], talks, what);
        self.offload(nic, talks, what);
    }
}

/// What has the plugin follow changes.
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

    /// Returns when the plugin has followed what has changed.
    fn follow(&self) {
        if self.agent.is_none() {
            self.node.up(&self.settings);
        }
        until("nothing differs", || self.node.symroute(&["status"]).success);
    }

    /// What a test has to say of it.
    fn name(&self) -> &'static str {
        if self.agent.is_some() { "the agent" } else { "up" }
    }
}

/// One change of a node.
type Change = (&'static str, fn(&Scene));

/// The connections go on by eth1 after each of these changes, one after the other, with each keeper.
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
            // On a node without rules, this may be sent anywhere, and be offloaded like that.
            talks.iter_mut().for_each(Talk::call);
            keeper.follow();
            scene.assert_back("eth1", &mut talks, &what);
        }
    }
}
