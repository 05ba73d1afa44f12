//! The node, the VPC and the flows of field report 000.

use crate::lab::aws::{self, Snat};
use crate::lab::flows::Flow;
use crate::lab::golden::Request;
use crate::lab::kubeproxy::{self, Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::node::{Node, Pod};
use crate::lab::router::Router;
use crate::lab::traffic::{Proto, Server};

pub(super) const NICS: [&str; 3] = ["eth0", "eth1", "eth2"];
const NODE: [&str; 3] = ["172.31.53.61", "172.31.53.62", "172.31.53.63"];
const NODE6: [&str; 3] = ["2001:db8:48::61", "2001:db8:48::62", "2001:db8:48::63"];
const POD: [&str; 3] = ["172.31.49.222", "172.31.49.111", "172.31.50.208"];
const POD6: [&str; 3] = ["2001:db8:48::a0", "2001:db8:48::a1", "2001:db8:48::a2"];
const REMOTE: &str = "172.31.60.10";
const CLIENT: &str = "203.0.113.9";
const CLIENT6: &str = "2001:db8:9::9";
/// Ports by backend: the pod of eth2, the pod of eth0, the pod of another node.
const NODE_PORTS: [(u16, &str); 3] = [(30002, "pod2"), (30000, "pod0"), (30009, "remote")];
const HOST_PORT: u16 = 10250;
const POD_PORT: u16 = 8080;
pub(super) struct Layout {
    pub(super) router: Router,
    pub(super) node: Node,
    client: Netns,
    _remote: Netns,
    pub(super) pods: Vec<Pod>,
    pub(super) snat: Snat,
    _servers: Vec<Server>,
}

impl Layout {
    /// Requests to explain: by each NIC to the address of the node there, and to the pod behind it.
    pub(super) fn requests() -> Vec<Request<'static>> {
        let to = |device: usize| [NODE[device], POD[device]].map(|to| (NICS[device], CLIENT, to));
        (0..3).flat_map(to).chain([(NICS[2], CLIENT6, POD6[2])]).collect()
    }

    pub(super) fn build(snat: Snat) -> Self {
        let (mut router, node) = (Router::new(), Node::new("node"));
        for nic in NICS {
            router.plug(nic, &node.ns, nic, &["172.31.48.1"]);
        }
        node.ns.ip("addr add 172.31.53.61/20 dev eth0
             addr add 172.31.53.62/20 dev eth1 noprefixroute
             addr add 172.31.53.63/20 dev eth2 noprefixroute
             route add default via 172.31.48.1 dev eth0
             route add default via fe80::1 dev eth0
             rule add pref 1024 fwmark 0x80/0x80 lookup main");
        let mut pods = Vec::new();
        for device in 0..3 {
            let nic = NICS[device];
            node.ns.ip(&format!("addr add {} dev {nic} nodad", NODE6[device]));
            pods.push(add_pod(&node, device));
            for address in [NODE[device], NODE6[device], POD[device], POD6[device]] {
                router.assign(nic, address);
            }
        }
        let client = router.host("client", &[CLIENT, CLIENT6]);
        let remote = router.host("remote", &[REMOTE]);
        router.check_sources(&NICS);
        aws::install(&node.ns, snat, "172.31.0.0/16", NODE[0].parse().expect("an address"));
        kubeproxy::install(&node.ns, snat.kube_proxy(), &services());

        let mut servers = vec![Server::start(&node.ns, Proto::Tcp, HOST_PORT, "host")];
        servers.push(Server::start(&client, Proto::Tcp, POD_PORT, "client"));
        let whose = pods.iter().map(|pod| &pod.ns).chain([&remote]);
        for (ns, who) in whose.zip(["pod0", "pod1", "pod2", "remote"]) {
            servers.push(Server::start(ns, Proto::Tcp, POD_PORT, who));
            servers.push(Server::start(ns, Proto::Udp, POD_PORT, who));
        }
        Self { router, node, client, _remote: remote, pods, snat, _servers: servers }
    }

    /// The 27 flows of the report.
    pub(super) fn flows(&self) -> Vec<Flow<'_>> {
        let mut flows = Vec::new();
        for (nic, node) in NICS.iter().zip(NODE) {
            for (port, who) in NODE_PORTS {
                // The backend on another node is masqueraded with the address of main's default route.
                let answer = match who {
                    "pod2" => "pod2 203.0.113.9",
                    "pod0" => "pod0 203.0.113.9",
                    _ => "remote 172.31.53.61",
                };
                for proto in [Proto::Tcp, Proto::Udp] {
                    let name = format!("NodePort on {nic} to {who} over {proto:?}");
                    flows.push(Flow::new(
                        &name,
                        &self.client,
                        proto,
                        &format!("{node}:{port}"),
                        answer,
                    ));
                }
            }
            let name = format!("host on {nic}");
            flows.push(Flow::new(
                &name,
                &self.client,
                Proto::Tcp,
                &format!("{node}:{HOST_PORT}"),
                "host 203.0.113.9",
            ));
        }
        for (pod, answer) in
            POD.iter().zip(["pod0 203.0.113.9", "pod1 203.0.113.9", "pod2 203.0.113.9"])
        {
            let name = format!("direct to {answer}");
            flows.push(Flow::new(
                &name,
                &self.client,
                Proto::Tcp,
                &format!("{pod}:{POD_PORT}"),
                answer,
            ));
        }
        let egress = match self.snat {
            Snat::NoRules | Snat::External => "client 172.31.50.208",
            Snat::ByIptables | Snat::ByNftables => "client 172.31.53.61",
        };
        let pod2 = &self.pods[2].ns;
        flows.push(Flow::new("pod egress", pod2, Proto::Tcp, "203.0.113.9:8080", egress));
        flows.push(Flow::new(
            "pod to pod",
            pod2,
            Proto::Tcp,
            "172.31.49.222:8080",
            "pod0 172.31.50.208",
        ));
        flows.push(Flow::new(
            "pod to remote pod",
            pod2,
            Proto::Tcp,
            "172.31.60.10:8080",
            "remote 172.31.50.208",
        ));
        flows
    }

    /// The flows over IPv6, where only the source check stops a reply on the wrong NIC.
    pub(super) fn flows6(&self) -> Vec<Flow<'_>> {
        let mut flows = Vec::new();
        let direct = ["pod0 2001:db8:9::9", "pod1 2001:db8:9::9", "pod2 2001:db8:9::9"];
        for device in 0..3 {
            let (nic, node, pod) = (NICS[device], NODE6[device], POD6[device]);
            let mut flow = |name: String, to: String, answer| {
                flows.push(Flow::new(&name, &self.client, Proto::Tcp, &to, answer));
            };
            flow(
                format!("host on {nic}, IPv6"),
                format!("[{node}]:{HOST_PORT}"),
                "host 2001:db8:9::9",
            );
            flow(
                format!("direct to pod of {nic}, IPv6"),
                format!("[{pod}]:{POD_PORT}"),
                direct[device],
            );
            flow(format!("NodePort on {nic} to pod0, IPv6"), format!("[{node}]:30000"), direct[0]);
            flow(format!("NodePort on {nic} to pod2, IPv6"), format!("[{node}]:30002"), direct[2]);
        }
        flows
    }
}

fn add_pod(node: &Node, device: usize) -> Pod {
    let name = format!("pod{device}");
    let addresses = [POD[device], POD6[device]];
    let mut pod = node.pod(&name, &addresses);
    let number = u8::try_from(device).expect("a small number");
    aws::hand_over(&mut pod, &name, number, &addresses);
    node.ns.ip(&format!("rule add pref 512 to {} lookup main", POD[device]));
    node.ns.ip6(&format!("rule add pref 512 to {} lookup main", POD6[device]));
    if device > 0 {
        let (nic, table) = (NICS[device], device + 1);
        node.ns.ip(&format!(
            "route add 172.31.48.1 dev {nic} scope link table {table}
             route add default via 172.31.48.1 dev {nic} table {table}
             route add default via fe80::1 dev {nic} table {table}"
        ));
        node.ns.ip(&format!("rule add pref 1536 from {} lookup {table}", POD[device]));
        node.ns.ip6(&format!("rule add pref 1536 from {} lookup {table}", POD6[device]));
    }
    pod
}

fn services() -> Vec<Service> {
    let service = |port, proto, backend: String, policy| Service {
        frontend: Frontend::NodePort(port),
        proto,
        backend: backend.parse().expect("an address and port"),
        policy,
    };
    let mut services = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        for (port, address, policy) in [
            (30002, POD[2], Policy::Local),
            (30000, POD[0], Policy::Local),
            (30009, REMOTE, Policy::Cluster),
        ] {
            services.push(service(port, proto, format!("{address}:{POD_PORT}"), policy));
        }
    }
    for (port, address) in [(30002, POD6[2]), (30000, POD6[0])] {
        services.push(service(port, Proto::Tcp, format!("[{address}]:{POD_PORT}"), Policy::Local));
    }
    services
}
