//! Times one call as a whole process, for symroute and other plugins.

use std::fs;

use crate::fair::Site;
use crate::lab::{Lab, Plugin, Release, noop};
use crate::stats::{Dice, Measured};

/// One call of a program, on a node of its own.
struct Candidate {
    label: &'static str,
    verb: &'static str,
    site: Site,
    /// Calls in a round.
    times: u32,
    /// The candidate takes part in each `every`th round.
    every: u32,
}

/// `every` of the other plugins. Their calls take up to a tenth of a second, so fewer samples do.
const PEERS_EVERY: u32 = 8;
/// Restores the pod's routes, which the plugin sbr removes.
const ROUTES: &str = "link set eth0 down\nlink set eth0 up\nroute replace default via 10.99.0.1\n";

/// Measures all candidates. `peers` is the directory with copies of Debian's plugins.
pub(crate) fn measure(rounds: u32, peers: &str) -> Vec<Measured> {
    // More samples than the others, because every ratio is to the no-op.
    let nothing = Site::new(Lab::new("noop", 1), noop(), "");
    let mut all =
        vec![Candidate { label: "static no-op", verb: "ADD", site: nothing, times: 4, every: 1 }];
    for release in Release::all() {
        for (verb, times) in [("VERSION", 1), ("STATUS", 1), ("ADD", 2), ("CHECK", 1), ("DEL", 2)] {
            let lab = Lab::new("own", 1);
            let plugin = lab.symroute(&release);
            let site = Site::filled(lab, plugin, 0);
            all.push(Candidate { label: release.label, verb, site, times, every: 1 });
        }
    }
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
        for verb in ["ADD", "DEL"] {
            let plugin = Plugin {
                program: format!("{peers}/{name}"),
                version: "1.0.0".into(),
                settings: settings.into(),
                path: (!variant.is_empty()).then(|| tools_of(variant)),
            };
            let lab = Lab::new(name, 1);
            if variant == "legacy" && !lab.node.can("iptables-legacy", &["-S"]) {
                let why = "this kernel has no iptables-legacy";
                crate::say(&format!("left out: {label}, {verb}: {why}"));
                continue;
            }
            let site = Site::new(lab, plugin, if name == "sbr" { ROUTES } else { "" });
            all.push(Candidate { label, verb, site, times: 1, every: PEERS_EVERY });
        }
    }
    interleave(&mut all, rounds)
}

fn interleave(all: &mut [Candidate], rounds: u32) -> Vec<Measured> {
    let mut samples = vec![Vec::new(); all.len()];
    let mut dice = Dice::new();
    for round in 0..rounds {
        crate::progress("calls", round, rounds);
        let due = all.iter().enumerate().filter(|(_, one)| round % one.every == 0);
        let turns: Vec<_> =
            due.flat_map(|(at, one)| std::iter::repeat_n(at, one.times as usize)).collect();
        for turn in dice.order(turns.len()) {
            let at = turns[turn];
            let took = all[at].site.timed(all[at].verb);
            // The first calls fill caches.
            if round >= rounds / 20 {
                samples[at].push(took);
            }
        }
    }
    let rows = all.iter().zip(samples);
    rows.map(|(one, samples)| Measured::of("calls", one.label, one.verb, "µs", samples)).collect()
}

/// A `PATH` with `iptables` of one variant, `nft` or `legacy`.
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

/// Removes the directories of [`tools_of`].
pub(crate) fn clean_up() {
    for variant in ["nft", "legacy"] {
        let name = format!("symbench{}-{variant}", std::process::id());
        let _ = fs::remove_dir_all(std::env::temp_dir().join(name));
    }
}
