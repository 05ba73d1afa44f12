//! What other programs have left on the node.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{NICS, found, json, report};
use crate::agent::plugin_object;
use crate::lab::backend::Backend;
use crate::lab::node::Node;
use crate::lab::plugin::Call;
use crate::lab::strace::Blow;
use crate::lab::two_nics::two_nics;

#[test]
fn src_valid_mark_of_all_interfaces() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    node.ns.sysctl("ipv4/conf/all/src_valid_mark", "1");
    assert_eq!(found(node, &[]), ["note src-valid-mark", "note no-agent"]);
    node.ns.sysctl("ipv4/conf/all/src_valid_mark", "0");
    assert_eq!(found(node, &[]), ["note no-agent"]);
    node.down();
}

/// One variant of iptables alone is not a finding, nor are tables without rules.
#[test]
fn rules_of_both_kinds_of_iptables() {
    let layout = two_nics();
    let node = &layout.node;
    node.legacy.store(true, std::sync::atomic::Ordering::Relaxed);
    let add = |program: &str| {
        node.ns.exec(&[program, "-t", "filter", "-A", "INPUT", "-p", "udp", "--dport", "9"], "");
    };
    let before = found(node, &[]);
    add("iptables-nft");
    node.ns.exec(&["iptables-legacy", "-t", "filter", "-S"], "");
    assert_eq!(found(node, &[]), before, "table filter of iptables-legacy is empty");
    add("iptables-legacy");
    let both = found(node, &[]);
    assert!(both.contains(&"note legacy-rules".to_owned()), "{both:?}");
    assert_eq!(both.len(), before.len() + 1, "{both:?}");
    let text = report(node, &[]).to_string();
    assert!(text.contains("iptables-legacy: table filter (IPv4), 1 rules"), "{text}");
    node.ns.exec(&["iptables-nft", "-t", "filter", "-F", "INPUT"], "");
    assert_eq!(found(node, &[]), before, "with {}", Backend::of_run().name());
}

/// symroute's entry of a conflist, with the settings that are in force in these tests.
fn entry(node: &Node) -> Value {
    let network = node.network(&json!({ "uplinks": NICS }), None);
    let mut entry: Value = serde_json::from_str(&network).expect("an object");
    for key in ["name", "cniVersion"] {
        entry.as_object_mut().expect("an object").remove(key);
    }
    entry
}

/// Makes a folder for conflists.
fn conflists(node: &Node) -> PathBuf {
    let folder = node.dir.join("net.d");
    fs::create_dir(&folder).expect("make the directory");
    folder
}

fn write_conflist(folder: &Path, plugins: &[Value]) {
    let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": plugins});
    fs::write(folder.join("10-lab.conflist"), list.to_string()).expect("write the conflist");
}

/// A runtime calls the plugins in the order of the list.
#[test]
fn an_entry_in_the_wrong_place() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let folder = conflists(node);
    let path = folder.to_str().expect("UTF-8");
    let network = entry(node);
    let finds = |kinds: &[&str]| {
        let plugin = |kind: &&str| {
            if *kind == "symroute" { network.clone() } else { json!({ "type": kind }) }
        };
        let plugins: Vec<_> = kinds.iter().map(plugin).collect();
        write_conflist(&folder, &plugins);
        found(node, &["--conf-dir", path])
    };
    assert_eq!(finds(&["ptp"]), ["note no-agent"]);
    assert_eq!(finds(&["ptp", "symroute"]), ["note no-agent"]);
    for wrong in [&["symroute", "ptp"][..], &["ptp", "symroute", "symroute"]] {
        assert_eq!(finds(wrong), ["warning conflist-order", "note no-agent"], "{wrong:?}");
        // Applies the remedy.
        let state = node.dir.join("conflist-state");
        let state = state.to_str().expect("UTF-8");
        let words = ["conflist", "add", "--no-up", "--conf-dir", path, "--state-dir", state];
        node.symroute(&words).assert_success("conflist add");
        assert_eq!(found(node, &["--conf-dir", path]), ["note no-agent"], "{wrong:?}");
    }
    node.down();
}

/// The operator edits the conflist, and no agent follows the change.
#[test]
fn a_conflist_with_other_settings() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let folder = conflists(node);
    let path = folder.to_str().expect("UTF-8");
    let write = |key: &str, value: Value| {
        let mut entry = entry(node);
        entry[key] = value;
        let plugins = [json!({"type": "ptp"}), entry];
        write_conflist(&folder, &plugins);
    };
    write("hairpin", json!(false));
    assert_eq!(found(node, &["--conf-dir", path]), ["note no-agent"], "the default");
    write("hairpin", json!(true));
    let wanted = ["warning conflist-settings", "note no-agent"];
    assert_eq!(found(node, &["--conf-dir", path]), wanted);
    let text = report(node, &["--conf-dir", path]).to_string();
    assert!(text.contains(r#"\"hairpin\" is false, and network \"lab\" asks for true"#), "{text}");
    node.symroute(&["up", "--conf-dir", path]).assert_success("the remedy");
    assert_eq!(found(node, &["--conf-dir", path]), ["note no-agent"]);
    // Each ADD fails with settings that the plugin refuses.
    write("hairpin", json!("yes"));
    let wanted = ["problem conflist-settings", "note no-agent"];
    assert_eq!(found(node, &["--conf-dir", path]), wanted);
    node.down();
}

/// Simulates a kernel without netfilter: strace makes the socket call fail.
#[test]
fn a_kernel_without_netfilter() {
    let node = Node::new("node");
    let config = plugin_object(&node, &json!({ "uplinks": NICS }));
    let call = Call::tool(&["doctor", "--for", "0s", "--json", "--config", &config]);
    let (_, calls) = node.traced(&call);
    let socket = calls.iter().find(|call| call.line.contains("NETLINK_NETFILTER"));
    let ran = node.struck(&call, socket.expect("a socket"), Blow::Error("EPROTONOSUPPORT"));
    assert_eq!(ran.code, Some(4), "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let found: Vec<_> = report["findings"].as_array().expect("findings").iter().collect();
    assert_eq!(found.len(), 1, "{report:#}");
    assert_eq!(found[0]["id"], "kernel-features");
    assert!(found[0]["evidence"][0].as_str().expect("text").contains("netfilter"), "{report:#}");
}
