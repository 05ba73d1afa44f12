//! What other programs have left on the node.

use std::fs;

use super::{NICS, found, json, report};
use crate::lab::backend::Backend;
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

/// Each kind of iptables alone is no finding, and tables without rules are none either.
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

/// A runtime calls the plugins in the order of the list.
#[test]
fn an_entry_in_the_wrong_place() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let folder = node.dir.join("net.d");
    fs::create_dir(&folder).expect("make the directory");
    let path = folder.to_str().expect("UTF-8");
    let finds = |kinds: &[&str]| {
        let plugins: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
        let list = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": plugins});
        fs::write(folder.join("10-lab.conflist"), list.to_string()).expect("write the conflist");
        found(node, &["--conf-dir", path])
    };
    assert_eq!(finds(&["ptp"]), ["note no-agent"]);
    assert_eq!(finds(&["ptp", "symroute"]), ["note no-agent"]);
    for wrong in [&["symroute", "ptp"][..], &["ptp", "symroute", "symroute"]] {
        assert_eq!(finds(wrong), ["warning conflist-order", "note no-agent"], "{wrong:?}");
        // The remedy.
        let state = node.dir.join("conflist-state");
        let state = state.to_str().expect("UTF-8");
        let words = ["conflist", "add", "--no-up", "--conf-dir", path, "--state-dir", state];
        node.symroute(&words).assert_success("conflist add");
        assert_eq!(found(node, &["--conf-dir", path]), ["note no-agent"], "{wrong:?}");
    }
    node.down();
}
