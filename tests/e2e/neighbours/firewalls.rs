//! firewalld: zones, and its own check of the way back over IPv6.

use super::beside::{Neighbour, Scene, assert_both_work, assert_found_by_doctor, both_nics};
use crate::lab::backend::Backend;
use crate::lab::flows::{BASELINE, Flow};
use crate::lab::traffic::{Proto, ask};
use crate::lab::two_nics::{NODE, NODE6};

/// The zone of the NICs lets in what a cluster needs.
fn zones(scene: &Scene) {
    scene.nft(
        "table inet firewalld {
            chain mangle_PREROUTING {
                type filter hook prerouting priority mangle + 10; policy accept;
            }
            chain filter_INPUT {
                type filter hook input priority filter + 10; policy accept;
                ct state established,related accept
                ct status dnat accept
                iifname \"lo\" accept
                meta l4proto ipv6-icmp accept
                iifname \"eth*\" tcp dport 10250 accept
                iifname \"eth*\" reject with icmpx admin-prohibited
            }
            chain filter_FORWARD {
                type filter hook forward priority filter + 10; policy accept;
                ct state established,related accept
                iifname \"eth*\" tcp dport 8080 accept
                iifname \"eth*\" reject with icmpx admin-prohibited
            }
        }",
    );
}

fn over_tcp(scene: &Scene) -> Vec<Flow<'_>> {
    let (client, to) = (&scene.layout.client, format!("{}:10250", NODE[0]));
    vec![Flow::new("allowed", client, Proto::Tcp, &to, "host 203.0.113.9")]
}

#[test]
fn firewalld() {
    let make: fn(&mut Scene) = |scene| zones(scene);
    let refuses = Some((Proto::Udp, "10.20.0.10:10250"));
    assert_both_work(&Neighbour {
        name: "firewalld",
        make,
        own: over_tcp,
        refuses,
        settings: both_nics,
    });
}

/// firewalld checks a request before nftables marks it, and drops it as without symroute: `doctor`
/// names the check. iptables marks before the check.
#[test]
fn firewalld_with_ipv6_rpfilter() {
    let make: fn(&mut Scene) = |scene| {
        zones(scene);
        scene.nft(
            "table inet firewalld {
                counter checked { }
                chain mangle_PREROUTING {
                    icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
                    meta nfproto ipv6 fib saddr . mark . iif oif missing counter name checked drop
                }
            }",
        );
        ask_over_ipv6(scene);
        let checked = scene.layout.node.ns.counter("firewalld", "checked");
        assert!(checked > 0, "firewalld drops it without symroute");
    };
    let refuses = Some((Proto::Udp, "10.20.0.10:10250"));
    let name = "firewalld, IPv6_rpfilter";
    let neighbour = Neighbour { name, make, own: over_tcp, refuses, settings: both_nics };
    if Backend::of_run().is_iptables() {
        assert_both_work(&neighbour);
    } else {
        let words = ["early-source-check", "IPv6 by eth1", "nftables inet firewalld"];
        assert_found_by_doctor(&neighbour, "host on eth1 over IPv6", &words);
    }
}

/// No host answers this request by eth1.
fn ask_over_ipv6(scene: &Scene) {
    let to = format!("[{}]:10250", NODE6[1]).parse().expect("an address and port");
    ask(&scene.layout.client, Proto::Tcp, to, BASELINE).expect_err("it is dropped");
}
