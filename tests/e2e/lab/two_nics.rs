//! The plain layout that most tests start from: two NICs, each with a subnet and a pod of its own.
//!
//! ```text
//!            client 203.0.113.9, 2001:db8:9::9
//!                         |
//!  +----------------------+----------------------+   10.20.0.1, 10.21.0.1, fe80::1,
//!  |                   router                    |   a source check on both NICs
//!  +-------+-----------------------------+-------+
//!        eth0                          eth1
//!        10.20.0.10/24                 10.21.0.10/24
//!        2001:db8:20::10/64            2001:db8:21::10/64
//!  +-------+-----------------------------+-------+
//!  |     main: default                 table 101 |   node: strict rp_filter
//!  +-------+-----------------------------+-------+
//!       enipod0                       enipod1
//!       10.20.0.50                    10.21.0.50
//!       2001:db8:20::50               2001:db8:21::50
//! ```
//!
//! Servers: the host on 10250, each pod and the client on 8080, over TCP and UDP.

use super::flows::Flow;
use super::netns::Netns;
use super::node::{Node, Pod};
use super::router::Router;
use super::traffic::{Proto, Server};

pub(crate) const NICS: [&str; 2] = ["eth0", "eth1"];
pub(crate) const NODE: [&str; 2] = ["10.20.0.10", "10.21.0.10"];
pub(crate) const NODE6: [&str; 2] = ["2001:db8:20::10", "2001:db8:21::10"];
pub(crate) const POD: [&str; 2] = ["10.20.0.50", "10.21.0.50"];
pub(crate) const POD6: [&str; 2] = ["2001:db8:20::50", "2001:db8:21::50"];
/// The addresses of [`TwoNics::pod_at_bridge`].
pub(crate) const BRIDGED: [&str; 2] = ["10.244.0.5", "2001:db8:244::5"];
pub(crate) const CLIENT: &str = "203.0.113.9";
pub(crate) const CLIENT6: &str = "2001:db8:9::9";

pub(crate) struct TwoNics {
    pub(crate) router: Router,
    pub(crate) node: Node,
    pub(crate) client: Netns,
    pub(crate) pods: [Pod; 2],
    servers: Vec<Server>,
}

impl TwoNics {
    /// Makes a pod with addresses behind eth1 and without a rule of its own. Strict `rp_filter`
    /// drops its requests until the pod is attached. `number`: 1 to 99.
    pub(crate) fn pod_behind_eth1(&mut self, number: u8) -> Pod {
        let addresses = Self::addresses_behind_eth1(number);
        let name = format!("pod1{number:02}");
        for address in &addresses {
            self.router.assign("eth1", address);
        }
        self.router.check_sources(&NICS);
        let pod = self.node.pod(&name, &addresses.each_ref().map(String::as_str));
        self.servers.push(Server::start(&pod.ns, Proto::Tcp, 8080, &name));
        pod
    }

    /// Makes a namespace at a bridge of the node, `cni0`, with the addresses of [`BRIDGED`]. No
    /// runtime calls the plugin for it.
    pub(crate) fn pod_at_bridge(&self) -> Netns {
        let pod = Netns::new("bridged");
        self.node.ns.ip(&format!(
            "link add cni0 type bridge
             link set cni0 up
             addr add 10.244.0.1/24 dev cni0
             addr add 2001:db8:244::1/64 dev cni0 nodad
             link add bridged type veth peer name eth0 netns {}
             link set bridged up master cni0",
            pod.name()
        ));
        pod.ip("link set eth0 up
             addr add 10.244.0.5/24 dev eth0
             addr add 2001:db8:244::5/64 dev eth0 nodad
             route add default via 10.244.0.1
             route add default via 2001:db8:244::1");
        pod
    }

    /// The IPv4 address of [`Self::pod_behind_eth1`].
    pub(crate) fn address_behind_eth1(number: u8) -> String {
        format!("10.21.0.{}", 100 + number)
    }

    /// Both addresses of [`Self::pod_behind_eth1`].
    pub(crate) fn addresses_behind_eth1(number: u8) -> [String; 2] {
        [Self::address_behind_eth1(number), format!("2001:db8:21::1{number:02}")]
    }

    /// The client asks the host on eth1. Strict `rp_filter` drops this request without the plugin.
    pub(crate) fn flow_to_host(&self) -> Flow<'_> {
        let to = format!("{}:10250", NODE[1]);
        Flow::new("host on eth1", &self.client, Proto::Tcp, &to, "host 203.0.113.9")
    }

    /// The client asks a pod made by [`Self::pod_behind_eth1`]. This works while the pod is
    /// attached.
    pub(crate) fn flow_to_pod<'a>(&'a self, number: u8, answer: &'a str) -> Flow<'a> {
        let to = format!("{}:8080", Self::address_behind_eth1(number));
        Flow::new(&format!("pod {to}"), &self.client, Proto::Tcp, &to, answer)
    }
}

pub(crate) fn two_nics() -> TwoNics {
    let (mut router, node) = (Router::new(), Node::new("node"));
    router.plug("eth0", &node.ns, "eth0", &["10.20.0.1"]);
    router.plug("eth1", &node.ns, "eth1", &["10.21.0.1"]);
    node.ns.ip("addr add 10.20.0.10/24 dev eth0
         addr add 10.21.0.10/24 dev eth1
         addr add 2001:db8:20::10/64 dev eth0 nodad
         addr add 2001:db8:21::10/64 dev eth1 nodad
         route add default via 10.20.0.1 dev eth0
         route add default via fe80::1 dev eth0
         route add default via 10.21.0.1 dev eth1 table 101
         route add default via fe80::1 dev eth1 table 101
         rule add pref 1536 from 10.21.0.50 lookup 101");
    node.ns.ip6("rule add pref 1536 from 2001:db8:21::50 lookup 101");
    let pods = [0, 1].map(|i| {
        for address in [NODE[i], NODE6[i], POD[i], POD6[i]] {
            router.assign(NICS[i], address);
        }
        node.ns.ip(&format!("rule add pref 512 to {} lookup main", POD[i]));
        node.ns.ip6(&format!("rule add pref 512 to {} lookup main", POD6[i]));
        node.pod(&format!("pod{i}"), &[POD[i], POD6[i]])
    });
    let client = router.host("client", &[CLIENT, CLIENT6]);
    router.check_sources(&NICS);
    let mut servers = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        servers.push(Server::start(&node.ns, proto, 10250, "host"));
        servers.push(Server::start(&pods[0].ns, proto, 8080, "pod0"));
        servers.push(Server::start(&pods[1].ns, proto, 8080, "pod1"));
        servers.push(Server::start(&client, proto, 8080, "client"));
    }
    TwoNics { router, node, client, pods, servers }
}
