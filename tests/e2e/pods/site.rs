//! A pod with several interfaces, each in a network of its own.
//!
//! ```text
//!                 client 203.0.113.9, 2001:db8:9::9
//!                              |
//!      +-----------------------+-----------------------+
//!      |  fabric   eth0: 10.100.0.1/24 2001:db8:100::1/64 |    a source check on each leg: it drops what
//!      |           net1: 10.100.1.1/24 ...             |    does not come from the leg's own network
//!      +----+---------+----------------------+---------+
//!         eth0      net1        ...        net7
//!      10.100.0.10 10.100.1.10           10.100.7.10             strict rp_filter, forwarding off
//!      +----+---------+----------------------+---------+
//!      |  pod     default route: by eth0 alone         |
//!      +-----------------------------------------------+
//! ```
//!
//! The kernel resolves all neighbours; no entry is permanent. Only the results of the plugins name
//! the routers of `net1` to `net7`, as those of IPAM plugins do. The runtime calls the plugin in
//! the node's namespace.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flows::{Flow, assert_all_work};
use crate::lab::netns::{Netns, unique};
use crate::lab::node::Node;
use crate::lab::plugin::Ran;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

pub(crate) const CLIENT: &str = "203.0.113.9";
pub(crate) const CLIENT6: &str = "2001:db8:9::9";
const PORT: u16 = 8080;

pub(crate) struct Site {
    pub(crate) node: Node,
    pub(crate) fabric: Netns,
    pub(crate) client: Netns,
    pub(crate) pod: Netns,
    pub(crate) id: String,
    interfaces: usize,
    servers: Vec<Server>,
}

/// The name of the interface with this number.
pub(crate) fn name(number: usize) -> String {
    if number == 0 { "eth0".into() } else { format!("net{number}") }
}

/// The pod's IPv4 address on the interface with this number.
pub(crate) fn address(number: usize) -> String {
    format!("10.100.{number}.10")
}

pub(crate) fn address6(number: usize) -> String {
    format!("2001:db8:100:{number}::10")
}

pub(crate) fn router(number: usize) -> String {
    format!("10.100.{number}.1")
}

pub(crate) fn router6(number: usize) -> String {
    format!("2001:db8:100:{number}::1")
}

/// The settings of these tests.
pub(crate) fn settings() -> Value {
    json!({"scope": "pod"})
}

impl Site {
    /// A pod with this number of interfaces.
    pub(crate) fn new(interfaces: usize) -> Self {
        Self::of(Netns::new("pod"), interfaces)
    }

    /// A pod with this number of interfaces in an existing namespace.
    pub(crate) fn of(pod: Netns, interfaces: usize) -> Self {
        let (node, fabric, client) =
            (Node::new("node"), Netns::new("fabric"), Netns::new("client"));
        fabric.sysctl("ipv4/ip_forward", "1");
        fabric.sysctl("ipv6/conf/all/forwarding", "1");
        fabric.ip(&format!(
            "link add client type veth peer name eth0 netns {}
             link set client up
             addr add 203.0.113.1/24 dev client
             addr add 2001:db8:9::1/64 dev client nodad",
            client.name()
        ));
        client.ip("link set eth0 up
             addr add 203.0.113.9/24 dev eth0
             addr add 2001:db8:9::9/64 dev eth0 nodad
             route add default via 203.0.113.1
             route add default via 2001:db8:9::1");
        for scope in ["all", "default"] {
            pod.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "1");
        }
        let id = format!("pod-{}", unique());
        let mut site = Self { node, fabric, client, pod, id, interfaces: 0, servers: Vec::new() };
        for _ in 0..interfaces {
            site.plug();
        }
        site.pod.ip(&format!(
            "route add default via {} dev eth0\nroute add default via {} dev eth0",
            router(0),
            router6(0)
        ));
        site
    }

    /// Adds an interface as a primary plugin leaves it, with servers on its addresses. Returns its
    /// number.
    pub(crate) fn plug(&mut self) -> usize {
        let number = self.interfaces;
        let leg = name(number);
        self.fabric.ip(&format!(
            "link add {leg} type veth peer name {leg} netns {}
             link set {leg} up
             addr add {}/24 dev {leg}
             addr add {}/64 dev {leg} nodad",
            self.pod.name(),
            router(number),
            router6(number)
        ));
        self.pod.ip(&format!(
            "link set {leg} up
             addr add {}/24 dev {leg}
             addr add {}/64 dev {leg} nodad",
            address(number),
            address6(number)
        ));
        self.interfaces += 1;
        self.check_sources();
        // A UDP server on the wildcard address would answer from another address, which no plugin
        // can change.
        for text in
            [format!("{}:{PORT}", address(number)), format!("[{}]:{PORT}", address6(number))]
        {
            let at: SocketAddr = text.parse().expect("an address");
            self.servers.push(Server::at(&self.pod, Proto::Udp, at, &leg));
            self.servers.push(Server::at(&self.pod, Proto::Tcp, at, &leg));
        }
        number
    }

    /// Makes the fabric drop packets whose source is not in the leg's own network.
    fn check_sources(&self) {
        let mut ruleset =
            String::from("table inet fabric\ndelete table inet fabric\ntable inet fabric {\n");
        ruleset +=
            "counter strays { }\nchain source_check { type filter hook prerouting priority raw;\n";
        for number in 0..self.interfaces {
            let _ = writeln!(
                ruleset,
                "iifname {0} ip saddr != 10.100.{number}.0/24 counter name strays drop
                 iifname {0} ip6 saddr != {{ fe80::/10, ::, 2001:db8:100:{number}::/64 }} counter name strays drop",
                name(number)
            );
        }
        self.fabric.nft(&(ruleset + "}\n}\n"));
    }

    /// Packets that the source check has dropped.
    pub(crate) fn source_check_drops(&self) -> u64 {
        self.fabric.counter("fabric", "strays")
    }

    /// Result of the plugin that made an interface.
    pub(crate) fn result(&self, number: usize) -> String {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": name(number), "sandbox": self.pod.path()}],
            "ips": [
                {"address": format!("{}/24", address(number)), "gateway": router(number), "interface": 0},
                {"address": format!("{}/64", address6(number)), "gateway": router6(number), "interface": 0}
            ]
        })
        .to_string()
    }

    /// Calls the plugin for an interface.
    pub(crate) fn call(&self, verb: &str, settings: &Value, number: usize) -> Ran {
        let network = self.node.network(settings, Some(&self.result(number)));
        self.node.cni(verb, &network, &self.id, &self.pod.path(), &name(number))
    }

    /// ADD. Asserts that it prints prevResult unchanged.
    pub(crate) fn add(&self, settings: &Value, number: usize) {
        let ran = self.call("ADD", settings, number);
        ran.assert_success("ADD");
        assert_eq!(ran.stdout.trim_end(), self.result(number), "ADD prints prevResult as it came");
    }

    pub(crate) fn check(&self, settings: &Value, number: usize) {
        self.call("CHECK", settings, number).assert_success("CHECK");
    }

    pub(crate) fn del(&self, settings: &Value, number: usize) {
        let before = fs::read_to_string(self.node.log()).unwrap_or_default().len();
        let ran = self.call("DEL", settings, number);
        ran.assert_success("DEL");
        assert_eq!(ran.stdout, "", "DEL prints nothing");
        let log = fs::read_to_string(self.node.log()).unwrap_or_default().split_off(before);
        assert!(!log.contains("ERROR"), "DEL: {log}");
    }

    /// DEL, after which the interface's own plugin removes it.
    pub(crate) fn detach(&self, settings: &Value, number: usize) {
        self.del(settings, number);
        self.pod.ip(&format!("link del {}", name(number)));
    }

    /// The client's questions to one interface, over both protocols and families.
    pub(crate) fn flows(&self, number: usize) -> Vec<Flow<'_>> {
        let leg = name(number);
        let mut flows = Vec::new();
        for proto in [Proto::Tcp, Proto::Udp] {
            for (to, client) in [
                (format!("{}:{PORT}", address(number)), CLIENT),
                (format!("[{}]:{PORT}", address6(number)), CLIENT6),
            ] {
                // The server has the name of its interface.
                let answer: &'static str = format!("{leg} {client}").leak();
                flows.push(Flow::new(
                    &format!("{leg} {proto:?} {to}"),
                    &self.client,
                    proto,
                    &to,
                    answer,
                ));
            }
        }
        flows
    }

    /// The client's questions to every interface.
    pub(crate) fn all_flows(&self) -> Vec<Flow<'_>> {
        (0..self.interfaces).flat_map(|number| self.flows(number)).collect()
    }

    /// Asserts that every interface answers, that each reply leaves through the interface of its
    /// request, and that no filter drops a packet.
    pub(crate) fn assert_answers(&self) {
        let before = (self.rp_filter_drops(), self.source_check_drops());
        let capture = Capture::start(&self.fabric);
        assert_all_work(&self.all_flows());
        let names: Vec<String> = (0..self.interfaces).map(name).collect();
        let nics: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut packets = capture.stop();
        // The filter leaves TCP and UDP, because neighbours may ask each other again.
        packets.retain(|packet| [6, 17].contains(&packet.protocol));
        let symmetric = assert_replies_symmetric(&packets, &nics, true);
        // Half-open connections from before may send again meanwhile.
        let own = 4 * self.interfaces;
        assert!(symmetric >= own, "the capture saw {symmetric} flows both ways, of {own}");
        assert_eq!(
            (self.rp_filter_drops(), self.source_check_drops()),
            before,
            "drops in the pod and of the source check"
        );
    }

    /// Packets that strict `rp_filter` has dropped in the pod.
    pub(crate) fn rp_filter_drops(&self) -> u64 {
        crate::lab::node::rp_filter_drops(&self.pod)
    }

    /// A snapshot of the pod's namespace and of the node's files.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.pod, &self.node)
    }
}
