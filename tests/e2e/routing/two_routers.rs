//! Several routers on one NIC, each a stateful firewall: a reply has to go to the one that the
//! request came from.

use serde_json::{Value, json};

use super::lan::{Lan, firewall, node_port};
use crate::lab::agent::PATIENT;
use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::netns::Netns;
use crate::lab::node::{Node, Pod};
use crate::lab::not_run::only_nftables;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Connection, Proto, Server};

/// The node's one NIC has two routers, A and B; a client behind both reaches one address of the
/// node's by each of them.
struct Scene {
    node: Node,
    pod: Pod,
    routers: [Netns; 2],
    client: Netns,
    _lans: Vec<Lan>,
    _servers: [Server; 2],
}

impl Scene {
    fn new() -> Self {
        let (node, client) = (Node::new("node"), Netns::new("client"));
        let lan = Lan::new("lan");
        lan.plug(&node.ns, "eth0", &["10.8.0.10/24", "2001:db8:8::10/64"]);
        let mut lans = Vec::new();
        let routers = [1, 2].map(|n: u8| {
            let router = firewall(&format!("router{n}"));
            router.sysctl("ipv6/conf/all/forwarding", "1");
            lan.plug(&router, "near", &[&format!("10.8.0.{n}/24"), &format!("2001:db8:8::{n}/64")]);
            let far = Lan::new("far");
            far.plug(
                &router,
                "far",
                &[&format!("192.0.2.{}/30", 4 * n + 1), &format!("2001:db8:{n}::1/64")],
            );
            far.plug(
                &client,
                &format!("by{n}"),
                &[&format!("192.0.2.{}/30", 4 * n + 2), &format!("2001:db8:{n}::2/64")],
            );
            router.ip(&format!(
                "route add 198.51.100.9 via 192.0.2.{}
                 route add 203.0.113.{n} via 10.8.0.10
                 route add 2001:db8:9::9 via 2001:db8:{n}::2
                 route add 2001:db8:113::{n} via 2001:db8:8::10",
                4 * n + 2
            ));
            client.ip(&format!(
                "route add 203.0.113.{n} via 192.0.2.{}
                 route add 2001:db8:113::{n} via 2001:db8:{n}::1",
                4 * n + 1
            ));
            lans.push(far);
            router
        });
        client.ip("addr add 198.51.100.9/32 dev lo
             addr add 2001:db8:9::9/128 dev lo nodad
             route change 203.0.113.1 via 192.0.2.5 src 198.51.100.9
             route change 203.0.113.2 via 192.0.2.9 src 198.51.100.9
             route change 2001:db8:113::1 via 2001:db8:1::1 src 2001:db8:9::9
             route change 2001:db8:113::2 via 2001:db8:2::1 src 2001:db8:9::9");
        for n in [1, 2] {
            node.ns.ip(&format!(
                "addr add 203.0.113.{n}/32 dev lo
                 addr add 2001:db8:113::{n}/128 dev lo nodad"
            ));
        }
        lans.push(lan);
        let pod = node.pod("pod", &["10.244.0.5"]);
        node_port(&node.ns, "10.244.0.5");
        let servers = [
            Server::start(&node.ns, Proto::Tcp, 10250, "host"),
            Server::start(&pod.ns, Proto::Tcp, 8080, "pod"),
        ];
        Self { node, pod, routers, client, _lans: lans, _servers: servers }
    }

    fn flows(&self) -> Vec<Flow<'_>> {
        let mut flows = Vec::new();
        for n in [1, 2] {
            let name = ["a", "b"][n - 1];
            let each = [
                (format!("host by {name}"), format!("203.0.113.{n}:10250"), "host 198.51.100.9"),
                (format!("pod by {name}"), format!("203.0.113.{n}:30080"), "pod 198.51.100.9"),
                (
                    format!("host by {name}, v6"),
                    format!("[2001:db8:113::{n}]:10250"),
                    "host 2001:db8:9::9",
                ),
            ];
            flows.extend(
                each.map(|(flow, to, answer)| {
                    Flow::new(&flow, &self.client, Proto::Tcp, &to, answer)
                }),
            );
        }
        flows
    }

    fn forget_connections(&self) {
        self.node.ns.exec(&["conntrack", "-F"], "");
    }
}

const BY_B: [&str; 3] = ["host by b", "pod by b", "host by b, v6"];

/// With `defaults` in main, and these settings, each router gets the replies to its requests.
fn each_gets_its_own(defaults: &str, settings: &Value, broken: &[&str]) {
    let scene = Scene::new();
    scene.node.ns.ip(defaults);
    if broken.is_empty() {
        // Which hop a connection takes is the kernel's choice.
        assert!(defaults.contains("nexthop"), "nothing is wrong with a single router");
    } else {
        assert_only_these_fail(&scene.flows(), broken);
    }
    let before = Snapshot::take(&scene.node);
    for _ in 0..2 {
        scene.forget_connections();
        scene.node.add(settings, &scene.pod);
        assert_all_work(&scene.flows());
        // symroute knows all hardware addresses, so the next reconcile finds nothing to do.
        let status = scene.node.symroute(&["status"]);
        assert_eq!(status.code, Some(0));
        let limit = "by eth0 stays with the router of its first request";
        assert_eq!(status.stdout.contains(limit), Backend::of_run() != Backend::Nftables);
    }
    scene.node.del(settings, &scene.pod);
    before.assert_unchanged(&Snapshot::take(&scene.node));
}

#[test]
fn two_default_routes() {
    let defaults = "route add default via 10.8.0.1 dev eth0
         route add default via 10.8.0.2 dev eth0 metric 200
         route add default via 2001:db8:8::1 dev eth0 metric 1024
         route add default via 2001:db8:8::2 dev eth0 metric 2048";
    each_gets_its_own(defaults, &json!({"uplinks": ["eth0"]}), &BY_B);
}

#[test]
fn two_hops_of_one_default_route() {
    let defaults = "route add default nexthop via 10.8.0.1 dev eth0 nexthop via 10.8.0.2 dev eth0
         route add default nexthop via 2001:db8:8::1 dev eth0 nexthop via 2001:db8:8::2 dev eth0";
    each_gets_its_own(defaults, &json!({"uplinks": ["eth0"]}), &[]);
}

#[test]
fn two_gateways_of_the_settings() {
    let defaults = "route add default via 10.8.0.1 dev eth0
         route add default via 2001:db8:8::1 dev eth0";
    let gateways = json!({"eth0": ["10.8.0.1", "10.8.0.2", "2001:db8:8::1", "2001:db8:8::2"]});
    each_gets_its_own(defaults, &json!({"uplinks": ["eth0"], "gateways": gateways}), &BY_B);
}

/// A router with another hardware address than the known one fares no worse than without the plugin.
/// The next reconcile learns the address.
#[test]
fn a_router_that_is_replaced() {
    let scene = Scene::new();
    scene.node.ns.ip("route add default via 10.8.0.1 dev eth0
         route add default via 10.8.0.2 dev eth0 metric 200
         route add default via 2001:db8:8::1 dev eth0 metric 1024
         route add default via 2001:db8:8::2 dev eth0 metric 2048");
    let settings = json!({"uplinks": ["eth0"]});
    scene.node.up(&settings);
    assert_all_work(&scene.flows());
    scene.routers[1].ip("link set near address 02:aa:00:00:00:02");
    scene.node.ns.ip("neigh flush all");
    scene.forget_connections();
    assert_only_these_fail(&scene.flows(), &BY_B);
    scene.node.up(&settings);
    scene.forget_connections();
    assert_all_work(&scene.flows());
    let text = scene.node.symroute(&["status"]).stdout;
    assert!(text.contains("requests from 02:aa:00:00:00:02"), "{text}");
    scene.node.down();
}

/// Requests of a connection that come by the other router take its replies along: the first one has
/// failed. With iptables a connection stays with the router of its first request.
#[test]
fn a_connection_follows_its_router() {
    if !only_nftables("iptables asks for the hardware address once") {
        return;
    }
    let scene = Scene::new();
    scene.node.ns.ip("route add default via 10.8.0.1 dev eth0
         route add default via 10.8.0.2 dev eth0 metric 200");
    for router in &scene.routers {
        // Such pairs of firewalls share their connection tables.
        router.nft("flush chain inet firewall forward");
        router.ip("route replace 203.0.113.0/24 via 10.8.0.10");
    }
    scene.node.up(&json!({"uplinks": ["eth0"]}));
    let to = "203.0.113.2:10250".parse().expect("an address");
    let mut connection = Connection::open(&scene.client, to, PATIENT).expect("a connection");
    connection.ask().expect("an answer");
    scene.routers[1].ip("link set near down");
    scene.client.ip("route change 203.0.113.2 via 192.0.2.5 src 198.51.100.9");
    connection.ask().expect("an answer by the other router");
    scene.node.down();
}

/// Main's default route moves to the other router. Where no agent runs, the next ADD notices.
#[test]
fn the_next_add_follows_the_default_route() {
    let scene = Scene::new();
    scene.node.ns.ip("route add default via 10.8.0.1 dev eth0
         route add default via 2001:db8:8::1 dev eth0");
    let before = Snapshot::take(&scene.node);
    let settings = json!({"uplinks": ["eth0"]});
    scene.node.add(&settings, &scene.pod);
    assert_only_these_fail(&scene.flows(), &BY_B);
    scene.node.ns.ip("route replace default via 10.8.0.2 dev eth0
         route replace default via 2001:db8:8::2 dev eth0");
    scene.forget_connections();
    scene.node.add(&settings, &scene.pod);
    assert_only_these_fail(&scene.flows(), &["host by a", "pod by a", "host by a, v6"]);
    assert_eq!(scene.node.symroute(&["status"]).code, Some(0));
    scene.node.ns.ip("route replace default via 10.8.0.1 dev eth0
         route replace default via 2001:db8:8::1 dev eth0");
    scene.node.del(&settings, &scene.pod);
    before.assert_unchanged(&Snapshot::take(&scene.node));
}
