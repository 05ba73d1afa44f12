//! What one call costs as a whole process, beside the peers.

use std::fs;

use crate::lab::{Lab, Plugin, noop};
use crate::stats::{Dice, Measured};

/// A program on a node of its own, and the calls it gets in each round.
struct Candidate {
    label: &'static str,
    lab: Lab,
    plugin: Plugin,
    verbs: &'static [&'static str],
}

/// `peers` holds Debian's plugins.
pub(crate) fn measure(rounds: u32, peers: &str) -> Vec<Measured> {
    let mut all = vec![Candidate {
        label: "static no-op",
        lab: Lab::new("noop", 1),
        plugin: noop(),
        verbs: &["ADD"],
    }];
    let lab = Lab::new("own", 1);
    let plugin = lab.settings("1.1.0", "");
    // The last pod takes the node's state with it: this one stays.
    plugin.call(&lab, "ADD", 0);
    let verbs = &["VERSION", "STATUS", "ADD", "CHECK", "DEL"];
    all.push(Candidate { label: "symroute", lab, plugin, verbs });
    let ports = "\"type\":\"portmap\",\"capabilities\":{\"portMappings\":true},\"runtimeConfig\":\
                 {\"portMappings\":[{\"hostPort\":8080,\"containerPort\":80,\"protocol\":\"tcp\"}]}";
    let peers_settings = [
        ("tuning, empty configuration", "tuning", "\"type\":\"tuning\"", ""),
        ("sbr", "sbr", "\"type\":\"sbr\"", ""),
        ("firewall, iptables-nft", "firewall", "\"type\":\"firewall\"", "nft"),
        ("firewall, iptables-legacy", "firewall", "\"type\":\"firewall\"", "legacy"),
        ("portmap, iptables-nft", "portmap", ports, "nft"),
        ("portmap, iptables-legacy", "portmap", ports, "legacy"),
    ];
    for (label, name, settings, variant) in peers_settings {
        let plugin = Plugin {
            program: format!("{peers}/{name}"),
            version: "1.0.0".into(),
            settings: settings.into(),
            path: (!variant.is_empty()).then(|| tools_of(variant)),
        };
        let lab = Lab::new(name, 1);
        if variant == "legacy" && !lab.node.can("iptables-legacy", &["-S"]) {
            crate::say(&format!("left out: {label}: this kernel has no iptables-legacy"));
            continue;
        }
        all.push(Candidate { label, lab, plugin, verbs: &["ADD", "DEL"] });
    }
    interleave(&all, rounds)
}

fn interleave(all: &[Candidate], rounds: u32) -> Vec<Measured> {
    let mut samples: Vec<Vec<Vec<f64>>> =
        all.iter().map(|one| vec![Vec::new(); one.verbs.len()]).collect();
    let mut dice = Dice::new();
    for round in 0..rounds {
        crate::progress("calls", round, rounds);
        for at in dice.order(all.len()) {
            let Candidate { label, lab, plugin, verbs } = &all[at];
            if *label == "sbr" {
                // It has taken the pod's routes away.
                lab.pod.ip("link set eth0 down\nlink set eth0 up\n\
                            route replace default via 10.99.0.1\n");
            }
            for (n, verb) in verbs.iter().enumerate() {
                let took = plugin.call(lab, verb, 1 + round);
                // The first calls fill caches.
                if round >= rounds / 20 {
                    samples[at][n].push(took);
                }
            }
        }
    }
    let mut measured = Vec::new();
    for (candidate, samples) in all.iter().zip(samples) {
        for (verb, samples) in candidate.verbs.iter().zip(samples) {
            measured.push(Measured::of("calls", candidate.label, verb, "µs", samples));
        }
    }
    measured
}

/// A PATH where `iptables` is of one variant, `nft` or `legacy`.
fn tools_of(variant: &str) -> String {
    let directory = std::env::temp_dir().join(format!("symbench{}-{variant}", std::process::id()));
    fs::create_dir_all(&directory).expect("make a directory");
    for tool in ["iptables", "ip6tables"] {
        for job in ["", "-save", "-restore"] {
            let link = directory.join(format!("{tool}{job}"));
            let program = format!("/usr/sbin/xtables-{variant}-multi");
            let _ = std::os::unix::fs::symlink(program, link);
        }
    }
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", directory.display())
}

/// Takes the directories of [`tools_of`] away.
pub(crate) fn clean_up() {
    for variant in ["nft", "legacy"] {
        let name = format!("symbench{}-{variant}", std::process::id());
        let _ = fs::remove_dir_all(std::env::temp_dir().join(name));
    }
}
