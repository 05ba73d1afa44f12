//! A pod with two interfaces that no packet passes, for tests of what the plugin creates and
//! leaves.
//!
//! The settings name the backend, because the tests look for its table. A call that does not end
//! fails: the lab kills each program after 60 seconds.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::lab::netns::{Netns, unique};
use crate::lab::node::Node;
use crate::lab::plugin::{Call, Ran};
use crate::lab::snapshot::Snapshot;

pub(super) struct Plain {
    pub(super) ns: Netns,
    pub(super) id: String,
    /// The path of the namespace for the runtime: a link whose target a test can change.
    pub(super) path: PathBuf,
}

impl Plain {
    pub(super) fn new(node: &Node, role: &str) -> Self {
        let ns = Netns::new(role);
        for leg in 0..2 {
            ns.ip(&format!(
                "link add net{leg} type veth peer name far{leg}
                 link set net{leg} addrgenmode none
                 link set far{leg} addrgenmode none
                 link set net{leg} up
                 link set far{leg} up
                 addr add 10.7.{leg}.10/24 dev net{leg}
                 addr add 2001:db8:7:{leg}::10/64 dev net{leg} nodad"
            ));
        }
        ns.ip("route add default via 10.7.0.1 dev net0");
        let path = node.dir.join(format!("{role}-{}", unique()));
        let plain = Self { id: format!("{role}-{}", unique()), path, ns };
        plain.lead_to(&plain.ns.path());
        plain
    }

    /// Changes the target of the runtime's path.
    pub(super) fn lead_to(&self, place: &str) {
        let _ = fs::remove_file(&self.path);
        std::os::unix::fs::symlink(place, &self.path).expect("make the link");
    }

    pub(super) fn settings() -> Value {
        json!({"scope": "pod", "backend": "nftables", "uplinks": ["net*"]})
    }

    /// A call for one interface.
    pub(super) fn call(&self, node: &Node, verb: &str, leg: usize) -> Call {
        self.call_with(node, verb, leg, &Self::settings())
    }

    pub(super) fn call_with(&self, node: &Node, verb: &str, leg: usize, set: &Value) -> Call {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": format!("net{leg}"), "sandbox": self.path}],
            "ips": [{"address": format!("10.7.{leg}.10/24"), "gateway": format!("10.7.{leg}.1"), "interface": 0}]
        });
        let network = node.network(set, Some(&result.to_string()));
        let path = self.path.to_str().expect("UTF-8");
        Call::cni(verb, &network, &self.id, path, &format!("net{leg}"))
    }

    pub(super) fn ran(&self, node: &Node, verb: &str, leg: usize) -> Ran {
        node.call(&self.call(node, verb, leg))
    }

    /// Calls the plugin for both interfaces, one after the other.
    pub(super) fn both(&self, node: &Node, verb: &str) {
        for leg in 0..2 {
            self.ran(node, verb, leg).assert_success(verb);
        }
    }

    pub(super) fn snapshot(&self, node: &Node) -> Snapshot {
        Snapshot::of(&self.ns, node)
    }

    /// Whether symroute's table is in the pod.
    pub(super) fn has_rules(&self) -> bool {
        self.ns.exec(&["nft", "list", "tables"], "").contains("inet symroute")
    }
}

/// A node with such a pod.
pub(super) fn node_and_pod() -> (Node, Plain) {
    let node = Node::new("node");
    let pod = Plain::new(&node, "pod");
    (node, pod)
}

/// symroute's files on this node.
pub(super) fn files(node: &Node) -> Vec<PathBuf> {
    let entries = fs::read_dir(node.dir.join("run")).expect("list the node's /run/symroute");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

pub(super) fn assert_no_files(node: &Node, when: &str) {
    assert_eq!(files(node), Vec::<PathBuf>::new(), "files that are left: {when}");
}

/// Asserts that a call failed with this CNI error code and these words.
pub(super) fn assert_fails(ran: &Ran, code: u64, words: &[&str]) {
    assert!(!ran.success, "the call succeeded: {}", ran.stdout);
    let error: Value = serde_json::from_str(&ran.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", ran.stdout, ran.stderr));
    assert_eq!(error["code"], code, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} in {error}");
    }
}
