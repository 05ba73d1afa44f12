//! The layout of all recipes, what fails on it without the plugin, and the proof with it.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::agent::{PATIENT, until};
use crate::lab::capture::{Capture, Packet, assert_replies_symmetric};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::kubeproxy::{Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::node::{Node, Pod};
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Connection, Proto, Server, ask};
use crate::routing::lan::{Lan, firewall, host};

pub(super) const NICS: [&str; 2] = ["eth0", "eth1"];
/// An address of the subnet of `eth1` that no host has.
pub(super) const VIP: &str = "10.11.0.100";
pub(super) const CLIENT: &str = "203.0.113.9";
pub(super) const PODS: [&str; 2] = ["10.244.1.5", "10.244.2.5"];

/// Time after which a request without an answer has failed.
const TRY: Duration = Duration::from_millis(400);

/// Two nodes of a cluster between two routers.
pub(super) struct Site {
    pub(super) nodes: [Node; 2],
    /// The routers of `eth0` and of `eth1`.
    pub(super) edges: [Netns; 2],
    /// A client that reaches virtual addresses by the router of `eth1`.
    pub(super) client: Netns,
    /// A client that reaches everything by the router of `eth0`.
    pub(super) near: Netns,
    /// A node of the cluster without a second NIC: it reaches virtual addresses by both routers.
    pub(super) worker: Netns,
    _pods: [Pod; 2],
    _lans: [Lan; 3],
    _servers: Vec<Server>,
}

impl Site {
    pub(super) fn new() -> Self {
        let lans = ["lan0", "lan1", "outside"].map(Lan::new);
        let edges = [0, 1].map(|n: usize| {
            let edge = firewall(&format!("edge{n}"));
            lans[n].plug(&edge, "in", &[&format!("10.1{n}.0.1/24")]);
            lans[2].plug(&edge, "out", &[&format!("203.0.113.{}/24", n + 1)]);
            let other = 1 - n;
            edge.ip(&format!("route add 10.1{other}.0.0/24 via 203.0.113.{}", other + 1));
            edge
        });
        let nodes = ["a", "b"].map(|name| Node::new(&format!("node-{name}")));
        for (node, own) in nodes.iter().zip([10, 20]) {
            for (lan, nic) in lans.iter().zip(NICS) {
                let net = &nic[3..];
                lan.plug(&node.ns, nic, &[&format!("10.1{net}.0.{own}/24")]);
            }
            node.ns.ip("route add default via 10.10.0.1 dev eth0");
        }
        nodes[0].ns.ip("route add 10.244.2.0/24 via 10.10.0.20");
        nodes[1].ns.ip("route add 10.244.1.0/24 via 10.10.0.10");
        let pods = [0, 1].map(|n: usize| nodes[n].pod(["a", "b"][n], &[PODS[n]]));
        let client = host(&lans[2], "client", &format!("{CLIENT}/24"), "203.0.113.1");
        client.ip("route add 10.11.0.0/24 via 203.0.113.2
             route add 198.51.100.0/24 via 203.0.113.2");
        let near = host(&lans[2], "near", "203.0.113.8/24", "203.0.113.1");
        let worker = host(&lans[0], "worker", "10.10.0.30/24", "10.10.0.1");
        let mut servers = Vec::new();
        for (n, name) in ["a", "b"].iter().enumerate() {
            servers.push(Server::start(&nodes[n].ns, Proto::Tcp, 6443, &format!("node-{name}")));
            for proto in [Proto::Tcp, Proto::Udp] {
                servers.push(Server::start(&pods[n].ns, proto, 8080, &format!("pod-{name}")));
            }
        }
        Self { nodes, edges, client, near, worker, _pods: pods, _lans: lans, _servers: servers }
    }

    /// A flow: the client calls an address, and this server answers.
    pub(super) fn flow<'a>(
        &'a self,
        name: &str,
        proto: Proto,
        to: &str,
        answer: &'a str,
    ) -> Flow<'a> {
        Flow::new(name, &self.client, proto, to, answer)
    }

    /// Whether a client gets an answer of this server.
    pub(super) fn is_answered_by(&self, who: &str, to: &str) -> bool {
        is_answered_by(&self.client, who, to)
    }

    /// Asserts that strict `rp_filter` of node a drops the requests of all these flows without the plugin.
    pub(super) fn assert_strict_rp_filter_drops(&self, flows: &[Flow<'_>]) {
        let before = self.nodes[0].rp_filter_drops();
        assert_all_fail(flows);
        let drops = self.nodes[0].rp_filter_drops() - before;
        assert!(drops >= flows.len() as u64, "strict rp_filter dropped only {drops} packets");
    }

    /// Asserts that with loose `rp_filter` node a answers by the other NIC, where a firewall drops the
    /// replies.
    pub(super) fn assert_replies_leave_by_eth0(&self, flows: &[Flow<'_>], vip: &str) {
        let node = &self.nodes[0].ns;
        node.sysctl("ipv4/conf/all/rp_filter", "2");
        let capture = Capture::start(node);
        assert_all_fail(flows);
        let packets = capture.stop();
        let from_vip = |packet: &&Packet| {
            packet.outgoing && packet.from.ip().to_string() == vip && NICS.contains(&&*packet.port)
        };
        let left_by: Vec<&str> = packets.iter().filter(from_vip).map(|p| &*p.port).collect();
        assert!(left_by.len() >= flows.len(), "few replies: {left_by:?}");
        assert!(left_by.iter().all(|nic| *nic == "eth0"), "replies left by {left_by:?}");
        node.sysctl("ipv4/conf/all/rp_filter", "1");
    }

    /// `symroutectl up` on both nodes.
    pub(super) fn up(&self) {
        for node in &self.nodes {
            node.up(&settings());
        }
    }

    /// Opens a connection of the client that was answered once.
    pub(super) fn connection(&self, to: &str) -> Connection {
        let to = to.parse().expect("an address and port");
        let mut connection = Connection::open(&self.client, to, PATIENT).expect("a connection");
        connection.ask().expect("an answer");
        connection
    }

    /// Asserts that the virtual address has moved here. New connections are answered by eth1. An old
    /// connection with the other node gets a reset, which leaves by eth1 too.
    pub(super) fn assert_moved_to(&self, who: &str, to: &str, mut open: Connection) {
        until(&format!("{who} answers"), || self.is_answered_by(who, to));
        let error = open.ask().expect_err("the other node knew the connection");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
}

/// Two nodes with both NICs in one subnet, `10.11.0.0/24`. Each node reaches it by `eth0`, and each NIC
/// answers ARP for its own addresses.
pub(super) struct OneSubnet {
    pub(super) nodes: [Node; 2],
    pub(super) router: Netns,
    pub(super) client: Netns,
    _lans: [Lan; 2],
    _servers: [Server; 2],
}

impl OneSubnet {
    pub(super) fn new() -> Self {
        let lans = ["lan", "outside"].map(Lan::new);
        let router = firewall("router");
        lans[0].plug(&router, "in", &["10.11.0.1/24"]);
        lans[1].plug(&router, "out", &["203.0.113.1/24"]);
        let nodes = ["node-a", "node-b"].map(Node::new);
        for (node, last) in nodes.iter().zip(0..) {
            for (nic, first) in NICS.iter().zip([10, 20]) {
                lans[0].plug(&node.ns, nic, &[&format!("10.11.0.{}/24", first + last)]);
                node.ns.sysctl(&format!("ipv4/conf/{nic}/arp_ignore"), "1");
                node.ns.sysctl(&format!("ipv4/conf/{nic}/arp_announce"), "2");
            }
            node.ns.ip("route add default via 10.11.0.1 dev eth0");
        }
        let client = host(&lans[1], "client", &format!("{CLIENT}/24"), "203.0.113.1");
        let servers = [0, 1]
            .map(|n: usize| Server::start(&nodes[n].ns, Proto::Tcp, 6443, ["node-a", "node-b"][n]));
        Self { nodes, router, client, _lans: lans, _servers: servers }
    }

    /// Whether the client gets an answer of this server.
    pub(super) fn is_answered_by(&self, who: &str, to: &str) -> bool {
        is_answered_by(&self.client, who, to)
    }
}

fn is_answered_by(client: &Netns, who: &str, to: &str) -> bool {
    let to = to.parse().expect("an address and port");
    ask(client, Proto::Tcp, to, TRY).is_ok_and(|answer| answer.who == who)
}

fn assert_all_fail(flows: &[Flow<'_>]) {
    let names: Vec<&str> = flows.iter().map(|flow| flow.name.as_str()).collect();
    assert_only_these_fail(flows, &names);
}

/// `eth1` has no default route, so its router is named.
pub(super) fn settings() -> Value {
    json!({"uplinks": NICS, "gateways": {"eth1": ["10.11.0.1"]}})
}

/// A port of a Service of type `LoadBalancer`.
pub(super) fn service(
    vip: &str,
    port: u16,
    proto: Proto,
    backend: &str,
    policy: Policy,
) -> Service {
    let frontend = format!("{vip}:{port}").parse().expect("an address and port");
    let backend = backend.parse().expect("an address and port");
    Service { frontend: Frontend::Address(frontend), proto, backend, policy }
}

/// Node a as it is before the plugin runs.
pub(super) struct Watch<'a> {
    site: &'a Site,
    before: [Snapshot; 2],
    strict: u64,
}

impl<'a> Watch<'a> {
    pub(super) fn begin(site: &'a Site) -> Self {
        let before = site.nodes.each_ref().map(Snapshot::take);
        Self { site, before, strict: site.nodes[0].rp_filter_drops() }
    }

    /// Asserts that all flows work, each packet of a reply leaves node a by the NIC of the request, and
    /// strict `rp_filter` drops nothing. `both_ways`: the number of address and port pairs that node a
    /// speaks with.
    pub(super) fn assert_flows_work(&self, flows: &[Flow<'_>], both_ways: usize) {
        let node = &self.site.nodes[0];
        let capture = Capture::start(&node.ns);
        assert_all_work(flows);
        let is_bgp = |packet: &Packet| [packet.from, packet.to].iter().any(|end| end.port() == 179);
        let packets: Vec<Packet> = capture.stop().into_iter().filter(|p| !is_bgp(p)).collect();
        let symmetric = assert_replies_symmetric(&packets, &NICS, false);
        assert_eq!(symmetric, both_ways, "flows that the capture saw both ways");
        assert_eq!(node.rp_filter_drops(), self.strict, "drops of strict rp_filter");
    }

    /// Runs `symroutectl down` on both nodes, and asserts that they are as they were before.
    pub(super) fn assert_down_leaves_nothing(&self) {
        for (node, before) in self.site.nodes.iter().zip(&self.before) {
            node.down();
            before.assert_unchanged(&Snapshot::take(node));
        }
    }
}
