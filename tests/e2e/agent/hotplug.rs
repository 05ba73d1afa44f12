//! NICs that appear, disappear and change while the node runs.

use std::net::SocketAddr;

use serde_json::json;

use crate::agent::{answers, plugin_object};
use crate::lab::agent::{Agent, PATIENT, until};
use crate::lab::node::Node;
use crate::lab::traffic::Connection;
use crate::lab::two_nics::{NICS, NODE, two_nics};

fn settings() -> serde_json::Value {
    json!({"uplinks": ["eth*"]})
}

fn table(node: &Node, number: u32) -> String {
    // `ip` fails for a table without routes.
    node.ns.exec(&["sh", "-c", &format!("ip route show table {number} 2>&1 || true")], "")
}

#[test]
fn a_nic_that_is_attached_is_served_once_it_has_address_and_gateway() {
    let mut layout = two_nics();
    let plug = |layout: &mut crate::lab::two_nics::TwoNics| {
        layout.router.plug("eth2", &layout.node.ns, "eth2", &["10.22.0.1"]);
        layout.router.assign("eth2", "10.22.0.10");
        layout.router.check_sources(&["eth0", "eth1", "eth2"]);
    };
    plug(&mut layout);
    layout.node.up(&settings());
    layout.node.ns.ip("addr add 10.22.0.10/24 dev eth2
         route add default via 10.22.0.1 dev eth2 table 102");
    assert!(!answers(&layout, "10.22.0.10", 10250), "up came before address and gateway");

    let mut layout = two_nics();
    let agent =
        Agent::ready(&layout.node, &["--config", &plugin_object(&layout.node, &settings())]);
    layout.router.plug("eth2", &layout.node.ns, "eth2", &["10.22.0.1"]);
    let known = "symroute_uplink_info{uplink=\"eth2\",id=\"3\",table=\"47003\"} 1";
    until("the new NIC is known", || agent.get("/metrics").1.contains(known));
    layout.router.assign("eth2", "10.22.0.10");
    layout.router.check_sources(&["eth0", "eth1", "eth2"]);
    layout.node.ns.ip("addr add 10.22.0.10/24 dev eth2");
    until("its address is known", || table(&layout.node, 47003).contains("10.22.0.0/24"));
    layout.node.ns.ip("route add default via 10.22.0.1 dev eth2 table 102");
    until("it is served", || answers(&layout, "10.22.0.10", 10250));
}

#[test]
fn a_nic_that_is_detached_goes_and_connections_by_the_others_live() {
    let layout = two_nics();
    let agent =
        Agent::ready(&layout.node, &["--config", &plugin_object(&layout.node, &settings())]);
    let open = |nic: usize| {
        let to: SocketAddr = format!("{}:10250", NODE[nic]).parse().expect("an address");
        Connection::open(&layout.client, to, PATIENT).expect("a connection")
    };
    let (mut stays, _goes) = (open(0), open(1));
    layout.node.ns.ip("link del eth1");
    until("its rules have gone", || !layout.node.ns.exec(&["ip", "rule"], "").contains("47002"));
    stays.ask().expect("the other NIC's connection lives");
    assert_eq!(agent.get("/readyz").0, 200);
}

#[test]
fn a_renamed_nic_keeps_its_connections() {
    let layout = two_nics();
    let _agent =
        Agent::ready(&layout.node, &["--config", &plugin_object(&layout.node, &settings())]);
    let to: SocketAddr = format!("{}:10250", NODE[1]).parse().expect("an address");
    let mut connection = Connection::open(&layout.client, to, PATIENT).expect("a connection");
    layout.node.ns.ip("link set eth1 down
         link set eth1 name eth7
         link set eth7 up
         route add default via 10.21.0.1 dev eth7 table 101");
    until("its new name is known", || {
        layout.node.ns.exec(&["ip", "rule"], "").contains("iif eth7")
    });
    until("it is served", || answers(&layout, NODE[1], 10250));
    connection.ask().expect("the connection goes on");
}

/// Field report 004 on a running node: the second NIC's lease brings a default route.
#[test]
fn a_lease_that_rewrites_main_is_followed() {
    let layout = two_nics();
    let node = &layout.node;
    let file = plugin_object(node, &json!({"uplinks": NICS}));
    let agent = Agent::ready(node, &["--config", &file]);
    node.ns.ip("route add default via 10.21.0.1 dev eth1 metric 50
         route replace default via 10.20.0.1 dev eth0 metric 100
         route del default via 10.20.0.1 dev eth0 metric 0");
    until("both NICs are served", || {
        answers(&layout, NODE[0], 10250) && answers(&layout, NODE[1], 10250)
    });
    // The new lease names another router.
    node.ns.ip("route replace default via 10.21.0.2 dev eth1 metric 50
         route flush table 101");
    until("its table has the new router", || table(node, 47002).contains("via 10.21.0.2"));
    assert!(table(node, 47001).contains("via 10.20.0.1"));
    assert_eq!(agent.get("/readyz").0, 200);
}
