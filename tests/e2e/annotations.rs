//! What the annotations of a pod do, to that pod and to no other.
//!
//! ```text
//!            client 203.0.113.9
//!                    |
//!  +-----------------+-----------------+   10.99.0.1:80, 2001:db8:99::1: a balancer for pod101
//!  |              router               |   10.99.0.2:80, 2001:db8:99::2: one for pod102
//!  +-------+-------------------+-------+   both keep the caller's address
//!        eth0                eth1
//!  +-------+-------------------+-------+
//!  |     node: strict rp_filter        |
//!  +--+----------------+---------+-----+
//!    pod0            pod101    pod102, both behind eth1
//! ```

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::forge::{self, SYN};
use crate::lab::node::{Node, Pod};
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{CLIENT, CLIENT6, NICS, TwoNics, two_nics};
use crate::lab::wire::{Seen, Wire};

const BALANCED: [&str; 4] = [
    "pod101 by 10.99.0.1:80",
    "pod101 by [2001:db8:99::1]:80",
    "pod102 by 10.99.0.2:80",
    "pod102 by [2001:db8:99::2]:80",
];

fn settings() -> Value {
    json!({"uplinks": NICS})
}

/// The settings as a runtime passes them for a pod with this annotation.
fn annotated(name: &str, value: &str) -> Value {
    let mut settings = settings();
    let annotations = json!({ name: value, "kubernetes.io/other": "x" });
    settings["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": annotations });
    settings
}

fn left_out() -> Value {
    annotated("symroute.io/enabled", "false")
}

fn hairpin() -> Value {
    annotated("symroute.io/hairpin", "true")
}

struct Scene {
    layout: TwoNics,
    pod101: Pod,
    pod102: Pod,
}

fn scene() -> Scene {
    let mut layout = two_nics();
    let (pod101, pod102) = (layout.pod_behind_eth1(1), layout.pod_behind_eth1(2));
    let balance = [1, 2].map(|number| {
        let [to, to6] = TwoNics::addresses_behind_eth1(number);
        format!(
            "ip daddr 10.99.0.{number} tcp dport 80 dnat ip to {to}:8080
             ip6 daddr 2001:db8:99::{number} tcp dport 80 dnat ip6 to [{to6}]:8080"
        )
    });
    layout.router.ns.nft(&format!(
        "table inet balancer {{
         chain balance {{
         type nat hook prerouting priority dstnat; policy accept;
         {}
         }}
         }}",
        balance.join("\n")
    ));
    Scene { layout, pod101, pod102 }
}

impl Scene {
    fn node(&self) -> &Node {
        &self.layout.node
    }

    /// The client's calls to both pods, over both families.
    fn calls(&self) -> Vec<Flow<'_>> {
        let call = |to: &str, answer| Flow::new(to, &self.layout.client, Proto::Tcp, to, answer);
        vec![
            call("10.21.0.101:8080", "pod101 203.0.113.9"),
            call("[2001:db8:21::101]:8080", "pod101 2001:db8:9::9"),
            call("10.21.0.102:8080", "pod102 203.0.113.9"),
            call("[2001:db8:21::102]:8080", "pod102 2001:db8:9::9"),
        ]
    }

    fn assert_pod101_is_left_out(&self) {
        let broken = ["10.21.0.101:8080", "[2001:db8:21::101]:8080"];
        assert_only_these_fail(&self.calls(), &broken);
    }

    /// Calls of pod0 to both pods through their load balancers.
    fn balanced_calls(&self) -> Vec<Flow<'_>> {
        let answers = [
            "pod101 10.20.0.50",
            "pod101 2001:db8:20::50",
            "pod102 10.20.0.50",
            "pod102 2001:db8:20::50",
        ];
        let call = |(name, answer): (&&str, _)| {
            let (_, to) = name.split_once(" by ").expect("who and where");
            Flow::new(name, &self.layout.pods[0].ns, Proto::Tcp, to, answer)
        };
        BALANCED.iter().zip(answers).map(call).collect()
    }
}

/// Sends a SYN of the client on eth1 to each address of a pod. Returns the fate and the conntrack
/// mark of each.
fn requests(scene: &Scene, wire: &Wire<'_>, number: u8) -> Vec<(Seen, Option<u32>)> {
    scene.node().ns.exec(&["conntrack", "-F"], "");
    let request = |to: &String| {
        let client = if to.contains(':') { CLIENT6 } else { CLIENT };
        let at = |address: &str, port| SocketAddr::new(address.parse().expect("an IP"), port);
        let from = at(client, 40000);
        let seen = wire.send("eth1", &[forge::tcp(from, at(to, 8080), SYN)]);
        (seen, scene.node().mark_of(Proto::Tcp, from))
    };
    TwoNics::addresses_behind_eth1(number).iter().map(request).collect()
}

const DROPPED: Seen = Seen { passed: 0, strict: 1 };
const PASSED: Seen = Seen { passed: 1, strict: 0 };

#[test]
fn a_pod_that_is_left_out() {
    let scene = scene();
    let (node, wire) = (scene.node(), Wire::new(&scene.layout.router, scene.node()));
    let without = requests(&scene, &wire, 1);
    assert_eq!(without, [(DROPPED, None), (PASSED, Some(0))], "without the plugin");
    let before = Snapshot::take(node);
    node.up(&settings());
    let held = Snapshot::take(node);
    assert_eq!(requests(&scene, &wire, 1), [(PASSED, Some(0x200)); 2], "without an attachment");
    node.add(&left_out(), &scene.pod101);
    node.add(&settings(), &scene.pod102);
    let marks: Vec<_> = requests(&scene, &wire, 1).into_iter().map(|(_, mark)| mark).collect();
    assert!(marks.iter().all(|mark| mark.unwrap_or(0) == 0), "bound, though left out: {marks:x?}");
    scene.assert_pod101_is_left_out();
    node.call(&node.call_of("CHECK", &left_out(), &scene.pod101)).assert_success("CHECK");
    node.del(&left_out(), &scene.pod101);
    assert_all_work(&scene.calls());
    node.del(&settings(), &scene.pod102);
    held.assert_unchanged(&Snapshot::take(node));
    node.down();
    before.assert_unchanged(&Snapshot::take(node));
}

/// A pod that is left out stays so after the ADD of another pod, after `up`, and after symroute
/// wrote all rules anew.
#[test]
fn a_pod_stays_left_out() {
    let scene = scene();
    let node = scene.node();
    let before = Snapshot::take(node);
    node.add(&left_out(), &scene.pod101);
    node.add(&settings(), &scene.pod102);
    scene.assert_pod101_is_left_out();
    node.up(&settings());
    scene.assert_pod101_is_left_out();
    node.flush_all_rules();
    node.up(&settings());
    scene.assert_pod101_is_left_out();
    node.down();
    for pod in [&scene.pod101, &scene.pod102] {
        node.del(&settings(), pod);
    }
    before.assert_unchanged(&Snapshot::take(node));
}

/// A repeated ADD applies the annotation that it has now, or its absence.
#[test]
fn left_out_and_served_again() {
    let scene = scene();
    let node = scene.node();
    node.add(&settings(), &scene.pod102);
    let never = Snapshot::take(node);
    node.add(&left_out(), &scene.pod101);
    scene.assert_pod101_is_left_out();
    node.add(&settings(), &scene.pod101);
    assert_all_work(&scene.calls());
    node.add(&left_out(), &scene.pod101);
    scene.assert_pod101_is_left_out();
    node.add(&settings(), &scene.pod101);
    assert_all_work(&scene.calls());
    node.del(&settings(), &scene.pod101);
    never.assert_unchanged(&Snapshot::take(node));
    node.del(&settings(), &scene.pod102);
}

#[test]
fn a_pod_that_local_pods_may_call() {
    let scene = scene();
    let node = scene.node();
    assert_only_these_fail(&scene.balanced_calls(), &BALANCED);
    node.up(&settings());
    for pod in [&scene.layout.pods[0], &scene.pod102] {
        node.add(&settings(), pod);
    }
    let never = Snapshot::take(node);
    assert_only_these_fail(&scene.balanced_calls(), &BALANCED);
    node.add(&hairpin(), &scene.pod101);
    assert_only_these_fail(&scene.balanced_calls(), &BALANCED[2..]);
    node.flush_all_rules();
    node.up(&settings());
    assert_only_these_fail(&scene.balanced_calls(), &BALANCED[2..]);
    // Repeats the ADD without and with the annotation, and ends with a DEL.
    node.add(&settings(), &scene.pod101);
    assert_only_these_fail(&scene.balanced_calls(), &BALANCED);
    node.add(&hairpin(), &scene.pod101);
    assert_only_these_fail(&scene.balanced_calls(), &BALANCED[2..]);
    node.del(&settings(), &scene.pod101);
    assert_only_these_fail(&scene.balanced_calls(), &BALANCED);
    never.assert_unchanged(&Snapshot::take(node));
    for pod in [&scene.layout.pods[0], &scene.pod102] {
        node.del(&settings(), pod);
    }
    node.down();
}

#[test]
fn wrong_ones_are_named() {
    let scene = scene();
    let node = scene.node();
    let before = Snapshot::take(node);
    for (name, value) in [("symroute.io/enabled", "yes"), ("symroute.io/colour", "true")] {
        let ran = node.call(&node.call_of("ADD", &annotated(name, value), &scene.pod101));
        let error: Value = serde_json::from_str(&ran.stdout).expect("a CNI error");
        let said = format!("{}; {}", error["msg"], error["details"]);
        assert!(ran.code == Some(1) && error["code"] == json!(7), "{error}");
        assert!(said.contains(name) && said.contains(value), "{error}");
    }
    before.assert_unchanged(&Snapshot::take(node));
}
