//! Pods that were there before us, from the runtime's cache of results.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::agent::{answers, conflist, status};
use crate::lab::agent::{Agent, until};
use crate::lab::node::{Node, Pod};
use crate::lab::two_nics::{NICS, TwoNics, two_nics};

/// Base64 of plain text, as Go writes a `[]byte` into JSON.
pub(super) fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |bytes: &[u8]| {
        let byte = |at: usize| u32::from(bytes.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        (0..4usize)
            .map(|at| {
                if at <= bytes.len() {
                    char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize])
                } else {
                    '='
                }
            })
            .collect::<String>()
    };
    text.as_bytes().chunks(3).map(group).collect()
}

/// What libcni writes after an ADD of the conflist.
pub(super) fn entry(id: &str, conflist: &str, result: &str) -> String {
    let result: Value = serde_json::from_str(result).expect("a result");
    json!({
        "kind": "cniCacheV1", "containerId": id, "config": base64(conflist), "ifName": "eth0",
        "networkName": "lab", "cniArgs": [["IgnoreUnknown", "1"]], "result": result,
    })
    .to_string()
}

struct Cluster {
    layout: TwoNics,
    cache: PathBuf,
    conf_dir: PathBuf,
    pod: Pod,
}

/// A pod that strict `rp_filter` keeps from being reached, started before we came.
fn cluster() -> Cluster {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let (cache, conf_dir) = (layout.node.dir.join("cache"), layout.node.dir.join("net.d"));
    fs::create_dir(&cache).expect("make the cache");
    fs::create_dir(&conf_dir).expect("make the folder");
    let ours = conflist(&layout.node, Some(&json!({"uplinks": NICS})));
    fs::write(conf_dir.join("10-lab.conflist"), ours).expect("write the conflist");
    Cluster { layout, cache, conf_dir, pod }
}

impl Cluster {
    fn file(&self) -> PathBuf {
        self.cache.join(format!("lab-{}-eth0", self.pod.id))
    }

    fn reached(&self) -> bool {
        answers(&self.layout, &TwoNics::address_behind_eth1(1), 8080)
    }
}

fn agent<'a>(node: &'a Node, conf_dir: &Path) -> Agent<'a> {
    Agent::ready(node, &["--conf-dir", conf_dir.to_str().expect("UTF-8")])
}

fn pods(node: &Node) -> usize {
    status(node)["pods"].as_array().expect("a list").len()
}

#[test]
fn a_pod_of_before_is_served_until_its_entry_goes() {
    let cluster = cluster();
    let node = &cluster.layout.node;
    let before = entry(&cluster.pod.id, &conflist(node, None), &cluster.pod.prev_result);
    fs::write(cluster.file(), &before).expect("write the entry");
    assert!(!cluster.reached(), "not without us");
    let running = agent(node, &cluster.conf_dir);
    until("the pod is served", || cluster.reached());
    assert_eq!((pods(node), running.metric("symroute_pods_adopted")), (1, 1));
    fs::remove_file(cluster.file()).expect("remove the entry");
    until("it is taken out", || pods(node) == 0);
    fs::write(cluster.file(), &before).expect("write the entry");
    until("it is served again", || cluster.reached());
    // It ends while no agent runs.
    drop(running);
    fs::remove_file(cluster.file()).expect("remove the entry");
    let _running = agent(node, &cluster.conf_dir);
    until("it is taken out by the first look", || pods(node) == 0);
}

#[test]
fn what_is_none_of_ours_is_left_alone() {
    let cluster = cluster();
    let node = &cluster.layout.node;
    let ours = fs::read_to_string(cluster.conf_dir.join("10-lab.conflist")).expect("the conflist");
    let primary = conflist(node, None);
    let result = &cluster.pod.prev_result;
    let write = |name: &str, text: &str| fs::write(cluster.cache.join(name), text).expect("write");
    write("lab-ours-eth0", &entry("ours", &ours, result));
    write("other-a-eth0", &entry("a", &primary, result).replace("\"lab\"", "\"other\""));
    write("lab-b-eth0", &entry("c", &primary, result));
    write("lab-d-eth0", "");
    write("lab-e-eth0", &entry("e", &primary, "{\"cniVersion\": \"1.0.0\"}"));
    write("lab-f-eth0", &entry("f", &primary, result).replace("/run/netns/", "/run/netns/no-"));
    let whole = entry(&cluster.pod.id, &primary, result);
    fs::write(cluster.file(), &whole[..whole.len() / 2]).expect("write half an entry");
    let running = agent(node, &cluster.conf_dir);
    assert_eq!(pods(node), 0);
    fs::write(cluster.file(), &whole).expect("write the other half");
    until("the whole entry is seen", || pods(node) == 1);
    assert!(cluster.reached());
    assert_eq!(running.metric("symroute_adoptions_total"), 1);
    // An ADD and a DEL that name us are none of the agent's concern.
    let settings = json!({"uplinks": NICS});
    node.add(&settings, &cluster.layout.pods[0]);
    assert_eq!(pods(node), 2);
    node.del(&settings, &cluster.layout.pods[0]);
    assert_eq!(pods(node), 1);
}

/// The agent was killed when it had written the pod down, but not yet as the owner of its address.
#[test]
fn a_pod_that_was_half_adopted_is_safe_from_a_late_del() {
    let cluster = cluster();
    let node = &cluster.layout.node;
    let network = node.network(&json!({"uplinks": NICS}), Some(&cluster.pod.prev_result));
    let of_earlier = |verb| node.cni(verb, &network, "earlier", &cluster.pod.ns.path(), "eth0");
    of_earlier("ADD").assert_success("ADD of a pod that had the address before");
    let before = entry(&cluster.pod.id, &conflist(node, None), &cluster.pod.prev_result);
    fs::write(cluster.file(), &before).expect("write the entry");
    drop(agent(node, &cluster.conf_dir));
    fs::remove_dir_all(node.dir.join("run/owners")).expect("forget the owners");
    let _running = agent(node, &cluster.conf_dir);
    of_earlier("DEL").assert_success("the late DEL");
    assert!(cluster.reached());
}
