//! Field report 003: flannel with its UDP backend; a node calls a Service whose pod is elsewhere.
//!
//! ```text
//!  node A, 10.10.70.155                    node B, 10.10.67.156
//!  calls the Service 10.12.164.251:5432    strict rp_filter
//!  +------------------+                    +----------------------+
//!  |   flannel0 (TUN) |                    | flannel0 (TUN)       |   17.0.0.0/16 dev flannel0
//!  |       eth0       |                    |   eth0     docker0   |   17.0.51.0/24 dev docker0
//!  +--------+---------+                    +-----+---------+------+
//!           |                                    |        pod 17.0.51.13
//!  +--------+------------------------------------+--------+
//!  |          router, carries flannel's UDP               |
//!  +------------------------------------------------------+
//! ```
//!
//! Node A's DNAT makes the destination 17.0.51.13, but the source stays eth0's 10.10.70.155. Node
//! B receives that on flannel0, its route back is eth0, and strict `rp_filter` drops it.

use std::thread;

use serde_json::{Value, json};

use crate::agent::plugin_object;
use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::node::{Node, Pod};
use crate::lab::proof::Proof;
use crate::lab::router::Router;
use crate::lab::traffic::{Proto, Server};
use crate::lab::tun::Tunnel;

struct Layout {
    router: Router,
    a: Node,
    b: Node,
    pod: Pod,
    _servers: Vec<Server>,
    _tunnel: [Tunnel; 2],
}

fn layout() -> Layout {
    let (mut router, a, b) = (Router::new(), Node::new("node-a"), Node::new("node-b"));
    for (port, node, address) in [("node-a", &a, "10.10.70.155"), ("node-b", &b, "10.10.67.156")] {
        router.plug(port, &node.ns, "eth0", &["10.10.0.1"]);
        node.ns.ip(&format!(
            "addr add {address}/16 dev eth0
             route add default via 10.10.0.1 dev eth0"
        ));
        router.assign(port, address);
    }
    router.check_sources(&["node-a", "node-b"]);
    let tunnel = [
        Tunnel::open(&a.ns, "flannel0", "10.10.70.155:8285", "10.10.67.156:8285"),
        Tunnel::open(&b.ns, "flannel0", "10.10.67.156:8285", "10.10.70.155:8285"),
    ];
    for (node, address) in [(&a, "17.0.70.0"), (&b, "17.0.51.0")] {
        node.ns.ip(&format!(
            "addr add {address}/32 dev flannel0
             link set flannel0 up mtu 1472
             route add 17.0.0.0/16 dev flannel0"
        ));
    }
    let pod = b.pod("pod", &["17.0.51.13"]);
    b.ns.ip("link add docker0 type bridge
         link set docker0 up
         addr add 17.0.51.1/24 dev docker0
         route del 17.0.51.13 dev enipod
         link set enipod master docker0");
    kubeproxy::install(&a.ns, Flavour::Iptables, &[Proto::Tcp, Proto::Udp].map(service));
    let servers = [Proto::Tcp, Proto::Udp].map(|proto| Server::start(&pod.ns, proto, 5432, "pod"));
    Layout { router, a, b, pod, _servers: servers.into(), _tunnel: tunnel }
}

fn service(proto: Proto) -> Service {
    Service {
        frontend: Frontend::Address("10.12.164.251:5432".parse().expect("an address and port")),
        proto,
        backend: "17.0.51.13:5432".parse().expect("an address and port"),
        // The node's own traffic is not masqueraded. This causes the fault of the report.
        policy: Policy::Local,
    }
}

fn flows(a: &Node) -> [Flow<'_>; 3] {
    let flow = |name, proto, to, answer| Flow::new(name, &a.ns, proto, to, answer);
    [
        flow("node to Service over TCP", Proto::Tcp, "10.12.164.251:5432", "pod 10.10.70.155"),
        flow("node to Service over UDP", Proto::Udp, "10.12.164.251:5432", "pod 10.10.70.155"),
        flow("node to pod", Proto::Tcp, "17.0.51.13:5432", "pod 17.0.70.0"),
    ]
}

#[test]
fn service_reaches_the_pod_behind_flannel0() {
    let today = layout();
    assert_only_these_fail(
        &flows(&today.a),
        &["node to Service over TCP", "node to Service over UDP"],
    );
    assert!(today.b.rp_filter_drops() >= 2, "strict rp_filter drops both flows");
    let settings = json!({"uplinks": ["eth0", "flannel0"]});
    // The node itself by its Service, after the DNAT of its own node; and by its address in flannel's network.
    let requests =
        [("flannel0", "10.10.70.155", "17.0.51.13"), ("flannel0", "17.0.70.0", "17.0.51.13")];
    today.b.assert_explained("report_003", &settings, &requests);
    let requests =
        [("", "10.10.70.155", "10.12.164.251:5432"), ("", "17.0.70.0", "17.0.51.13:5432")];
    today.a.assert_explained("report_003_caller", &settings, &requests);
    drop(today);
    works_with(&settings);
}

/// The source's own way back, eth0, is then no uplink; it leads outside all the same.
#[test]
fn flannel0_may_be_the_only_uplink() {
    works_with(&json!({"uplinks": ["flannel0"]}));
}

fn works_with(settings: &Value) {
    let Layout { router, a, b, pod, .. } = &layout();
    let proof = Proof::begin(b, router);
    b.add(settings, pod);
    // The router sees UDP only; what flannel0 carries is seen on node B itself.
    let capture = Capture::start(&b.ns);
    assert_all_work(&flows(a));
    let symmetric = assert_replies_symmetric(&capture.stop(), &["eth0", "flannel0"], false);
    assert_eq!(symmetric, 3 + 1, "three flows on flannel0, and flannel's own on eth0");
    proof.assert_nothing_dropped();
    b.del(settings, pod);
    proof.assert_as_before();
}

/// `explain` predicts the result of each flow, without the plugin and with it.
#[test]
fn verdicts() {
    let Layout { a, b, pod, .. } = &layout();
    let settings = json!({"uplinks": ["eth0", "flannel0"]});
    let broken = ["node to Service over TCP", "node to Service over UDP"];
    b.assert_verdicts("report 003", &settings, &flows(a), &broken);
    b.add(&settings, pod);
    b.assert_verdicts("report 003, with symroute", &settings, &flows(a), &[]);
    b.del(&settings, pod);
}

/// The settings do not name flannel0, so it is no uplink. `doctor` reports what the filter drops there,
/// and the interface to name.
#[test]
fn doctor_names_the_tunnel() {
    let Layout { a, b, .. } = &layout();
    let config = plugin_object(b, &json!({"uplinks": ["eth0"]}));
    let lost = ["node to Service over TCP", "node to Service over UDP"];
    let report = thread::scope(|scope| {
        let asking = scope.spawn(|| assert_only_these_fail(&flows(a), &lost));
        let ran = b.symroute(&["doctor", "--for", "2s", "--json", "--config", &config]);
        asking.join().expect("no panic");
        serde_json::from_str::<Value>(&ran.stdout).expect(&ran.stderr)
    });
    let findings = report["findings"].as_array().expect("findings");
    let ids: Vec<_> = findings.iter().map(|one| one["id"].as_str().expect("text")).collect();
    assert_eq!(ids, ["rp-filter-drops", "tunnel-drops", "not-in-force"], "{report:#}");
    let tunnel = findings[1].to_string();
    for words in ["10.10.70.155 by flannel0", "[\\\"eth0\\\", \\\"flannel0\\\"]"] {
        assert!(tunnel.contains(words), "{words:?} in {report:#}");
    }
    b.up(&json!({"uplinks": ["eth0", "flannel0"]}));
    assert_all_work(&flows(a));
    let text = b.symroute(&["doctor", "--for", "0s"]).stdout;
    assert!(!text.contains("drops]"), "{text}");
    b.down();
}
