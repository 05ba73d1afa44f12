//! lyft's layout (`cni-ipvlan-vpc-k8s`). A pod has an interface of its own in the cloud's network.
//! A veth without addresses connects it to the node, for requests to `NodePort`s.
//!
//! ```text
//!        far 203.0.113.9, 2001:db8:9::9        near 10.30.0.9, 2001:db8:2a::9 (same VPC)
//!                       |                        |
//!      +----------------+------------------------+-------+
//!      |                     router                      |    a source check on each NIC
//!      +-------+---------------------------------+-------+
//!            eth0                              eth1
//!            10.20.0.10/24                     no address on the node
//!            2001:db8:20::10/64                  |
//!      +-------+--------+                        |
//!      |      node      |  strict rp_filter      |
//!      +-------+--------+                        |
//!           vethpod, 10.21.0.50 dev vethpod      |
//!              |                                 |
//!            veth0: no address                 eth0: ipvlan on eth1, 10.21.0.50/24, 2001:db8:21::50/64
//!            10.20.0.10 dev veth0                |
//!      +-------+---------------------------------+-------+
//!      |   pod: strict rp_filter                         |
//!      +-------------------------------------------------+
//! ```
//!
//! Packets on the ipvlan pass no netfilter of the node. Over IPv6 the ends of the veth have
//! permanent neighbour entries, because there a node does not answer for an address of another
//! interface.

use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::kinds;
use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail_in_pods};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::netns::{Netns, unique};
use crate::lab::node::{Node, rp_filter_drops};
use crate::lab::plugin::Ran;
use crate::lab::router::Router;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

const NODE: [&str; 2] = ["10.20.0.10", "2001:db8:20::10"];
/// The node's addresses on eth2, if it has that NIC.
const SECOND: [&str; 2] = ["10.22.0.10", "2001:db8:22::10"];
const POD: [&str; 2] = ["10.21.0.50", "2001:db8:21::50"];
const ROUTER: [&str; 2] = ["10.21.0.1", "2001:db8:21::1"];
const FAR: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
const NEAR: [&str; 2] = ["10.30.0.9", "2001:db8:2a::9"];
const PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;
const HOST_PORT: u16 = 10250;

/// The kind of the pod's eth0.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Ipvlan,
    Macvlan,
}

/// Where the pod's default route leads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Default {
    /// To the VPC's router.
    Vpc,
    /// To the node, with the VPC's prefixes through its router: lyft's own setup.
    Node,
}

pub(super) struct Lyft {
    router: Router,
    pub(super) node: Node,
    pub(super) pod: Netns,
    far: Netns,
    near: Netns,
    pub(super) id: String,
    default: Default,
    servers: Vec<Server>,
}

impl Lyft {
    /// Makes the layout; `None` where the kernel lacks this kind of interface.
    #[track_caller]
    pub(super) fn new(kind: Kind, default: Default) -> Option<Self> {
        let (mut router, node) = (Router::new(), Node::new("node"));
        router.plug("eth0", &node.ns, "eth0", &["10.20.0.1"]);
        router.plug("eth1", &node.ns, "eth1", &ROUTER);
        let kind = match kind {
            Kind::Ipvlan => "ipvlan mode l2",
            Kind::Macvlan => "macvlan mode bridge",
        };
        if !kinds::add(&node, &format!("link eth1 name inpod type {kind}")) {
            return None;
        }
        node.ns.ip("addr add 10.20.0.10/24 dev eth0
             addr add 2001:db8:20::10/64 dev eth0 nodad
             route add default via 10.20.0.1 dev eth0
             route add default via fe80::1 dev eth0");
        let pod = Netns::new("pod");
        for scope in ["all", "default"] {
            pod.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "1");
        }
        let far = router.host("far", &FAR);
        let near = router.host("near", &NEAR);
        for (nic, addresses) in [("eth0", NODE), ("eth1", POD)] {
            for address in addresses {
                router.assign(nic, address);
            }
        }
        // A macvlan has its own hardware address.
        router.ns.ip("neigh del 10.21.0.50 dev eth1
             neigh del 2001:db8:21::50 dev eth1");
        router.check_sources(&["eth0", "eth1"]);
        let id = format!("pod-{}", unique());
        let mut lyft = Self { router, node, pod, far, near, id, default, servers: Vec::new() };
        lyft.connect();
        lyft.serve();
        Some(lyft)
    }

    /// Configures the pod's interfaces, and the routes between pod, node and VPC.
    fn connect(&self) {
        let (node, pod) = (&self.node.ns, &self.pod);
        let near = "02:05:00:00:00:01";
        let far = "02:05:00:00:00:02";
        node.ip(&format!(
            "link set inpod netns {0} name eth0
             link add vethpod address {near} type veth peer name veth0 address {far} netns {0}
             link set vethpod up
             route add {1} dev vethpod scope link
             route add {2} dev vethpod
             neigh add {2} dev vethpod lladdr {far} nud permanent",
            pod.name(),
            POD[0],
            POD[1]
        ));
        pod.ip(&format!(
            "link set eth0 up
             link set veth0 up
             addr add {}/24 dev eth0
             addr add {}/64 dev eth0 nodad",
            POD[0], POD[1]
        ));
        self.route_to_node(NODE);
        let ways = [(ROUTER, NODE, "10.0.0.0/8"), (ROUTER, NODE, "2001:db8:20::/44")];
        for (family, (router, node, vpc)) in ways.iter().enumerate() {
            pod.ip(&match self.default {
                Default::Vpc => format!("route add default via {} dev eth0", router[family]),
                Default::Node => format!(
                    "route add default via {} dev veth0
                     route add {vpc} via {} dev eth0",
                    node[family], router[family]
                ),
            });
        }
    }

    /// Gives the pod routes through the veth to these addresses of the node.
    fn route_to_node(&self, addresses: [&str; 2]) {
        self.pod.ip(&format!(
            "route add {} dev veth0 scope link
             route add {1} dev veth0
             neigh add {1} dev veth0 lladdr 02:05:00:00:00:01 nud permanent",
            addresses[0], addresses[1]
        ));
    }

    /// Starts the servers and the `NodePort`. The node masquerades what the pod sends through it to
    /// the Internet.
    fn serve(&mut self) {
        let backends = POD.map(|ip| SocketAddr::new(ip.parse().expect("an address"), PORT));
        let each = [Proto::Tcp, Proto::Udp].into_iter().flat_map(|p| backends.map(|b| (p, b)));
        let services = each.map(|(proto, backend)| Service {
            frontend: Frontend::NodePort(NODE_PORT),
            proto,
            backend,
            policy: Policy::Local,
        });
        kubeproxy::install(&self.node.ns, Flavour::Nftables, &services.collect::<Vec<_>>());
        self.node.ns.nft(&format!(
            "table inet egress {{
             chain out {{ type nat hook postrouting priority srcnat;
               ip saddr {} oifname eth0 masquerade
               ip6 saddr {} oifname eth0 masquerade
             }}
             counter passed {{ }}
             chain in {{ type filter hook prerouting priority raw;
               iifname eth1 ip daddr {0} counter name passed
               iifname eth1 ip6 daddr {1} counter name passed
             }}
             }}",
            POD[0], POD[1]
        ));
        for proto in [Proto::Tcp, Proto::Udp] {
            self.servers.push(Server::start(&self.pod, proto, PORT, "pod"));
            self.servers.push(Server::start(&self.node.ns, proto, HOST_PORT, "node"));
            self.servers.push(Server::start(&self.far, proto, PORT, "far"));
            self.servers.push(Server::start(&self.near, proto, PORT, "near"));
        }
    }

    /// Adds another NIC to the node, with its own addresses and table.
    fn plug_second_nic(&mut self) {
        let Self { router, node, .. } = &mut *self;
        router.plug("eth2", &node.ns, "eth2", &["10.22.0.1"]);
        node.ns.ip("addr add 10.22.0.10/24 dev eth2
             addr add 2001:db8:22::10/64 dev eth2 nodad
             route add default via 10.22.0.1 dev eth2 table 102
             route add default via fe80::1 dev eth2 table 102");
        for address in SECOND {
            router.assign("eth2", address);
        }
        router.check_sources(&["eth0", "eth1", "eth2"]);
        self.route_to_node(SECOND);
    }

    /// Result of the chain before symroute, which covers both interfaces.
    pub(super) fn result(&self) -> String {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "eth0", "sandbox": self.pod.path()},
                {"name": "vethpod"},
                {"name": "veth0", "sandbox": self.pod.path()}
            ],
            "ips": [
                {"address": format!("{}/24", POD[0]), "gateway": ROUTER[0], "interface": 0},
                {"address": format!("{}/64", POD[1]), "gateway": ROUTER[1], "interface": 0}
            ]
        })
        .to_string()
    }

    fn call(&self, verb: &str, settings: &Value) -> Ran {
        let network = self.node.network(settings, Some(&self.result()));
        let ran = self.node.cni(verb, &network, &self.id, &self.pod.path(), "eth0");
        ran.assert_success(verb);
        ran
    }

    pub(super) fn add(&self, settings: &Value) {
        let ran = self.call("ADD", settings);
        assert_eq!(ran.stdout.trim_end(), self.result(), "ADD prints prevResult as it came");
        self.call("CHECK", settings);
    }

    pub(super) fn del(&self, settings: &Value) {
        assert_eq!(self.call("DEL", settings).stdout, "", "DEL prints nothing");
        let log = fs::read_to_string(self.node.log()).unwrap_or_default();
        assert!(!log.contains("ERROR"), "DEL: {log}");
    }

    /// Deletes the connections of failed flows from conntrack.
    pub(super) fn flush(&self) {
        for ns in [&self.pod, &self.node.ns] {
            ns.exec(&["conntrack", "-F"], "");
        }
    }

    /// One question over both protocols and families, named `{name} {protocol} {family}`.
    fn flows<'a>(
        name: &str,
        from: &'a Netns,
        (to, port): ([&str; 2], u16),
        who: &str,
        seen_as: [&str; 2],
    ) -> Vec<Flow<'a>> {
        let mut flows = Vec::new();
        for proto in [Proto::Tcp, Proto::Udp] {
            for (family, to) in
                [format!("{}:{port}", to[0]), format!("[{}]:{port}", to[1])].into_iter().enumerate()
            {
                let answer: &'static str = format!("{who} {}", seen_as[family]).leak();
                let name = format!("{name} {proto:?} {}", ["IPv4", "IPv6"][family]);
                flows.push(Flow::new(&name, from, proto, &to, answer));
            }
        }
        flows
    }

    /// Questions of both clients to the pod.
    pub(super) fn client_flows(&self) -> Vec<Flow<'_>> {
        let clients = [("far", &self.far, FAR), ("near", &self.near, NEAR)];
        let both = clients.into_iter().flat_map(|(name, from, own)| {
            let node_port =
                Self::flows(&format!("{name} NodePort"), from, (NODE, NODE_PORT), "pod", own);
            let direct = Self::flows(&format!("{name} pod"), from, (POD, PORT), "pod", own);
            node_port.into_iter().chain(direct)
        });
        both.collect()
    }

    /// Questions of both clients to the pod, and to a `NodePort` through the node's second NIC.
    fn client_flows_by_two_nics(&self) -> Vec<Flow<'_>> {
        let second = Self::flows("far eth2", &self.far, (SECOND, NODE_PORT), "pod", FAR);
        self.client_flows().into_iter().chain(second).collect()
    }

    /// Questions of the node to the pod, and of the pod to others. All of them work without the
    /// plugin.
    fn unaffected_flows(&self) -> Vec<Flow<'_>> {
        let seen = if self.default == Default::Vpc { POD } else { NODE };
        [
            Self::flows("node to pod", &self.node.ns, (POD, PORT), "pod", NODE),
            Self::flows("pod to node", &self.pod, (NODE, HOST_PORT), "node", POD),
            Self::flows("pod to far", &self.pod, (FAR, PORT), "far", seen),
            Self::flows("pod to near", &self.pod, (NEAR, PORT), "near", POD),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Names of the flows that fail without the plugin. They arrive on the interface that the pod
    /// does not use for replies to that client.
    pub(super) fn broken(&self) -> &'static [&'static str] {
        match self.default {
            Default::Vpc => &["far NodePort", "near NodePort"],
            Default::Node => &["near NodePort", "far pod"],
        }
    }

    /// Asserts which flows fail. Each pattern is the start of a name, or start and end with "*"
    /// between them.
    pub(super) fn assert_only_these_fail(&self, flows: Vec<Flow<'_>>, broken: &[&str]) {
        let all: Vec<_> = flows.into_iter().chain(self.unaffected_flows()).collect();
        let is = |name: &str, pattern: &str| match pattern.split_once('*') {
            Some((start, end)) => name.starts_with(start) && name.ends_with(end),
            None => name.starts_with(pattern),
        };
        let fails = |name: &&str| broken.iter().any(|pattern| is(name, pattern));
        let broken: Vec<&str> = all.iter().map(|flow| &*flow.name).filter(fails).collect();
        assert_only_these_fail_in_pods(&all, &broken);
        self.flush();
    }

    /// Packets dropped by strict `rp_filter` in the pod and on the node, and by the source check.
    pub(super) fn drops(&self) -> [u64; 3] {
        [rp_filter_drops(&self.pod), self.node.rp_filter_drops(), self.router.dropped()]
    }

    /// Asserts that all flows work, that each reply leaves through the NIC of its request, and that
    /// no filter drops a packet.
    fn assert_answers(&self, asked: Vec<Flow<'_>>) {
        let before = self.drops();
        let flows: Vec<_> = asked.into_iter().chain(self.unaffected_flows()).collect();
        // All flows except those between node and pod pass the router.
        let passing = flows.iter().filter(|flow| !flow.name.contains("node")).count();
        let capture = Capture::start(&self.router.ns);
        assert_all_work(&flows);
        let mut packets = capture.stop();
        packets.retain(|packet| [6, 17].contains(&packet.protocol));
        let symmetric = assert_replies_symmetric(&packets, &["eth0", "eth1", "eth2"], true);
        // Half-open connections from before may send again meanwhile.
        assert!(symmetric >= passing, "the router saw {symmetric} flows both ways, of {passing}");
        assert_eq!(self.drops(), before, "drops in the pod, on the node and of the source check");
        let passed = self.node.ns.counter("egress", "passed");
        assert_eq!(passed, 0, "packets by eth1 through the node's netfilter");
    }
}

fn settings() -> Value {
    json!({"scope": "pod"})
}

#[track_caller]
fn assert_both_interfaces_answer(kind: Kind, default: Default) {
    let Some(lyft) = Lyft::new(kind, default) else { return };
    lyft.assert_only_these_fail(lyft.client_flows(), lyft.broken());
    assert!(rp_filter_drops(&lyft.pod) > 0, "strict rp_filter in the pod dropped nothing");
    drop(lyft);

    // A new layout, because half-open connections of the first one still send packets.
    let Some(lyft) = Lyft::new(kind, default) else { return };
    let before = Snapshot::of(&lyft.pod, &lyft.node);
    let host = Snapshot::take(&lyft.node);
    lyft.add(&settings());
    lyft.assert_answers(lyft.client_flows());
    // Again, with neighbours that the kernel has to look up.
    lyft.flush();
    for (ns, link) in [(&lyft.pod, "eth0"), (&lyft.pod, "veth0"), (&lyft.node.ns, "vethpod")] {
        ns.ip(&format!("neigh flush dev {link}"));
    }
    lyft.assert_answers(lyft.client_flows());
    host.assert_unchanged_but_files(&Snapshot::take(&lyft.node));

    lyft.del(&settings());
    before.assert_unchanged(&Snapshot::of(&lyft.pod, &lyft.node));
    lyft.flush();
    lyft.assert_only_these_fail(lyft.client_flows(), lyft.broken());
}

#[test]
fn an_ipvlan_with_the_default_route() {
    assert_both_interfaces_answer(Kind::Ipvlan, Default::Vpc);
}

#[test]
fn an_ipvlan_beside_the_default_route() {
    assert_both_interfaces_answer(Kind::Ipvlan, Default::Node);
}

#[test]
fn a_macvlan_with_the_default_route() {
    assert_both_interfaces_answer(Kind::Macvlan, Default::Vpc);
}

#[test]
fn a_macvlan_beside_the_default_route() {
    assert_both_interfaces_answer(Kind::Macvlan, Default::Node);
}

/// A layout whose node also has eth2.
#[track_caller]
fn with_second_nic(kind: Kind) -> Option<Lyft> {
    let mut lyft = Lyft::new(kind, Default::Vpc)?;
    lyft.plug_second_nic();
    Some(lyft)
}

/// A `NodePort` on a second NIC of the node needs the rules of the node and those of the pod.
#[track_caller]
fn assert_both_scopes(kind: Kind) {
    // All of the lab's NICs are veths, so "auto" takes only the one with the default route.
    let with = |scope: &Value| json!({"uplinks": ["auto", "eth2"], "scope": scope});
    let none = ["far NodePort", "near NodePort", "far eth2"];
    let Some(lyft) = with_second_nic(kind) else { return };
    lyft.assert_only_these_fail(lyft.client_flows_by_two_nics(), &none);
    for (scope, broken) in [("host", &none[..]), ("pod", &none[2..])] {
        let settings = with(&json!(scope));
        lyft.add(&settings);
        lyft.assert_only_these_fail(lyft.client_flows_by_two_nics(), broken);
        lyft.del(&settings);
    }
    drop(lyft);

    let Some(lyft) = with_second_nic(kind) else { return };
    let before = Snapshot::of(&lyft.pod, &lyft.node);
    let host = Snapshot::take(&lyft.node);
    let both = with(&json!(["host", "pod"]));
    lyft.add(&both);
    lyft.assert_answers(lyft.client_flows_by_two_nics());
    lyft.del(&both);
    before.assert_unchanged(&Snapshot::of(&lyft.pod, &lyft.node));
    host.assert_unchanged(&Snapshot::take(&lyft.node));
    lyft.flush();
    lyft.assert_only_these_fail(lyft.client_flows_by_two_nics(), &none);
}

#[test]
fn a_node_port_by_either_nic_of_the_node() {
    assert_both_scopes(Kind::Macvlan);
}

#[test]
fn a_node_port_by_either_nic_and_an_ipvlan() {
    assert_both_scopes(Kind::Ipvlan);
}
