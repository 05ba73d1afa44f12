//! From the first release to this one, and back, while transfers run. Each release reads the other's
//! files and kernel state.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use serde_json::{Value, json};

use crate::lab::flows::assert_all_work;
use crate::lab::load::Load;
use crate::lab::node::{Node, Pod};
use crate::lab::not_run::only_nftables;
use crate::lab::plugin::{Call, Ran};
use crate::lab::proof::Proof;
use crate::lab::two_nics::{NICS, NODE, NODE6, POD, POD6, two_nics};

/// A build of the program, on a node. In the first release one program was plugin and tool, so the
/// plugin of this one is given the tool's words, too, as old units and habits do.
struct Release<'a> {
    program: String,
    node: &'a Node,
}

impl<'a> Release<'a> {
    fn this(node: &'a Node) -> Self {
        Self { program: env!("CARGO_BIN_EXE_symroute").into(), node }
    }

    /// The first release: `SYMROUTE_OLD`, or a build from the history.
    fn first(node: &'a Node) -> Self {
        static BUILT: OnceLock<String> = OnceLock::new();
        let build = || {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/first-release.sh");
            let built = Command::new(script).output().expect("run scripts/first-release.sh");
            let said = String::from_utf8_lossy(&built.stderr);
            assert!(built.status.success(), "the first release: {said}");
            String::from_utf8_lossy(&built.stdout).trim().to_owned()
        };
        let program = env::var("SYMROUTE_OLD").unwrap_or_else(|_| BUILT.get_or_init(build).clone());
        assert!(Path::new(&program).exists(), "SYMROUTE_OLD={program}: no such program");
        Self { program, node }
    }

    fn call(&self, call: &Call) -> Ran {
        let ran = self.node.call_program(&[&self.program], call);
        ran.assert_success(&self.program);
        ran
    }

    fn tool(&self, arguments: &[&str]) -> String {
        self.call(&Call::tool(arguments)).stdout
    }

    fn cni(&self, verb: &str, pod: &Pod) {
        self.call(&self.node.call_of(verb, &settings(), pod));
    }

    fn up(&self) {
        let file = self.node.dir.join("network.json");
        fs::write(&file, self.node.network(&settings(), None)).expect("write the configuration");
        self.tool(&["up", "--config", file.to_str().expect("UTF-8")]);
    }

    /// Asserts that it reports this number of pods, and no fault but the other release's rules.
    fn assert_sees(&self, pods: usize) -> Vec<Value> {
        let status = self.node.call_program(&[&self.program], &Call::tool(&["status", "--json"]));
        let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
        // The first release lists them.
        let listed = status["pods"].as_array().map(Vec::len);
        let count = status["attachments"].as_u64().and_then(|count| count.try_into().ok());
        assert_eq!(listed.or(count), Some(pods), "{status:#}");
        assert_eq!(status["off"], json!([]), "{status:#}");
        status["pending"].as_array().expect("an array").clone()
    }

    /// Asserts that it reports this number of pods, and no fault.
    fn assert_well(&self, pods: usize) {
        assert_eq!(self.assert_sees(pods), Vec::<Value>::new());
    }
}

fn settings() -> Value {
    json!({"uplinks": NICS})
}

#[test]
fn transfers_go_on_through_upgrade_and_rollback() {
    if !only_nftables("the first release knows nothing else") {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    let proof = Proof::begin(node, &layout.router);
    let (old, new) = (Release::first(node), Release::this(node));
    old.up();
    old.cni("ADD", &layout.pods[0]);
    let to_pods = [POD[0], POD6[0], POD[1], POD6[1]].map(|to| Load::kept(&layout.client, to, 8080));
    let to_node = [NODE[1], NODE6[1]].map(|to| Load::kept(&layout.client, to, 10250));
    let go_on = |after: &str| {
        for transfer in to_pods.iter().chain(&to_node) {
            transfer.assert_goes_on(after);
        }
    };
    go_on("up of the first release");
    new.assert_sees(1);
    // As "install.sh upgrade" does it: the settings are those in force.
    new.tool(&["up"]);
    new.assert_well(1);
    go_on("the upgrade");
    new.cni("CHECK", &layout.pods[0]);
    new.cni("ADD", &layout.pods[1]);
    go_on("ADD after the upgrade");
    old.assert_sees(2);
    old.tool(&["up"]);
    old.assert_well(2);
    go_on("the rollback");
    old.cni("CHECK", &layout.pods[1]);
    old.cni("DEL", &layout.pods[1]);
    old.cni("ADD", &layout.pods[1]);
    go_on("DEL and ADD after the rollback");
    new.up();
    new.assert_well(2);
    go_on("the second upgrade");
    drop(to_node);
    proof.assert_nothing_dropped();
    for pod in &layout.pods {
        new.cni("DEL", pod);
    }
    new.tool(&["down"]);
    for transfer in &to_pods {
        transfer.assert_goes_on("down");
    }
    proof.assert_as_before();
}

/// A rollback, and the last DEL by the old release. It leaves a file in `/run` that it does not know,
/// and an ip rule that no packet matches. The next upgrade removes both.
#[test]
fn the_first_release_takes_this_ones_state_away() {
    if !only_nftables("the first release knows nothing else") {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    let proof = Proof::begin(node, &layout.router);
    let (old, new) = (Release::first(node), Release::this(node));
    new.up();
    new.cni("ADD", &layout.pods[0]);
    old.cni("DEL", &layout.pods[0]);
    old.tool(&["down"]);
    fs::remove_file(node.dir.join("run/marking")).expect("remove the file of this release");
    for family in ["-4", "-6"] {
        let rules = node.ns.exec(&["ip", family, "rule"], "");
        let ours = rules.lines().filter(|line| line.contains("fwmark")).collect::<Vec<_>>();
        assert_eq!(ours, ["399:\tfrom all fwmark 0x1000 lookup main"], "{rules}");
    }
    new.up();
    new.tool(&["down"]);
    proof.assert_as_before();
}

/// The first release kept folders beside the attachments. This release reads and removes them.
#[test]
fn folders_of_the_first_release_go() {
    if !only_nftables("the first release knows nothing else") {
        return;
    }
    for force in [false, true] {
        let layout = two_nics();
        let node = &layout.node;
        let proof = Proof::begin(node, &layout.router);
        let (old, new) = (Release::first(node), Release::this(node));
        old.up();
        for pod in &layout.pods {
            old.cni("ADD", pod);
        }
        old.cni("DEL", &layout.pods[1]);
        for folder in ["pods", "owners", "gone"] {
            assert!(node.dir.join("run").join(folder).is_dir(), "it has made {folder}");
        }
        new.tool(&["up"]);
        new.assert_well(1);
        if force {
            new.tool(&["down", "--force"]);
        } else {
            new.cni("DEL", &layout.pods[0]);
            new.tool(&["down"]);
        }
        proof.assert_as_before();
    }
}

/// Writes an attachment as earlier releases did, in their folders.
fn files_of_earlier_releases(node: &Node, pod: &Pod, adopted: bool) {
    let result: Value = serde_json::from_str(&pod.prev_result).expect("a result");
    let all = result["ips"].as_array().expect("addresses").iter();
    let addresses: Vec<&str> = all
        .map(|ip| ip["address"].as_str().expect("an address"))
        .map(|address| address.split('/').next().expect("an address"))
        .collect();
    let name = format!("{}-eth0-{:016x}", pod.id, fnv(&format!("lab\0{}\0eth0", pod.id)));
    let mut attachment = json!({
        "version": 1, "network": "lab", "container": pod.id, "ifname": "eth0",
        "addresses": addresses, "hairpin": false,
    });
    if adopted {
        attachment["adopted"] = json!(true);
    }
    let folder = |name: &str| {
        let path = node.dir.join("run").join(name);
        fs::create_dir_all(&path).expect("make a folder");
        path
    };
    fs::write(folder("pods").join(&name), attachment.to_string()).expect("write it");
    // A removal that was interrupted, and a temporary link of a killed call.
    let gone = attachment.to_string().replace(&pod.id, "ended");
    fs::write(folder("gone").join("ended-eth0-0123456789abcdef"), gone).expect("write it");
    for address in addresses {
        let owned = folder("owners").join(address);
        std::os::unix::fs::symlink(&name, &owned).expect("make a link");
        let taken = owned.with_file_name(format!(".{name}-{address}"));
        std::os::unix::fs::symlink(&name, taken).expect("make a link");
    }
}

/// The hash in the name of an attachment's file.
fn fnv(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// An upgrade from a release with the iptables backends, and with pods that its agent adopted from the
/// runtime's cache.
#[test]
fn files_of_earlier_releases_are_understood_and_go() {
    for (adopted, force) in [(false, false), (false, true), (true, true)] {
        let mut layout = two_nics();
        let pod = layout.pod_behind_eth1(1);
        let node = &layout.node;
        let proof = Proof::begin(node, &layout.router);
        let new = Release::this(node);
        files_of_earlier_releases(node, &pod, adopted);
        new.up();
        let pods = node.symroute(&["status"]);
        assert_eq!(pods.code, Some(0), "{}", pods.stdout);
        assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
        if !adopted {
            new.cni("CHECK", &pod);
        }
        if force {
            new.tool(&["down", "--force"]);
        } else {
            new.assert_well(1);
            new.cni("DEL", &pod);
            new.tool(&["down"]);
        }
        proof.assert_as_before();
    }
}

/// An adopted pod has no DEL of symroute: it must not hold the node state for ever.
#[test]
fn an_adopted_pod_of_an_earlier_release_holds_nothing() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    let proof = Proof::begin(node, &layout.router);
    let new = Release::this(node);
    files_of_earlier_releases(node, &pod, true);
    new.up();
    new.cni("ADD", &layout.pods[0]);
    new.cni("DEL", &layout.pods[0]);
    new.tool(&["down"]);
    proof.assert_as_before();
}
