//! The node of the matrix, and the interfaces that forged packets come by.

use std::net::{IpAddr, SocketAddr};

use crate::forged::masquerade;
use crate::lab::fates::Port;
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::node::Pod;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{POD, POD6, TwoNics, two_nics};

/// All interfaces that lead outside. The last one is no uplink.
pub(super) const ALL_NICS: [&str; 3] = ["eth0", "eth1", "eth2"];
pub(super) const FAR: [[&str; 2]; 2] =
    [["10.20.0.77", "2001:db8:20::77"], ["10.21.0.77", "2001:db8:21::77"]];
pub(super) const VIP: [&str; 2] = ["10.96.0.10", "2001:db8:96::10"];
/// NodePorts whose backends are far0, far1 and pod1.
pub(super) const NODE_PORTS: [u16; 3] = [30000, 30001, 30002];
pub(super) const VIP_PORT: u16 = 80;

pub(super) struct Scene {
    pub(super) layout: TwoNics,
    pub(super) far: [Netns; 2],
    pub(super) at_bridge: Netns,
    _unattached: Pod,
}

pub(super) fn ip(address: &str) -> IpAddr {
    address.parse().unwrap_or_else(|error| panic!("{address}: {error}"))
}

impl Scene {
    pub(super) fn new() -> Self {
        let mut layout = two_nics();
        let unattached = layout.pod_behind_eth1(1);
        let at_bridge = layout.pod_at_bridge();
        layout.router.plug("eth2", &layout.node.ns, "eth2", &["10.22.0.1"]);
        layout.node.ns.ip("addr add 10.22.0.10/24 dev eth2
             addr add 2001:db8:22::10/64 dev eth2 nodad
             route add default via 10.22.0.1 dev eth2 metric 500
             route add default via fe80::1 dev eth2 metric 4096
             route add blackhole 10.99.0.0/16
             route add blackhole 2001:db8:99::/48");
        // Conntrack must not forget a connection while a busy machine sends the forged packets.
        for sysctl in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            layout.node.ns.sysctl(&format!("netfilter/{sysctl}"), "3600");
        }
        let far = [("far0", 0), ("far1", 1)].map(|(name, at)| layout.router.host(name, &FAR[at]));
        services(&layout);
        masquerade(&layout);
        Self { layout, far, at_bridge, _unattached: unattached }
    }

    /// The interfaces that packets come by, with the names that the table has for them.
    pub(super) fn ports(&self) -> Vec<(String, Port<'_>)> {
        let (router, pod) = (&self.layout.router, &self.layout.pods[0].ns);
        let mut ports: Vec<_> = ALL_NICS
            .iter()
            .map(|nic| {
                let mac = router.peer_mac(nic).to_owned();
                ((*nic).to_owned(), Port { ns: &router.ns, name: nic, mac })
            })
            .collect();
        for (label, ns, interface) in
            [("pod0's veth", pod, "enipod0"), ("the bridge", &self.at_bridge, "cni0")]
        {
            let mac = self.layout.node.ns.mac(interface);
            ports.push((label.to_owned(), Port { ns, name: "eth0", mac }));
        }
        ports
    }
}

fn services(layout: &TwoNics) {
    let mut services = Vec::new();
    for family in [0, 1] {
        let at = |address: &str, port| SocketAddr::new(ip(address), port);
        let pod = at([POD[1], POD6[1]][family], 8080);
        let backends = [at(FAR[0][family], 8080), at(FAR[1][family], 8080), pod];
        for proto in [Proto::Tcp, Proto::Udp] {
            for (port, backend) in NODE_PORTS.into_iter().zip(backends) {
                let policy = if backend == pod { Policy::Local } else { Policy::Cluster };
                let frontend = Frontend::NodePort(port);
                services.push(Service { frontend, proto, backend, policy });
            }
            let frontend = Frontend::Address(at(VIP[family], VIP_PORT));
            services.push(Service { frontend, proto, backend: pod, policy: Policy::Local });
        }
    }
    kubeproxy::install(&layout.node.ns, Flavour::Iptables, &services);
}
