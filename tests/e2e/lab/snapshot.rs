//! Everything on a node that the plugin may change, for "as it was before".

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::node::Node;

/// Text by section, each line one rule, route, sysctl or file.
pub(crate) struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    pub(crate) fn take(node: &Node) -> Self {
        let commands: &[&[&str]] = &[
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["ip", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["nft", "-s", "list", "ruleset"],
            &["iptables-legacy-save"],
            &["ip6tables-legacy-save"],
            &["ipset", "list"],
        ];
        // One entry into the namespace for all of them: tests take hundreds of snapshots.
        let names = commands.iter().map(|argv| argv.join(" ")).collect::<Vec<_>>();
        let script = format!("set -e; {}", names.join("; printf '\\0'; "));
        let output = node.ns.exec(&["sh", "-c", &script], "");
        let mut sections: BTreeMap<String, String> =
            names.into_iter().zip(output.split('\0').map(normalised)).collect();
        assert_eq!(sections.len(), commands.len(), "an output of each command");
        sections.insert("sysctls".into(), node.ns.run(sysctls));
        sections.insert("/run/symroute".into(), files(node));
        Self(sections)
    }

    /// Panics with a line-by-line difference unless `now` is the same.
    pub(crate) fn assert_unchanged(&self, now: &Self) {
        let difference = self.difference(now);
        assert!(difference.is_empty(), "the node is not as it was before:\n{difference}");
    }

    /// The lines that are not the same; empty when all are.
    pub(crate) fn difference(&self, now: &Self) -> String {
        let mut difference = String::new();
        for (section, before) in &self.0 {
            let after = &now.0[section];
            if before == after {
                continue;
            }
            let _ = writeln!(difference, "{section}:");
            for line in before.lines().filter(|line| !after.lines().any(|other| other == *line)) {
                let _ = writeln!(difference, "- {line}");
            }
            for line in after.lines().filter(|line| !before.lines().any(|other| other == *line)) {
                let _ = writeln!(difference, "+ {line}");
            }
        }
        difference
    }
}

/// Without what changes by itself: comments with the time of day, counters, ages of IPv6 routes,
/// and the kernel's own table, which follows link-local addresses that come up late.
fn normalised(text: &str) -> String {
    let mut kept = String::new();
    let own = |line: &&str| line.starts_with('#') || line.contains(" table local ");
    for line in text.lines().filter(|line| !own(line)) {
        let line = match line.split_once(" expires ") {
            Some((before, after)) => {
                format!("{before}{}", after.split_once(' ').map_or("", |(_, rest)| rest))
            }
            None => line.split(" [").next().unwrap_or(line).to_owned(),
        };
        let _ = writeln!(kept, "{}", line.trim_end());
    }
    kept
}

fn sysctls() -> String {
    let mut lines = Vec::new();
    for interface in fs::read_dir("/proc/sys/net/ipv4/conf").expect("list the interfaces") {
        let interface = interface.expect("an interface").path();
        for key in ["rp_filter", "src_valid_mark"] {
            let path = interface.join(key);
            let value = fs::read_to_string(&path).expect("read a sysctl");
            lines.push(format!("{} = {}\n", path.display(), value.trim()));
        }
    }
    lines.sort();
    lines.concat()
}

/// Everything below the node's `/run/symroute`, with its content. Empty folders count only where
/// nothing of ours is in force: there they are leftovers.
fn files(node: &Node) -> String {
    let mut lines = Vec::new();
    collect(&node.dir.join("run"), &mut lines);
    if node.dir.join("run/node.json").exists() {
        lines.retain(|line| !line.ends_with("/\n"));
    }
    lines.sort();
    lines.concat()
}

fn collect(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("list a folder of the node's /run/symroute") {
        let path = entry.expect("an entry").path();
        if path.is_symlink() {
            let target = fs::read_link(&path).expect("read a link");
            lines.push(format!("{} -> {}\n", path.display(), target.display()));
        } else if path.is_dir() {
            lines.push(format!("{}/\n", path.display()));
            collect(&path, lines);
        } else {
            let content = fs::read(&path).expect("read a file");
            lines.push(format!("{}: {}\n", path.display(), String::from_utf8_lossy(&content)));
        }
    }
}
