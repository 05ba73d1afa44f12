//! Pods start and end while connections of other pods are in the flowtable.

use std::ops::Range;

use super::{BEHIND, Keeper, Scene, settings};
use crate::lab::agent::until;
use crate::lab::flowtable::{flowtable_devices, kernel_has_flowtables};
use crate::lab::node::Pod;
use crate::lab::talk::{Listening, Talk};
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{POD, POD6};

/// Addresses of a pod that starts later. Clients call them through eth1.
const LATER: [&str; 2] = ["10.21.0.61", "2001:db8:21::61"];

fn is_flowtable_device(scene: &Scene, device: &str) -> bool {
    flowtable_devices(&scene.layout.node.ns).contains(device)
}

/// A scene whose network has a place for a later pod.
fn scene() -> Scene {
    let mut scene = Scene::new();
    let router = &mut scene.layout.router;
    for address in LATER {
        router.assign("eth1", address);
    }
    router.check_sources(&["eth0", "eth1"]);
    scene
}

/// Asserts that the pod's connections are offloaded, and that those of other pods stay so.
fn assert_served(scene: &Scene, pod: &Pod, others: &[Talk], what: &str) {
    scene.assert_offloaded(others, what);
    let mut talks = scene.begin(LATER, pod, LATER);
    scene.offload("eth1", &mut talks, what);
    scene.assert_offloaded(others, what);
}

/// Deletes the pod's veth. Asserts that the flowtable loses this device and keeps the other
/// connections.
fn assert_leaves(scene: &Scene, keeper: &Keeper<'_>, veth: &str, others: &mut [Talk], what: &str) {
    scene.layout.node.ns.ip(&format!("link del {veth}"));
    assert!(!is_flowtable_device(scene, veth), "{what}: {veth} is gone");
    keeper.follow();
    scene.assert_offloaded(others, what);
    // Where a route has changed, the kernel sends connections back to the rules.
    scene.assert_back("eth1", others, what);
}

/// A pod's veth becomes a device of the flowtable through its ADD, or through the agent.
#[test]
fn pods_that_come_and_go_leave_others_offloaded() {
    if !kernel_has_flowtables() {
        return;
    }
    for with_agent in [false, true] {
        let scene = scene();
        let node = &scene.layout.node;
        let keeper = Keeper::begin(node, with_agent);
        let mut others = scene.talks();
        scene.offload("eth1", &mut others, "the begin");
        let pod = node.pod("later", &LATER);
        if !with_agent {
            assert!(!is_flowtable_device(&scene, "enilater"), "no program has looked");
        }
        node.add(&settings(), &pod);
        until("ADD: its veth is a device", || is_flowtable_device(&scene, "enilater"));
        assert_served(&scene, &pod, &others, "ADD");
        node.del(&settings(), &pod);
        scene.assert_offloaded(&others, "DEL");
        assert_leaves(&scene, &keeper, "enilater", &mut others, "the end of its pod");
        let pod = node.pod("plain", &LATER);
        if !with_agent {
            node.up(&settings());
        }
        until("no ADD: its veth is a device", || is_flowtable_device(&scene, "eniplain"));
        assert_served(&scene, &pod, &others, "a pod of another network");
        assert_leaves(&scene, &keeper, "eniplain", &mut others, "the end of that pod");
    }
}

/// The kernel takes 256 devices in one request, and a node may have more pods.
#[test]
fn hundreds_of_pods_are_devices() {
    if !kernel_has_flowtables() {
        return;
    }
    let scene = scene();
    let node = &scene.layout.node;
    let pairs = |numbers: Range<u32>, line: &str| -> String {
        numbers.map(|n| line.replace('N', &n.to_string()) + "\n").collect()
    };
    let add = "link add aN type veth peer name bN";
    node.ns.ip(&pairs(0..150, add));
    let keeper = Keeper::begin(node, false);
    assert!(flowtable_devices(&node.ns).len() > 300, "devices at the begin");
    let mut others = scene.talks();
    scene.offload("eth1", &mut others, "the begin");
    node.ns.ip(&pairs(150..300, add));
    keeper.follow();
    assert!(flowtable_devices(&node.ns).len() > 600, "devices later");
    let pod = node.pod("later", &LATER);
    node.add(&settings(), &pod);
    assert_served(&scene, &pod, &others, "one pod more");
    node.ns.ip(&pairs(0..300, "link del aN"));
    keeper.follow();
    scene.assert_offloaded(&others, "the end of all those pods");
}

/// Moves the servers of these UDP connections to another pod, at the same addresses and ports.
fn serve_in(pod: &Pod, talks: &mut [Talk]) {
    for talk in talks {
        let at = talk.server();
        let server = Listening::at(&pod.ns, Proto::Udp, &at.ip().to_string(), at.port());
        talk.replace_server(server);
    }
}

/// A pod ends with connections in the flowtable. Another pod gets its addresses, behind another
/// veth.
#[test]
fn another_pod_with_the_addresses_gets_all_packets() {
    if !kernel_has_flowtables() {
        return;
    }
    for with_agent in [false, true] {
        let scene = Scene::new();
        let node = &scene.layout.node;
        let keeper = Keeper::begin(node, with_agent);
        let pods = [&scene.layout.pods[1], &scene.behind];
        for pod in pods {
            node.add(&settings(), pod);
        }
        let mut talks = scene.talks();
        scene.offload("eth1", &mut talks, "the begin");
        for pod in pods {
            node.del(&settings(), pod);
        }
        node.ns.ip("link del enipod1\nlink del enibehind");
        scene.assert_at_rules(&talks, "the end of the pods");
        let next = [("next1", [POD[1], POD6[1]]), ("next2", BEHIND)].map(|(name, addresses)| {
            let pod = node.pod(name, &addresses);
            node.add(&settings(), &pod);
            until("its veth is a device", || is_flowtable_device(&scene, &format!("eni{name}")));
            pod
        });
        keeper.follow();
        let (mut streams, datagrams): (Vec<Talk>, Vec<Talk>) =
            talks.into_iter().partition(|talk| talk.proto() == Proto::Tcp);
        assert!(streams.iter_mut().all(Talk::is_reset), "the new pods know no such streams");
        let of_behind = |talk: &Talk| BEHIND.map(str::parse).contains(&Ok(talk.server().ip()));
        let (mut behind, mut moved): (Vec<Talk>, _) = datagrams.into_iter().partition(of_behind);
        serve_in(&next[0], &mut moved);
        serve_in(&next[1], &mut behind);
        moved.extend(behind);
        scene.assert_back("eth1", &mut moved, "another pod");
        let mut new = scene.begin([POD[1], POD6[1]], &next[0], [POD[1], POD6[1]]);
        new.extend(scene.begin(super::CALLED, &next[1], BEHIND));
        scene.offload("eth1", &mut new, "another pod");
        for pod in &next {
            node.del(&settings(), pod);
        }
    }
}
