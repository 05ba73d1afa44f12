//! What does move an answered connection: its address moves to another uplink, or its uplink
//! disappears.

use serde_json::json;

use super::{bound_to, settings};
use crate::lab::agent::{Agent, until};
use crate::lab::forge;
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::router::Router;
use crate::lab::talk::{Listening, Talk};
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{NICS, POD, POD6, TwoNics, two_nics};
use crate::lab::wire::Wire;

/// An address of the node that a daemon moves between its NICs.
const FLOATING: [&str; 2] = ["10.77.0.7", "2001:db8:77::7"];

/// A layout with the address on eth1, and a rule that makes it work there without the plugin.
fn floating() -> TwoNics {
    let mut layout = two_nics();
    for address in FLOATING {
        layout.router.assign("eth1", address);
    }
    layout.router.check_sources(&NICS);
    layout.node.ns.ip(&format!(
        "addr add {0} dev eth1
         addr add {1} dev eth1 nodad
         rule add pref 1000 from {0} lookup 101",
        FLOATING[0], FLOATING[1]
    ));
    layout.node.ns.ip6(&format!("rule add pref 1000 from {} lookup 101", FLOATING[1]));
    layout
}

fn move_to_eth0(router: &mut Router, node: &Node) {
    node.ns.ip(&format!(
        "rule del pref 1000
         addr del {0} dev eth1
         addr del {1} dev eth1
         addr add {0} dev eth0
         addr add {1} dev eth0 nodad",
        FLOATING[0], FLOATING[1]
    ));
    node.ns.ip6("rule del pref 1000");
    for address in FLOATING {
        router.reassign("eth0", address);
    }
    router.check_sources(&NICS);
}

/// Opens a TCP and a UDP connection to each address.
fn talks(client: &Netns, node: &Node, mark: u32) -> Vec<(Proto, Talk)> {
    let mut talks = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        for address in FLOATING {
            let talk = Talk::begin(client, &node.ns, proto, address);
            assert_eq!(node.mark_of(proto, talk.client()), Some(mark), "{address}");
            talks.push((proto, talk));
        }
    }
    talks
}

#[test]
fn an_address_that_moves_takes_its_connections_along() {
    for plugin in [false, true] {
        let mut layout = floating();
        Wire::new(&layout.router, &layout.node);
        if plugin {
            layout.node.up(&settings());
        }
        let mark = if plugin { bound_to(1) } else { 0 };
        let mut talks = talks(&layout.client, &layout.node, mark);
        move_to_eth0(&mut layout.router, &layout.node);
        if plugin {
            layout.node.up(&settings());
        }
        let mark = if plugin { bound_to(0) } else { 0 };
        for (proto, talk) in &mut talks {
            talk.ask().expect("a question by the new uplink");
            talk.assert_goes_on("the move");
            assert_eq!(layout.node.mark_of(*proto, talk.client()), Some(mark), "after the move");
        }
    }
}

#[test]
fn the_agent_sees_the_address_move() {
    let mut layout = floating();
    let (router, node) = (&mut layout.router, &layout.node);
    let config = crate::agent::plugin_object(node, &settings());
    let _agent = Agent::ready(node, &["--config", &config]);
    let mut talks = talks(&layout.client, node, bound_to(1));
    move_to_eth0(router, node);
    for (proto, talk) in &mut talks {
        until("the connection is at the new uplink", || {
            talk.ask().expect("a question by the new uplink");
            node.mark_of(*proto, talk.client()) == Some(bound_to(0))
        });
        talk.assert_goes_on("the move");
    }
}

/// The uplink of the connection disappears, and the router sends the pod's packets to the other
/// one.
#[test]
fn a_connection_whose_uplink_has_gone_is_bound_anew() {
    let all = json!({"uplinks": ["eth*"]});
    for plugin in [false, true] {
        let mut layout = two_nics();
        Wire::new(&layout.router, &layout.node);
        if plugin {
            layout.node.add(&all, &layout.pods[1]);
        }
        let pod = &layout.pods[1].ns;
        let mut talks = Vec::new();
        for (proto, address) in [
            (Proto::Tcp, POD[1]),
            (Proto::Tcp, POD6[1]),
            (Proto::Udp, POD[1]),
            (Proto::Udp, POD6[1]),
        ] {
            talks.push((proto, Talk::begin(&layout.client, pod, proto, address)));
        }
        for address in [POD[1], POD6[1]] {
            layout.router.reassign("eth0", address);
        }
        layout.router.check_sources(&["eth0"]);
        layout.node.ns.ip("link del eth1");
        if plugin {
            layout.node.up(&all);
        }
        for (proto, talk) in &mut talks {
            talk.ask().expect("a question by the other uplink");
            talk.assert_goes_on("its uplink has gone");
            let mark = if plugin { bound_to(0) } else { 0 };
            assert_eq!(layout.node.mark_of(*proto, talk.client()), Some(mark));
        }
    }
}

/// Until the first answer the last request decides the uplink: no established connection can
/// suffer.
#[test]
fn a_request_without_an_answer_moves() {
    let layout = two_nics();
    let (node, wire) = (&layout.node, Wire::new(&layout.router, &layout.node));
    node.add(&settings(), &layout.pods[1]);
    for address in [POD[1], POD6[1]] {
        let silent = Listening::at(&layout.pods[1].ns, Proto::Udp, address, 0);
        let client = Listening::at(&layout.client, Proto::Udp, client_like(address), 0);
        let request = forge::udp(client.address(), silent.address(), b"who");
        for nic in [1, 0, 1] {
            wire.send(NICS[nic], std::slice::from_ref(&request));
            let mark = node.mark_of(Proto::Udp, client.address());
            assert_eq!(mark, Some(bound_to(nic)), "by {}", NICS[nic]);
        }
    }
    node.del(&settings(), &layout.pods[1]);
}

/// The client's address of the same family as `address`.
fn client_like(address: &str) -> &'static str {
    use crate::lab::two_nics::{CLIENT, CLIENT6};
    if address.contains(':') { CLIENT6 } else { CLIENT }
}
