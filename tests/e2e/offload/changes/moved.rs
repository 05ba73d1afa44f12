//! Requests of offloaded connections arrive on another uplink than before.

use super::{BEHIND, CALLED, Keeper, Scene, settings};
use crate::lab::agent::until;
use crate::lab::flowtable::{ENOUGH, kernel_has_flowtables, line_of};
use crate::lab::node::Node;
use crate::lab::router::Router;
use crate::lab::talk::Talk;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{POD, POD6};

/// An address of the node that a daemon moves between its NICs. DNAT leads to a pod.
const FLOATING: [&str; 2] = ["10.77.0.7", "2001:db8:77::7"];

/// Makes a layout with the address on eth1. The router accepts it as a source on any NIC, so that
/// captures show which NIC was used.
fn floating() -> Scene {
    let mut scene = Scene::new();
    let Scene { layout, .. } = &mut scene;
    for address in FLOATING {
        layout.router.assign("eth1", address);
    }
    layout.router.check_sources(&[]);
    let [v4, v6] = FLOATING;
    layout.node.ns.ip(&format!("addr add {v4} dev eth1\naddr add {v6} dev eth1 nodad"));
    scene.dnat(FLOATING, BEHIND);
    scene
}

/// Moves the address on the node and in the network.
fn move_address(scene: &Scene, from: &str, to: &str) {
    let [v4, v6] = FLOATING;
    scene.layout.node.ns.ip(&format!(
        "addr del {v4} dev {from}
         addr del {v6} dev {from}
         addr add {v4} dev {to}
         addr add {v6} dev {to} nodad"
    ));
    send_by(&scene.layout.router, to, &FLOATING);
}

/// Makes the router send packets for these addresses through this NIC.
fn send_by(router: &Router, nic: &str, addresses: &[&str]) {
    let mac = router.peer_mac(nic);
    for address in addresses {
        router.ns.ip(&format!(
            "route replace {address} dev {nic}
             neigh replace {address} dev {nic} lladdr {mac} nud permanent"
        ));
    }
}

fn assert_mark(node: &Node, talks: &[Talk], mark: u32, what: &str) {
    for talk in talks {
        assert_eq!(node.mark_of(talk.proto(), talk.client()), Some(mark), "{what}");
    }
}

/// The address moves to eth0 and back. Its connections move with their next request, and are
/// offloaded on the new uplink.
#[test]
fn an_address_that_moves_takes_offloaded_connections_along() {
    if !kernel_has_flowtables() {
        return;
    }
    for with_agent in [false, true] {
        let scene = floating();
        let node = &scene.layout.node;
        let keeper = Keeper::begin(node, with_agent);
        let mut talks = scene.begin(FLOATING, &scene.behind, BEHIND);
        scene.offload("eth1", &mut talks, "the begin");
        for (from, to, mark) in [("eth1", "eth0", 0x100), ("eth0", "eth1", 0x200)] {
            let what = format!("the move to {to}, followed by {}", keeper.name());
            move_address(&scene, from, to);
            keeper.follow();
            scene.assert_at_rules(&talks, &what);
            for talk in &mut talks {
                talk.ask().expect("a question by the new uplink");
            }
            assert_mark(node, &talks, mark, &what);
            scene.assert_back(to, &mut talks, &what);
            assert_mark(node, &talks, mark, &what);
        }
    }
}

/// Requests on another uplink move nothing while the address stays. Replies keep to the bound
/// uplink, even for offloaded connections. Such requests put no connection into the flowtable.
#[test]
fn requests_by_another_uplink_move_nothing() {
    if !kernel_has_flowtables() {
        return;
    }
    let scene = Scene::new();
    let (node, router) = (&scene.layout.node, &scene.layout.router);
    node.up(&settings());
    let all = [POD[1], POD6[1], CALLED[0], CALLED[1]];
    let mut talks = scene.talks();
    scene.offload("eth1", &mut talks, "the begin");
    send_by(router, "eth0", &all);
    for _ in 0..5 {
        scene.assert_goes_by(["eth0", "eth1"], &mut talks, "requests by eth0");
    }
    assert_mark(node, &talks, 0x200, "requests by eth0");
    send_by(router, "eth1", &all);
    scene.assert_back("eth1", &mut talks, "requests by eth1 again");
    let mut young = scene.talks();
    // A TCP connection is offloaded at its start.
    young.retain(|talk| talk.proto() == Proto::Udp);
    send_by(router, "eth0", &all);
    until("the connections are kept up", || {
        scene.assert_goes_by(["eth0", "eth1"], &mut young, "requests by eth0 since");
        young.iter().all(|talk| line_of(&node.ns, talk).contains("[ASSURED]"))
    });
    for talk in &mut young {
        for _ in 0..ENOUGH {
            talk.assert_goes_on("a request by eth0");
        }
    }
    scene.assert_goes_by(["eth0", "eth1"], &mut young, "requests by eth0 of what is kept up");
    scene.assert_at_rules(&young, "requests by eth0");
    send_by(router, "eth1", &all);
    scene.offload("eth1", &mut young, "requests by eth1");
}

/// The uplink of connections disappears, and the router sends the pod's packets to the other one.
/// The connections are bound and offloaded there.
#[test]
fn connections_whose_uplink_has_gone_are_offloaded_by_another() {
    if !kernel_has_flowtables() {
        return;
    }
    for with_agent in [false, true] {
        let scene = Scene::new();
        let (node, router) = (&scene.layout.node, &scene.layout.router);
        router.check_sources(&[]);
        let keeper = Keeper::begin(node, with_agent);
        let at = [POD[1], POD6[1]];
        let mut talks = scene.begin(at, &scene.layout.pods[1], at);
        scene.offload("eth1", &mut talks, "the begin");
        send_by(router, "eth0", &at);
        node.ns.ip("link del eth1");
        keeper.follow();
        scene.assert_at_rules(&talks, "the end of eth1");
        for talk in &mut talks {
            talk.ask().expect("a question by the other uplink");
        }
        assert_mark(node, &talks, 0x100, "the end of eth1");
        scene.assert_back("eth0", &mut talks, "the end of eth1");
    }
}
