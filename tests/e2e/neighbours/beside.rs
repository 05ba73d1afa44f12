//! Flows of another program (the neighbour) beside symroute's. What worked before works with the
//! plugin, what the neighbour refuses stays refused, and afterwards the node is as before. Otherwise
//! symroute refuses to work, or names the obstacle.
//!
//! ```text
//!            client 203.0.113.9
//!                    |
//!  +-----------------+-----------------+
//!  |              router               |
//!  +-------+-------------------+-------+
//!        eth0                eth1
//!  +-------+-------------------+-------+
//!  |     node: strict rp_filter        +---- peers, behind interfaces of the neighbour
//!  +--+-----------+-----------+---+----+
//!    pod0        pod1      pod101  cni0, a bridge: pod 10.244.0.5
//! ```

use serde_json::{Value, json};

use crate::agent::plugin_object;
use crate::lab::backend::Backend;
use crate::lab::flows::{BASELINE, Flow, assert_all_work, assert_only_these_fail};
use crate::lab::netns::Netns;
use crate::lab::node::Pod;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server, ask};
use crate::lab::two_nics::{BRIDGED, NICS, NODE, NODE6, POD, TwoNics, two_nics};

/// A node on which another program, the neighbour, has its state.
pub(super) struct Scene {
    pub(super) layout: TwoNics,
    pub(super) attached: Pod,
    pub(super) bridged: Netns,
    pub(super) peers: Vec<Netns>,
    servers: Vec<Server>,
}

/// The neighbour's state on the node, and the flows that have to work there.
pub(super) struct Neighbour {
    pub(super) name: &'static str,
    pub(super) make: fn(&mut Scene),
    /// Flows that the neighbour serves.
    pub(super) own: fn(&Scene) -> Vec<Flow<'_>>,
    /// Flows of the client that the neighbour refuses, as network policies do.
    pub(super) refuses: Option<(Proto, &'static str)>,
    pub(super) settings: fn() -> Value,
}

pub(super) fn both_nics() -> Value {
    json!({"uplinks": NICS})
}

impl Scene {
    pub(super) fn new() -> Self {
        let mut layout = two_nics();
        let attached = layout.pod_behind_eth1(1);
        let bridged = layout.pod_at_bridge();
        let servers = [Proto::Tcp, Proto::Udp].map(|p| Server::start(&bridged, p, 8080, "bridged"));
        Self { layout, attached, bridged, peers: Vec::new(), servers: servers.into() }
    }

    /// A host with this address behind a tunnel of the node. The neighbour makes the node's routes. The
    /// host answers on port 8080 as "peer".
    pub(super) fn peer(&mut self, tunnel: &str, address: &str) {
        let (peer, node) = (Netns::new("peer"), &self.layout.node.ns);
        node.ip(&format!("link add below type veth peer name below netns {}", peer.name()));
        let ends = [("198.18.0.1", "02:05:00:00:00:01"), ("198.18.0.2", "02:05:00:00:00:02")];
        for (ns, [(local, mac), (remote, _)]) in [(node, ends), (&peer, [ends[1], ends[0]])] {
            ns.ip(&format!(
                "link set below up
                 addr add {local}/30 dev below
                 link add {tunnel} address {mac} type vxlan id 7 local {local} remote {remote} dstport 4789 dev below
                 link set {tunnel} up"
            ));
        }
        peer.ip(&format!(
            "addr add {address}/32 dev {tunnel}
             neigh add 169.254.1.1 dev {tunnel} lladdr {} nud permanent
             route add default via 169.254.1.1 dev {tunnel} onlink",
            ends[0].1
        ));
        node.ip(&format!("neigh add {address} dev {tunnel} lladdr {} nud permanent", ends[1].1));
        for proto in [Proto::Tcp, Proto::Udp] {
            self.servers.push(Server::start(&peer, proto, 8080, "peer"));
        }
        self.peers.push(peer);
    }

    pub(super) fn ip(&self, batch: &str) {
        self.layout.node.ns.ip(batch);
    }

    pub(super) fn nft(&self, ruleset: &str) {
        self.layout.node.ns.nft(ruleset);
    }

    /// Rules of iptables, in the words of `iptables-save`, in the run's variant.
    pub(super) fn iptables(&self, rules: &str) {
        let restore = Backend::of_run().tool(false, "-restore");
        self.layout.node.ns.exec(&[&restore, "--noflush"], &(rules.to_owned() + "COMMIT\n"));
    }

    /// Flows that fail without symroute or use the wrong NIC, and flows that work already.
    fn ours(&self) -> Vec<Flow<'_>> {
        let client = &self.layout.client;
        let to_pod = |number: usize, answer| {
            let to = format!("{}:8080", POD[number]);
            Flow::new(&format!("client to pod{number}"), client, Proto::Tcp, &to, answer)
        };
        let host6 = format!("[{}]:10250", NODE6[1]);
        let host0 = format!("{}:10250", NODE[0]);
        vec![
            self.layout.flow_to_host(),
            Flow::new("host on eth1 over IPv6", client, Proto::Tcp, &host6, "host 2001:db8:9::9"),
            self.layout.flow_to_pod(1, "pod101 203.0.113.9"),
            Flow::new("host on eth0", client, Proto::Tcp, &host0, "host 203.0.113.9"),
            to_pod(0, "pod0 203.0.113.9"),
            to_pod(1, "pod1 203.0.113.9"),
        ]
    }

    fn pods(&self) -> [&Pod; 3] {
        [&self.layout.pods[0], &self.layout.pods[1], &self.attached]
    }
}

/// Flows from the bridge's pod, which the neighbour masquerades.
pub(super) fn bridged_to_client<'a>(scene: &'a Scene, answer: &'a str) -> Flow<'a> {
    let to = "203.0.113.9:8080";
    Flow::new(&format!("{} to client", BRIDGED[0]), &scene.bridged, Proto::Tcp, to, answer)
}

/// Shows by packets that symroute and the neighbour both do their work.
pub(super) fn assert_both_work(neighbour: &Neighbour) {
    let (scene, before) = add_symroute(neighbour);
    assert_all_work(&scene.ours());
    end(neighbour, &scene, &before);
    println!("neighbour {}: shown by packets", neighbour.name);
}

/// Shows that `doctor` names the neighbour's part that breaks these flows of symroute. `words`: part of
/// the finding.
pub(super) fn assert_found_by_name(neighbour: &Neighbour, broken: &[&str], words: &[&str]) {
    let (scene, before) = add_symroute(neighbour);
    assert_only_these_fail(&scene.ours(), broken);
    assert_doctor_says(neighbour, &scene, words);
    end(neighbour, &scene, &before);
    println!("neighbour {}: found by name", neighbour.name);
}

/// Like [`assert_found_by_name`], where `explain` does not understand the neighbour's rule.
pub(super) fn assert_found_by_doctor(neighbour: &Neighbour, broken: &str, words: &[&str]) {
    let (scene, before) = add_symroute(neighbour);
    let (lost, ours): (Vec<_>, Vec<_>) =
        scene.ours().into_iter().partition(|flow| flow.name == broken);
    assert_eq!(lost.len(), 1, "there is a flow {broken:?}");
    assert_all_work(&ours);
    assert_doctor_says(neighbour, &scene, words);
    end(neighbour, &scene, &before);
    println!("neighbour {}: found by name", neighbour.name);
}

fn assert_doctor_says(neighbour: &Neighbour, scene: &Scene, words: &[&str]) {
    let node = &scene.layout.node;
    let config = plugin_object(node, &(neighbour.settings)());
    let ran = node.symroute(&["doctor", "--for", "0s", "--config", &config]);
    assert_eq!(ran.code, Some(4), "{}", ran.stdout);
    for word in words {
        assert!(ran.stdout.contains(word), "{word:?} in {}", ran.stdout);
    }
}

/// Adds symroute to the node. Returns a snapshot from before; the neighbour's flows go on.
fn add_symroute(neighbour: &Neighbour) -> (Scene, Snapshot) {
    let scene = begin(neighbour);
    let before = Snapshot::take(&scene.layout.node);
    let settings = (neighbour.settings)();
    for pod in scene.pods() {
        scene.layout.node.add(&settings, pod);
    }
    assert_own_flows_work(neighbour, &scene);
    (scene, before)
}

/// Asserts that the neighbour's flows work, and that those it refuses do not.
fn assert_own_flows_work(neighbour: &Neighbour, scene: &Scene) {
    assert_all_work(&(neighbour.own)(scene));
    if let Some((proto, to)) = neighbour.refuses {
        let to = to.parse().expect("an address and port");
        let answer = ask(&scene.layout.client, proto, to, BASELINE);
        answer.expect_err("the neighbour refuses it");
    }
}

/// Asserts, with the neighbour alone, that its flows work and the host does not answer by eth1.
fn begin(neighbour: &Neighbour) -> Scene {
    let mut scene = Scene::new();
    (neighbour.make)(&mut scene);
    assert_own_flows_work(neighbour, &scene);
    let host = scene.layout.flow_to_host();
    assert_only_these_fail(&[host], &["host on eth1"]);
    // Half-open connections would go on sending.
    scene.layout.node.ns.exec(&["conntrack", "-F"], "");
    scene
}

/// Removes symroute, and asserts that the neighbour's flows work.
fn end(neighbour: &Neighbour, scene: &Scene, before: &Snapshot) {
    let node = &scene.layout.node;
    let settings = (neighbour.settings)();
    for pod in scene.pods() {
        node.del(&settings, pod);
    }
    before.assert_unchanged(&Snapshot::take(node));
    assert_own_flows_work(neighbour, scene);
}
