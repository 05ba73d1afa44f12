//! VPNs that route by marks: those of Tailscale, of wg-quick and of `NetBird`.

use serde_json::json;

use super::beside::{Neighbour, Scene, assert_both_work, assert_found_by_name, both_nics};
use crate::lab::flows::Flow;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{NICS, POD};

/// The host and pod0 call the peer, and the peer calls the host.
fn with_peer<'a>(scene: &'a Scene, peer: &str, own: &str, answers: [&'a str; 3]) -> Vec<Flow<'a>> {
    let layout = &scene.layout;
    let (peer, own) = (format!("{peer}:8080"), format!("{own}:10250"));
    vec![
        Flow::new("host to peer", &layout.node.ns, Proto::Tcp, &peer, answers[0]),
        Flow::new("pod0 to peer", &layout.pods[0].ns, Proto::Udp, &peer, answers[1]),
        Flow::new("peer to host", &scene.peers[0], Proto::Tcp, &own, answers[2]),
    ]
}

const VPN: Neighbour =
    Neighbour { name: "", make: |_| {}, own: |_| Vec::new(), refuses: None, settings: both_nics };

/// Rules 5210 to 5270, the byte 0xff0000 on packets and connections, table 52.
#[test]
fn tailscale() {
    let make: fn(&mut Scene) = |scene| {
        scene.peer("tailscale0", "100.64.0.9");
        scene.ip("addr add 100.64.0.1/32 dev tailscale0
             route add 100.64.0.9 dev tailscale0 table 52
             rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
             rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
             rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
             rule add pref 5270 lookup 52");
        scene.iptables(
            "*mangle
:ts-input - [0:0]
-A PREROUTING -m conntrack --ctstate ESTABLISHED,RELATED -j CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000
-A OUTPUT -m conntrack --ctstate NEW -m mark ! --mark 0x0/0xff0000 -j CONNMARK --save-mark --nfmask 0xff0000 --ctmask 0xff0000
COMMIT
*filter
:ts-input - [0:0]
:ts-forward - [0:0]
-A INPUT -j ts-input
-A FORWARD -j ts-forward
-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
-A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
-A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
-A ts-forward -o tailscale0 -j ACCEPT
COMMIT
*nat
:ts-postrouting - [0:0]
-A POSTROUTING -j ts-postrouting
-A ts-postrouting -m mark --mark 0x40000/0xff0000 -j MASQUERADE
",
        );
    };
    let own: fn(&Scene) -> Vec<Flow<'_>> = |scene| {
        let answers = ["peer 100.64.0.1", "peer 10.20.0.50", "host 100.64.0.9"];
        let mut flows = with_peer(scene, "100.64.0.9", "100.64.0.1", answers);
        // As a subnet router it masquerades what comes from its peers.
        let to = format!("{}:8080", POD[0]);
        flows.push(Flow::new("peer to pod0", &scene.peers[0], Proto::Tcp, &to, "pod0 10.20.0.10"));
        flows
    };
    assert_both_work(&Neighbour { name: "Tailscale", make, own, ..VPN });
}

/// Packets without a more specific route go through the tunnel. wg-quick writes and compares whole
/// marks, and `all.src_valid_mark` is 1.
#[test]
fn wg_quick() {
    let make: fn(&mut Scene) = |scene| {
        scene.peer("wg0", "10.9.0.2");
        scene.ip("addr add 10.9.0.1/32 dev wg0
             route add default dev wg0 table 51820
             rule add pref 32765 not from all fwmark 51820 lookup 51820
             rule add pref 32764 lookup main suppress_prefixlength 0");
        scene.layout.node.ns.sysctl("ipv4/conf/all/src_valid_mark", "1");
        scene.nft(
            "table ip wg-quick-wg0 {
                chain preraw {
                    type filter hook prerouting priority raw; policy accept;
                    iifname != \"wg0\" ip daddr 10.9.0.1 fib saddr type != local drop
                }
                chain premangle {
                    type filter hook prerouting priority mangle; policy accept;
                    meta l4proto udp meta mark set ct mark
                }
                chain postmangle {
                    type filter hook postrouting priority mangle; policy accept;
                    meta l4proto udp meta mark 0x0000ca6c ct mark set meta mark
                }
            }",
        );
    };
    let own: fn(&Scene) -> Vec<Flow<'_>> = |scene| {
        let answers = ["peer 10.9.0.1", "peer 10.20.0.50", "host 10.9.0.2"];
        with_peer(scene, "10.9.0.2", "10.9.0.1", answers)
    };
    assert_both_work(&Neighbour { name: "wg-quick", make, own, ..VPN });
}

/// Rules 105 and 110, table 7120, and whole marks from 0x1bd00 on.
fn netbird(scene: &mut Scene, route: &str) {
    scene.peer("wt0", "100.92.0.9");
    scene.ip(&format!(
        "addr add 100.92.0.1/16 dev wt0
         route add {route} dev wt0 table 7120
         rule add pref 105 lookup main suppress_prefixlength 0
         rule add pref 110 not from all fwmark 0x1bd00 lookup 7120"
    ));
    scene.layout.node.ns.sysctl("ipv4/conf/all/src_valid_mark", "1");
    scene.nft(
        "table ip netbird {
            chain netbird-mangle-prerouting {
                type filter hook prerouting priority mangle; policy accept;
                iifname \"wt0\" ct state new ct mark set 0x0001bd10
            }
            chain netbird-rt-postrouting {
                type nat hook postrouting priority srcnat - 1; policy accept;
                meta mark 0x0001bd20 masquerade
            }
            chain netbird-acl-input {
                type filter hook input priority filter; policy accept;
                iifname \"wt0\" ct state established,related accept
                iifname \"wt0\" tcp dport 10250 accept
                iifname \"wt0\" drop
            }
        }",
    );
}

fn of_netbird(scene: &Scene) -> Vec<Flow<'_>> {
    let answers = ["peer 100.92.0.1", "peer 10.20.0.50", "host 100.92.0.9"];
    with_peer(scene, "100.92.0.9", "100.92.0.1", answers)
}

#[test]
fn netbird_with_a_network() {
    let make: fn(&mut Scene) = |scene| netbird(scene, "198.51.100.0/24");
    assert_both_work(&Neighbour { name: "NetBird", make, own: of_netbird, ..VPN });
}

/// An exit node's default route stands before symroute's rules.
#[test]
fn netbird_with_an_exit_node() {
    let make: fn(&mut Scene) = |scene| netbird(scene, "default");
    let broken = [
        "host on eth1",
        "pod 10.21.0.101:8080",
        "host on eth0",
        "client to pod0",
        "client to pod1",
    ];
    let words =
        ["rules before those of symroute", "110: not fwmark 0x1bd00/0xffffffff lookup 7120"];
    assert_found_by_name(
        &Neighbour { name: "NetBird, exit node", make, own: of_netbird, ..VPN },
        &broken,
        &words,
    );
}

/// symroute's rules come before those rules: `rulePriority` "auto" finds the place.
#[test]
fn netbird_with_an_exit_node_behind_symroute() {
    let make: fn(&mut Scene) = |scene| netbird(scene, "default");
    let settings = || json!({"uplinks": NICS, "rulePriority": "auto"});
    let name = "NetBird, exit node, rulePriority auto";
    assert_both_work(&Neighbour { name, make, own: of_netbird, settings, ..VPN });
}
