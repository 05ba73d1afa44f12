//! kube-proxy, masquerading by exact marks, other balancers of uplinks.

use super::beside::{Neighbour, Scene, assert_both_work, both_nics, bridged_to_client};
use crate::lab::flows::Flow;
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::traffic::Proto;
use crate::lab::two_nics::NODE;

const NODE_PORT: u16 = 30080;

/// A Service with the bridge's pod behind it, on each address of the node and at one of its own.
fn services() -> Vec<Service> {
    let backend = "10.244.0.5:8080".parse().expect("an address and port");
    let frontends = [
        Frontend::NodePort(NODE_PORT),
        Frontend::Address("10.96.0.10:80".parse().expect("an address and port")),
    ];
    let of = |frontend| Service { frontend, proto: Proto::Tcp, backend, policy: Policy::Cluster };
    frontends.map(of).into()
}

/// By eth0 it works without symroute. The backend sees the bridge's address.
fn node_port(scene: &Scene) -> Vec<Flow<'_>> {
    let (client, to) = (&scene.layout.client, format!("{}:{NODE_PORT}", NODE[0]));
    let pod = &scene.layout.pods[0].ns;
    vec![
        Flow::new("NodePort", client, Proto::Tcp, &to, "bridged 10.244.0.1"),
        Flow::new("Service", pod, Proto::Tcp, "10.96.0.10:80", "bridged 10.244.0.1"),
    ]
}

const PROXY: Neighbour =
    Neighbour { name: "", make: |_| {}, own: node_port, refuses: None, settings: both_nics };

#[test]
fn kube_proxy_in_iptables() {
    let make: fn(&mut Scene) =
        |scene| kubeproxy::install(&scene.layout.node.ns, Flavour::Iptables, &services());
    assert_both_work(&Neighbour { name: "kube-proxy, iptables", make, ..PROXY });
}

#[test]
fn kube_proxy_in_nftables() {
    let make: fn(&mut Scene) =
        |scene| kubeproxy::install(&scene.layout.node.ns, Flavour::Nftables, &services());
    assert_both_work(&Neighbour { name: "kube-proxy, nftables", make, ..PROXY });
}

/// flannel skips packets that kube-proxy masquerades, if the whole mark is 0x4000.
#[test]
fn flannel_in_nftables() {
    let make: fn(&mut Scene) = |scene| {
        kubeproxy::install(&scene.layout.node.ns, Flavour::Iptables, &services());
        scene.nft(
            "table ip flannel-ipv4 {
                chain postrtg {
                    type nat hook postrouting priority srcnat; policy accept;
                    meta mark 0x00004000 return
                    ip saddr 10.244.0.0/24 ip daddr 10.244.0.0/16 return
                    ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
                    ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/24 return
                    ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
                }
            }",
        );
    };
    let own: fn(&Scene) -> Vec<Flow<'_>> = |scene| {
        let mut flows = node_port(scene);
        flows.push(bridged_to_client(scene, "client 10.20.0.10"));
        flows
    };
    assert_both_work(&Neighbour { name: "flannel, nftables", make, own, ..PROXY });
}

/// Open vSwitch marks packets to masquerade with exactly 0x3f0, which has some of symroute's usual bits.
#[test]
fn ovn_kubernetes() {
    let make: fn(&mut Scene) = |scene| {
        scene.ip("tuntap add ovn-k8s-mp0 mode tap
             rule add pref 30 fwmark 0x1745ec lookup 7
             route add blackhole default table 7");
        scene.nft(
            "table inet ovn-kubernetes {
                chain of-openvswitch {
                    type filter hook prerouting priority -400; policy accept;
                    iifname \"cni0\" meta mark set 0x3f0
                }
                chain ovn-kube-pod-subnet-masq {
                    type nat hook postrouting priority srcnat; policy accept;
                    meta mark 0x000003f0 masquerade
                }
            }",
        );
    };
    let own: fn(&Scene) -> Vec<Flow<'_>> =
        |scene| vec![bridged_to_client(scene, "client 10.20.0.10")];
    assert_both_work(&Neighbour { name: "OVN-Kubernetes", make, own, ..PROXY });
}

/// mwan3 uses symroute's usual bits, with ip rules from 1001 on.
#[test]
fn mwan3() {
    let make: fn(&mut Scene) = |scene| {
        scene.ip("route add default via 10.20.0.1 dev eth0 table 1
             route add default via 10.21.0.1 dev eth1 table 2
             rule add pref 2001 fwmark 0x100/0x3f00 lookup 1
             rule add pref 2002 fwmark 0x200/0x3f00 lookup 2");
        scene.iptables(
            "*mangle
:mwan3_hook - [0:0]
-A PREROUTING -j mwan3_hook
-A OUTPUT -j mwan3_hook
-A mwan3_hook -j CONNMARK --restore-mark --nfmask 0x3f00 --ctmask 0x3f00
-A mwan3_hook -i enipod1 -m mark --mark 0x0/0x3f00 -j MARK --set-xmark 0x200/0x3f00
-A mwan3_hook -j CONNMARK --save-mark --nfmask 0x3f00 --ctmask 0x3f00
",
        );
    };
    let own: fn(&Scene) -> Vec<Flow<'_>> = |scene| {
        let (pod, to) = (&scene.layout.pods[1].ns, "203.0.113.9:8080");
        vec![Flow::new("pod1 to client", pod, Proto::Tcp, to, "client 10.21.0.50")]
    };
    assert_both_work(&Neighbour { name: "mwan3", make, own, ..PROXY });
}
