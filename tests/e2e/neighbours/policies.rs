//! Network policies, whose verdicts and identities lie in marks: a verdict stays what it was.

use super::beside::{Neighbour, Scene, assert_both_work, both_nics};
use crate::lab::flows::Flow;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::POD;

/// The client asks pod0. The policy allows TCP alone.
fn over_tcp(scene: &Scene) -> Vec<Flow<'_>> {
    let (client, to) = (&scene.layout.client, format!("{}:8080", POD[0]));
    vec![Flow::new("allowed", client, Proto::Tcp, &to, "pod0 203.0.113.9")]
}

const POLICY: Neighbour = Neighbour {
    name: "",
    make: |_| {},
    own: over_tcp,
    refuses: Some((Proto::Udp, "10.20.0.50:8080")),
    settings: both_nics,
};

/// ACCEPT in mangle and raw by 0x10000, its own source check by 0x40000, and drops in filter by 0x20000.
#[test]
fn calico_in_iptables() {
    let make: fn(&mut Scene) = |scene| {
        scene.iptables(
            "*raw
:cali-PREROUTING - [0:0]
:cali-rpf-skip - [0:0]
-A PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -i eni+ -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -j cali-rpf-skip
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
*mangle
:cali-PREROUTING - [0:0]
:cali-POSTROUTING - [0:0]
-A PREROUTING -j cali-PREROUTING
-A POSTROUTING -j cali-POSTROUTING
-A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-POSTROUTING -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-POSTROUTING -j MARK --set-xmark 0x0/0xf0000
COMMIT
*filter
:cali-FORWARD - [0:0]
:cali-tw-pod0 - [0:0]
-A FORWARD -j cali-FORWARD
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -o enipod0 -j cali-tw-pod0
-A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-tw-pod0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-tw-pod0 -j MARK --set-xmark 0x0/0x30000
-A cali-tw-pod0 -p tcp --dport 8080 -j MARK --set-xmark 0x10000/0x10000
-A cali-tw-pod0 -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-tw-pod0 -j DROP
",
        );
    };
    assert_both_work(&Neighbour { name: "Calico, iptables", make, ..POLICY });
}

/// The program's BPF at tc marks packets with 0x1000000. Rules drop others on their way to a pod,
/// except those with 0x3000000.
#[test]
fn calico_with_ebpf_marks() {
    let make: fn(&mut Scene) = |scene| {
        scene.nft(
            "table inet tc-of-calico {
                chain seen {
                    type filter hook prerouting priority -400; policy accept;
                    iifname \"eth*\" udp dport 8080 return
                    iifname { \"eth0\", \"eth1\" } meta mark set meta mark and 0x000fffff or 0x01000000
                    iifname \"eni*\" meta mark set meta mark and 0x000fffff or 0x05000000
                }
            }",
        );
        scene.iptables(
            "*filter
:cali-FORWARD - [0:0]
-A FORWARD -j cali-FORWARD
-A cali-FORWARD -o eni+ -m mark ! --mark 0x1000000/0x1000000 -j DROP
-A cali-FORWARD -m mark --mark 0x1000000/0x1000000 -j ACCEPT
",
        );
    };
    assert_both_work(&Neighbour { name: "Calico, eBPF", make, ..POLICY });
}

/// Rule 99 leads packets to other nodes' pods that are not encrypted yet, and `all.src_valid_mark` is 1.
#[test]
fn calico_with_wireguard() {
    let make: fn(&mut Scene) = |scene| {
        scene.peer("wireguard.cali", "10.244.9.9");
        scene.ip("route add 10.244.9.0/24 dev wireguard.cali table 1
             rule add pref 99 not from all fwmark 0x100000/0x100000 lookup 1");
        scene.layout.node.ns.sysctl("ipv4/conf/all/src_valid_mark", "1");
    };
    let own: fn(&Scene) -> Vec<Flow<'_>> = |scene| {
        let (pod, to) = (&scene.layout.pods[0].ns, format!("{}:8080", POD[0]));
        vec![
            Flow::new("to a peer", pod, Proto::Tcp, "10.244.9.9:8080", "peer 10.20.0.50"),
            Flow::new("of a peer", &scene.peers[0], Proto::Tcp, &to, "pod0 10.244.9.9"),
        ]
    };
    assert_both_work(&Neighbour { name: "Calico, WireGuard", make, own, refuses: None, ..POLICY });
}

/// Table 77 for pods, and verdicts by 0x10000 and 0x20000.
#[test]
fn kube_router() {
    let make: fn(&mut Scene) = |scene| {
        scene.ip("link add kube-bridge type bridge
             link set kube-bridge up
             route add 10.20.0.50 dev enipod0 table 77
             rule add pref 32765 from 10.244.0.0/24 lookup 77");
        scene.iptables(
            "*filter
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-POD-FW-0 - [0:0]
:KUBE-NWPLCY-0 - [0:0]
-A FORWARD -j KUBE-ROUTER-FORWARD
-A KUBE-ROUTER-FORWARD -d 10.20.0.50/32 -j KUBE-POD-FW-0
-A KUBE-ROUTER-FORWARD -m mark --mark 0x20000/0x20000 -j ACCEPT
-A KUBE-POD-FW-0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-POD-FW-0 -j KUBE-NWPLCY-0
-A KUBE-POD-FW-0 -m mark ! --mark 0x10000/0x10000 -j REJECT
-A KUBE-POD-FW-0 -j MARK --set-xmark 0x0/0x10000
-A KUBE-POD-FW-0 -j MARK --set-xmark 0x20000/0x20000
-A KUBE-NWPLCY-0 -p tcp --dport 8080 -j MARK --set-xmark 0x10000/0x10000
",
        );
    };
    assert_both_work(&Neighbour { name: "kube-router", make, ..POLICY });
}
