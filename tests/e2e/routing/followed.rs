//! The node's routing changes while symroute runs, so an uplink's table is an old copy. Without an
//! agent some flows that worked before fail. The agent follows by events.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};
use serde_json::json;

use super::lan::{Lan, firewall, host, node_port};
use crate::agent::plugin_object;
use crate::lab::agent::{Agent, PATIENT, until};
use crate::lab::netns::Netns;
use crate::lab::node::{Node, Pod};
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Connection, Proto, Server, ask};
use crate::lab::tun::Tunnel;

/// Time after which a request without an answer has failed.
const TRY: Duration = Duration::from_millis(400);

fn answers(from: &Netns, to: &str) -> bool {
    ask(from, Proto::Tcp, to.parse().expect("an address"), TRY).is_ok()
}

/// Two networks of the node, each with the same two routers, which are stateful firewalls; a client
/// behind both.
struct Scene {
    node: Node,
    lans: Vec<Lan>,
    routers: [Netns; 2],
    client: Netns,
    _pod: Pod,
    _servers: [Server; 2],
}

impl Scene {
    fn new() -> Self {
        let node = Node::new("node");
        let lans: Vec<Lan> = ["lan0", "lan1", "outside"].map(Lan::new).into();
        lans[0].plug(&node.ns, "eth0", &["10.10.0.10/24"]);
        lans[1].plug(&node.ns, "eth1", &["10.11.0.10/24"]);
        lans[1].plug(&node.ns, "eth2", &[]);
        let routers = [1, 2].map(|n| {
            let router = firewall(&format!("router{n}"));
            router.sysctl("ipv6/conf/all/forwarding", "1");
            lans[0].plug(&router, "r0", &[&format!("10.10.0.{n}/24")]);
            lans[1].plug(&router, "r1", &[&format!("10.11.0.{n}/24")]);
            let outside = [format!("203.0.113.{n}/24"), format!("2001:db8:113::{n}/64")];
            lans[2].plug(&router, "r2", &[&outside[0], &outside[1]]);
            router
        });
        let client = host(&lans[2], "client", "203.0.113.9/24", "203.0.113.1");
        client.ip("addr add 2001:db8:113::9/64 dev eth0 nodad");
        node.ns.ip("route add default via 10.10.0.1 dev eth0
             route add default via 10.11.0.1 dev eth1 table 111");
        let pod = node.pod("pod", &["10.244.0.5"]);
        node_port(&node.ns, "10.244.0.5");
        let servers = [
            Server::start(&node.ns, Proto::Tcp, 10250, "host"),
            Server::start(&pod.ns, Proto::Tcp, 8080, "pod"),
        ];
        Self { node, lans, routers, client, _pod: pod, _servers: servers }
    }

    fn agent(&self, uplinks: &[&str]) -> Agent<'_> {
        let file = plugin_object(&self.node, &json!({ "uplinks": uplinks }));
        Agent::ready(&self.node, &["--config", &file])
    }

    fn up(&self, uplinks: &[&str]) {
        self.node.up(&json!({ "uplinks": uplinks }));
    }

    /// Leads the client's way to the node through the n-th router.
    fn client_comes_by(&self, n: u8) {
        self.client.ip(&format!("route replace default via 203.0.113.{n}"));
    }
}

const UPLINKS: [&str; 2] = ["eth0", "eth1"];

/// A node joins the cluster: the routes get one to its pods, by its address on the second NIC's network.
#[test]
fn a_node_that_joins() {
    let scene = Scene::new();
    let joins = host(&scene.lans[1], "node3", "10.11.0.29/24", "10.11.0.1");
    joins.ip("addr add 10.86.67.74/32 dev lo
         route add 10.244.0.0/24 via 10.11.0.10 src 10.86.67.74
         route change default via 10.11.0.1 src 10.86.67.74");
    let ns = &scene.node.ns;
    let serves = || answers(&joins, "10.244.0.5:8080");
    ns.ip("route add 10.86.67.0/24 via 10.11.0.29 dev eth1");
    assert!(serves(), "it works without the plugin");
    ns.ip("route del 10.86.67.0/24");
    scene.up(&UPLINKS);
    ns.ip("route add 10.86.67.0/24 via 10.11.0.29 dev eth1");
    assert!(!serves(), "the table was copied before");
    ns.ip("route del 10.86.67.0/24");
    let _agent = scene.agent(&UPLINKS);
    ns.ip("route add 10.86.67.0/24 via 10.11.0.29 dev eth1");
    until("the pods of the new node are answered", serves);
    assert!(answers(&joins, "10.11.0.10:10250"), "so is its request to the node itself");
}

/// The first router fails, and main's default route moves to the second.
#[test]
fn a_router_that_fails() {
    let scene = Scene::new();
    let serves = || answers(&scene.client, "10.10.0.10:30080");
    scene.up(&UPLINKS);
    assert!(serves());
    let fail = || {
        scene.routers[0].ip("link set r0 down");
        scene.node.ns.ip("route replace default via 10.10.0.2 dev eth0");
        scene.client_comes_by(2);
    };
    fail();
    assert!(!serves(), "replies go to the router that failed");
    scene.routers[0].ip("link set r0 up");
    scene.node.ns.ip("route replace default via 10.10.0.1 dev eth0");
    scene.client_comes_by(1);
    let _agent = scene.agent(&UPLINKS);
    assert!(serves());
    fail();
    until("replies go to the other router", serves);
}

/// The second NIC's address moves to a third NIC of the same network, and back: fail-over of a pair of
/// NICs, or an address that the cloud moves.
#[test]
fn an_address_that_moves_between_nics() {
    let scene = Scene::new();
    let ns = &scene.node.ns;
    let uplinks = ["eth*"];
    let serves = || answers(&scene.client, "10.11.0.10:30080");
    let move_address = |from: &str, to: &str| {
        ns.ip(&format!(
            "addr del 10.11.0.10/24 dev {from}
             addr add 10.11.0.10/24 dev {to}
             route replace default via 10.11.0.1 dev {to} table 111"
        ));
        for router in &scene.routers {
            router.ip("neigh flush dev r1");
        }
    };
    let _agent = scene.agent(&uplinks);
    assert!(serves());
    let to = "10.11.0.10:10250".parse().expect("an address");
    let mut connection = Connection::open(&scene.client, to, PATIENT).expect("a connection");
    move_address("eth1", "eth2");
    until("the third NIC has it", serves);
    connection.ask().expect("the connection moved along");
    move_address("eth2", "eth1");
    until("the second NIC has it back", serves);
    connection.ask().expect("the connection moved back");
}

/// A tunnel goes down and comes up again as a new interface, as `wg-quick` does it.
#[test]
fn a_tunnel_that_is_made_anew() {
    let scene = Scene::new();
    let (ns, edge) = (&scene.node.ns, Netns::new("edge"));
    edge.sysctl("ipv4/ip_forward", "1");
    scene.lans[0].plug(&edge, "e0", &["10.10.0.60/24"]);
    let inner = Lan::new("inner");
    inner.plug(&edge, "e1", &["10.90.0.1/24"]);
    let behind = host(&inner, "behind", "10.90.0.9/24", "10.90.0.1");
    let _far = Tunnel::open(&edge, "wg0", "10.10.0.60:51820", "10.10.0.10:51820");
    edge.ip("addr add 10.7.0.2/31 dev wg0
         link set wg0 up");
    let begin = || {
        let tunnel = Tunnel::open(ns, "wg0", "10.10.0.10:51820", "10.10.0.60:51820");
        ns.ip("addr add 10.7.0.3/31 dev wg0
             link set wg0 up");
        tunnel
    };
    let uplinks = ["eth0", "wg*"];
    let serves = || answers(&behind, "10.7.0.3:30080");
    let tunnel = begin();
    assert!(!serves(), "without the plugin the reply leaves by eth0");
    scene.up(&uplinks);
    assert!(serves());
    drop(tunnel);
    let tunnel = begin();
    assert!(!serves(), "the new interface is not known");
    let _agent = scene.agent(&uplinks);
    assert!(serves());
    drop(tunnel);
    let _tunnel = begin();
    until("the new interface is an uplink", serves);
}

/// Sends a router advertisement by `r0`: that this is a default router for so many seconds (0: no
/// more), RFC 4861, section 4.2.
fn advertise(router: &Netns, lifetime: u16) {
    router.run(|| {
        let link = if_nametoindex("r0").expect("the router's interface");
        let raw = socket(
            AddressFamily::Inet6,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::IcmpV6,
        )
        .expect("a raw socket");
        setsockopt(&raw, sockopt::Ipv6MulticastHops, &255).expect("set the hop limit");
        let [high, low] = lifetime.to_be_bytes();
        // Type 134, code 0; the kernel fills in the sum.
        let message = [134, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let to = SockaddrIn6::from(SocketAddrV6::new(all_nodes, 0, 0, link));
        sendto(raw.as_raw_fd(), &message, &to, MsgFlags::empty()).expect("send");
    });
}

/// Two IPv6 routers announce themselves: each gets the replies to its own requests. One ends its
/// service, and a third takes over.
#[test]
fn routers_that_announce_themselves() {
    let scene = Scene::new();
    let ns = &scene.node.ns;
    ns.sysctl("ipv6/conf/eth0/accept_ra", "2");
    ns.ip("addr add 2001:db8:10::10/64 dev eth0 nodad");
    for (router, n) in scene.routers.iter().zip(1..) {
        router.ip(&format!("addr add 2001:db8:10::{n}/64 dev r0 nodad"));
    }
    let comes_by = |n: u8| {
        scene.client.ip(&format!("route replace 2001:db8:10::/64 via 2001:db8:113::{n}"));
    };
    let serves = || answers(&scene.client, "[2001:db8:10::10]:10250");
    let defaults = || ns.exec(&["ip", "-6", "route", "show", "default"], "").lines().count();
    let _agent = scene.agent(&UPLINKS);
    comes_by(1);
    assert!(!serves(), "the node knows no router");
    advertise(&scene.routers[0], 1800);
    until("the first router gets replies", serves);
    comes_by(2);
    assert!(!serves(), "a router that the node does not know drops what it did not see begin");
    advertise(&scene.routers[1], 1800);
    until("the second router gets the replies to its requests", serves);
    comes_by(1);
    assert!(serves(), "and the first one those to its own");
    advertise(&scene.routers[0], 0);
    until("the first router is none any more", || defaults() == 1);
    comes_by(2);
    until("the second router is served alone", serves);
    // A third one takes over from it: another hardware address, and the same announcement.
    let third = firewall("router3");
    third.sysctl("ipv6/conf/all/forwarding", "1");
    scene.lans[0].plug(&third, "r0", &["2001:db8:10::3/64"]);
    scene.lans[2].plug(&third, "r2", &["2001:db8:113::3/64"]);
    advertise(&scene.routers[1], 0);
    advertise(&third, 1800);
    comes_by(3);
    until("the third router is served", serves);
}

/// `down` removes what the agent added later, too.
#[test]
fn nothing_is_left_of_what_was_followed() {
    let scene = Scene::new();
    let ns = &scene.node.ns;
    let link_local = || ns.exec(&["ip", "-6", "route", "show", "dev", "eth2"], "");
    until("the last NIC is up", || link_local().contains("fe80::/64"));
    let before = Snapshot::take(&scene.node);
    let agent = scene.agent(&["eth*"]);
    ns.ip("route add 10.86.67.0/24 via 10.11.0.29 dev eth1
         route replace default via 10.10.0.2 dev eth0");
    let table = || ns.exec(&["ip", "route", "show", "table", "47002"], "");
    until("the route is copied", || table().contains("10.86.67.0/24"));
    ns.ip("route del 10.86.67.0/24
         route replace default via 10.10.0.1 dev eth0");
    until("the route is gone again", || !table().contains("10.86.67.0/24"));
    drop(agent);
    scene.node.symroute(&["down", "--force"]).assert_success("down");
    before.assert_unchanged(&Snapshot::take(&scene.node));
}
