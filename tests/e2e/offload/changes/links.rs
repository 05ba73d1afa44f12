//! Routes, routers, links and hardware addresses change.

use std::fmt::Write as _;

use super::{Change, Keeper, Scene, go_on_after, settings};
use crate::lab::flowtable::{kernel_has_flowtables, offload};
use crate::lab::netns::Netns;
use crate::lab::two_nics::{NICS, POD, POD6};

/// Configures eth1 like a network manager once the link is up.
fn configure_eth1(scene: &Scene) {
    scene.layout.node.ns.ip("link set eth1 up
         addr replace 10.21.0.10/24 dev eth1
         addr replace 2001:db8:21::10/64 dev eth1 nodad
         route replace default via 10.21.0.1 dev eth1 table 101
         route replace default via fe80::1 dev eth1 table 101");
}

/// Changes the hardware address of an interface. The kernel then forgets its neighbours, even
/// permanent ones, so this adds them again.
fn readdress(ns: &Netns, interface: &str, mac: &str) {
    let mut batch = format!("link set {interface} address {mac}\n");
    for family in ["-4", "-6"] {
        let show = ["ip", family, "neigh", "show", "dev", interface, "nud", "permanent"];
        for line in ns.exec(&show, "").lines() {
            let (address, rest) = line.split_once(' ').expect("an address and its neighbour");
            let lladdr = rest.split_whitespace().nth(1).expect("a hardware address");
            let _ = writeln!(
                batch,
                "neigh add {address} dev {interface} lladdr {lladdr} nud permanent"
            );
        }
    }
    ns.ip(&batch);
}

const CHANGES: [Change; 6] = [
    ("a route of eth1's table replaced", |scene| {
        scene.layout.node.ns.ip("route replace default via 10.21.0.1 dev eth1 table 101 mtu 1400
             route replace default via fe80::1 dev eth1 table 101 mtu 1400");
    }),
    ("main's default route replaced", |scene| {
        scene.layout.node.ns.ip("route replace default via 10.20.0.1 dev eth0 mtu 1400
             route replace default via fe80::1 dev eth0 mtu 1400");
    }),
    ("eth1 down and up", |scene| {
        scene.layout.node.ns.ip("link set eth1 down");
        scene.layout.node.up(&settings());
        configure_eth1(scene);
    }),
    ("eth1 removed and back", |scene| {
        let layout = &scene.layout;
        layout.node.ns.ip(&format!("link set eth1 netns {}", layout.client.name()));
        layout.node.up(&settings());
        layout.client.ip(&format!("link set eth1 netns {}", layout.node.ns.name()));
        configure_eth1(scene);
    }),
    ("another hardware address of the router", |scene| {
        readdress(&scene.layout.router.ns, "eth1", "02:05:00:00:00:01");
        scene.layout.node.ns.ip("neigh flush dev eth1");
    }),
    ("another hardware address of a pod", |scene| {
        readdress(&scene.behind.ns, "eth0", "02:05:00:00:00:02");
        scene.layout.node.ns.ip("neigh flush dev enibehind");
    }),
];

#[test]
fn connections_follow_routes_links_and_neighbours() {
    if kernel_has_flowtables() {
        go_on_after(&CHANGES);
    }
}

/// Adds a second router to the network of this NIC, at `.2` and `fe80::2`. Captures show it as a
/// port of its own.
fn second_router(scene: &Scene, nic: &str, network: &str) -> String {
    let (port, mac) = (format!("{nic}b"), "02:06:00:00:00:01");
    scene.layout.router.ns.ip(&format!(
        "link add {port} link {nic} address {mac} type macvlan mode private
         link set {port} up"
    ));
    scene.layout.node.ns.ip(&format!(
        "neigh add {network}.2 dev {nic} lladdr {mac} nud permanent
         neigh add fe80::2 dev {nic} lladdr {mac} nud permanent"
    ));
    port
}

/// Replies go to the router of the NIC's default route, offloaded packets included.
#[test]
fn replies_go_to_another_router() {
    if !kernel_has_flowtables() {
        return;
    }
    for (nic, network, table) in [(0, "10.20.0", "main"), (1, "10.21.0", "101")] {
        for with_agent in [false, true] {
            let scene = Scene::new();
            let (node, name) = (&scene.layout.node, NICS[nic]);
            let keeper = Keeper::begin(node, with_agent);
            let at = [POD[nic], POD6[nic]];
            let mut talks = scene.begin(at, &scene.layout.pods[nic], at);
            scene.offload(name, &mut talks, "the begin");
            let second = second_router(&scene, name, network);
            // Packets for the second router pass the NIC below it, so a capture sees them on both.
            for (router, ports) in [(2, &[name, &second][..]), (1, &[name])] {
                let what = format!("router {router} of {name}, followed by {}", keeper.name());
                println!("{what}");
                node.ns.ip(&format!(
                    "route replace default via {network}.{router} dev {name} table {table}
                     route replace default via fe80::{router} dev {name} table {table}"
                ));
                keeper.follow();
                for _ in 0..2 {
                    scene.assert_seen_at(name, ports, &mut talks, &what);
                    for talk in &mut talks {
                        offload(&node.ns, talk);
                    }
                }
            }
        }
    }
}
