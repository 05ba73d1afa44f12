//! CNI plugins and guest tools of clouds, which give each NIC rules and a table of its own.

use serde_json::json;

use super::beside::{Neighbour, Scene, assert_both_work, assert_found_by_name, both_nics};
use crate::lab::aws::{self, Snat};
use crate::lab::backend::Backend;
use crate::lab::flows::Flow;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::NODE;

/// `pod1` calls the client, which sees the answer's address.
fn pod1_to_client<'a>(scene: &'a Scene, answer: &'a str) -> Vec<Flow<'a>> {
    let (pod, to) = (&scene.layout.pods[1].ns, "203.0.113.9:8080");
    let flow = |proto| Flow::new(&format!("pod1 to client over {proto:?}"), pod, proto, to, answer);
    [Proto::Tcp, Proto::Udp].map(flow).into()
}

fn by_its_own_nic(scene: &Scene) -> Vec<Flow<'_>> {
    pod1_to_client(scene, "client 10.21.0.50")
}

fn by_the_primary_nic(scene: &Scene) -> Vec<Flow<'_>> {
    pod1_to_client(scene, "client 10.20.0.10")
}

/// The layout has rules 512 and 1536. A pod's call that leaves the VPC has the mark 0x80. The AWS
/// plugin makes `rp_filter` of the first NIC loose at every start.
fn aws(scene: &Scene, snat: Snat) {
    scene.ip("rule add pref 1024 fwmark 0x80/0x80 lookup main");
    let primary = NODE[0].parse().expect("an address");
    scene.layout.node.ns.sysctl("ipv4/conf/eth0/rp_filter", "2");
    aws::install(&scene.layout.node.ns, snat, "10.16.0.0/12", primary);
}

const AWS: Neighbour =
    Neighbour { name: "", make: |_| {}, own: by_its_own_nic, refuses: None, settings: both_nics };

#[test]
fn aws_vpc_cni_without_rules() {
    let make: fn(&mut Scene) = |scene| aws(scene, Snat::NoRules);
    assert_both_work(&Neighbour { name: "AWS VPC CNI without its netfilter rules", make, ..AWS });
}

#[test]
fn aws_vpc_cni_with_external_snat() {
    let make: fn(&mut Scene) = |scene| aws(scene, Snat::External);
    assert_both_work(&Neighbour { name: "AWS VPC CNI, EXTERNALSNAT=true", make, ..AWS });
}

#[test]
fn aws_vpc_cni_in_iptables() {
    let make: fn(&mut Scene) = |scene| aws(scene, Snat::ByIptables);
    let name = "AWS VPC CNI, EXTERNALSNAT=false, iptables";
    assert_both_work(&Neighbour { name, make, own: by_the_primary_nic, ..AWS });
}

/// A rule overwrites the whole packet mark, after iptables and before nftables. So a request loses the
/// mark that iptables shows strict `rp_filter`. Pods with an ip rule of their own, as the AWS plugin
/// makes them, do not need the mark.
#[test]
fn aws_vpc_cni_in_nftables() {
    let make: fn(&mut Scene) = |scene| aws(scene, Snat::ByNftables);
    let name = "AWS VPC CNI, EXTERNALSNAT=false, nftables";
    let neighbour = Neighbour { name, make, own: by_the_primary_nic, ..AWS };
    if Backend::of_run().is_iptables() {
        assert_found_by_name(&neighbour, &["pod 10.21.0.101:8080"], &["AWS VPC CNI overwrites"]);
    } else {
        assert_both_work(&neighbour);
    }
}

/// Rules to and from each pod, a table for each ENI, and the bit 0x10 for packets that came in by the
/// first one.
#[test]
fn terway() {
    let make: fn(&mut Scene) = |scene| {
        scene.ip("rule add pref 600 fwmark 0x10/0x10 lookup main
             rule add pref 2048 from 10.21.0.50 iif enipod1 lookup 1001
             route add default via 10.21.0.1 dev eth1 table 1001
             route add 10.21.0.1 dev eth1 table 1001
             rule del pref 1536");
        scene.iptables(
            "*mangle
-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x10/0x10
-A PREROUTING -i eni+ -j CONNMARK --restore-mark --nfmask 0x10 --ctmask 0x10
",
        );
    };
    assert_both_work(&Neighbour { name: "Terway", make, ..AWS });
}

/// Rules from 10000 on, by each address of the second NIC.
#[test]
fn ec2_net_utils() {
    let make: fn(&mut Scene) = |scene| {
        scene.ip("route add default via 10.21.0.1 dev eth1 table 10001
             route add 10.21.0.0/24 dev eth1 src 10.21.0.10 table 10001
             addr add 10.21.0.11/32 dev eth1
             rule add pref 10001 from 10.21.0.11 lookup 10001");
    };
    assert_both_work(&Neighbour { name: "ec2-net-utils", make, ..AWS });
}

/// The guide of OVH for a block of addresses in a vRack: rules by source and destination.
#[test]
fn ovh_vrack() {
    let make: fn(&mut Scene) = |scene| {
        scene.ip("addr add 10.21.7.1/28 dev eth1
             route add 10.21.7.0/28 dev eth1 table 200
             route add default via 10.21.0.1 dev eth1 onlink table 200
             rule add pref 32765 from 10.21.7.0/28 lookup 200
             rule add pref 32764 to 10.21.7.0/28 lookup 200");
        scene.layout.router.assign("eth1", "10.21.7.1");
        scene.layout.router.check_sources(&["eth0", "eth1"]);
    };
    let own: fn(&Scene) -> Vec<Flow<'_>> = |scene| {
        let flow = |proto| {
            let (client, to) = (&scene.layout.client, "10.21.7.1:10250");
            Flow::new(
                &format!("host in the vRack {proto:?}"),
                client,
                proto,
                to,
                "host 203.0.113.9",
            )
        };
        vec![flow(Proto::Tcp)]
    };
    assert_both_work(&Neighbour { name: "OVH vRack", make, own, ..AWS });
}

/// Rules by the mark at 9 and 10, table local at 100, and in ENI mode a table for each pod's NIC at 111.
fn cilium(scene: &Scene) {
    scene.ip("rule add pref 9 fwmark 0x200/0xf00 lookup 2004
         rule add pref 10 fwmark 0xa00/0xf00 lookup 2005
         route add local default dev lo table 2004
         tuntap add cilium_host mode tap
         rule add pref 100 lookup local
         rule del pref 0
         rule add pref 20 to 10.21.0.50 lookup main
         route add default via 10.21.0.1 dev eth1 table 11
         route add 10.21.0.1 dev eth1 table 11");
}

/// Its identities leave bits for one uplink.
#[test]
fn cilium_with_one_uplink() {
    let make: fn(&mut Scene) = |scene| cilium(scene);
    let settings = || json!({"uplinks": ["eth1"]});
    assert_both_work(&Neighbour { name: "Cilium, one uplink", make, settings, ..AWS });
}

/// A pod's rule at 111 sends its replies elsewhere, if the request came in by another NIC.
#[test]
fn cilium_in_eni_mode() {
    let make: fn(&mut Scene) = |scene| {
        cilium(scene);
        scene.ip("rule add pref 111 from 10.21.0.101 lookup 12
             route add default via 10.20.0.1 dev eth0 table 12");
    };
    let settings = || json!({"uplinks": ["eth1"]});
    let broken = ["pod 10.21.0.101:8080"];
    let words = ["rules before those of symroute", "111: from 10.21.0.101"];
    assert_found_by_name(
        &Neighbour { name: "Cilium, ENI mode", make, settings, ..AWS },
        &broken,
        &words,
    );
}
