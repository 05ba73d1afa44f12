//! Everything on a node that the plugin may change, to compare with an earlier state.
//!
//! The rules of iptables appear twice: from nft, which does not show the content of matches like
//! `set`, and from iptables-save. A table of iptables-legacy stays once a tool has listed it. Where
//! a test used that variant, an empty table therefore does not count.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::netns::Netns;
use super::node::Node;

pub(crate) struct Snapshot {
    /// Text by section. Each line is one rule, route, sysctl or file.
    sections: BTreeMap<String, String>,
    legacy: bool,
}

impl Snapshot {
    pub(crate) fn take(node: &Node) -> Self {
        Self::of(&node.ns, node)
    }

    /// Takes a snapshot of another namespace, with the files of the node.
    pub(crate) fn of(ns: &Netns, node: &Node) -> Self {
        let commands: &[&[&str]] = &[
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["ip", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["nft", "-s", "list", "ruleset"],
            &["iptables-nft-save"],
            &["ip6tables-nft-save"],
            &["iptables-legacy-save"],
            &["ip6tables-legacy-save"],
            &["ipset", "save", "-sorted"],
        ];
        // Enters the namespace once for all commands: tests take hundreds of snapshots.
        let names = commands.iter().map(|argv| argv.join(" ")).collect::<Vec<_>>();
        let script = format!("set -e; {}", names.join("; printf '\\0'; "));
        let output = ns.exec(&["sh", "-c", &script], "");
        let mut sections: BTreeMap<String, String> =
            names.into_iter().zip(output.split('\0').map(normalised)).collect();
        assert_eq!(sections.len(), commands.len(), "an output of each command");
        // nft lists a recreated table last, so the order must not count.
        let tables = sections.get_mut("nft -s list ruleset").expect("a section");
        let mut parts: Vec<_> = tables.split_inclusive("\n}\n").collect();
        parts.sort_unstable();
        *tables = parts.concat();
        sections.insert("sysctls".into(), ns.run(sysctls));
        sections.insert("/run/symroute".into(), files(node));
        Self { sections, legacy: node.legacy.load(Ordering::Relaxed) }
    }

    /// Panics with a line-by-line difference unless `now` is equal.
    pub(crate) fn assert_unchanged(&self, now: &Self) {
        let difference = self.difference(now);
        assert!(difference.is_empty(), "the node is not as it was before:\n{difference}");
    }

    /// Panics with a difference unless the kernel state of `now` is equal. Files may differ.
    pub(crate) fn assert_unchanged_but_files(&self, now: &Self) {
        let files = "/run/symroute";
        let mut sections = self.sections.clone();
        sections.insert(files.into(), now.sections[files].clone());
        Self { sections, legacy: self.legacy }.assert_unchanged(now);
    }

    /// The lines that differ; empty when `now` is equal.
    pub(crate) fn difference(&self, now: &Self) -> String {
        let mut difference = String::new();
        for (section, before) in &self.sections {
            let after = &now.sections[section];
            let empty_counts = !now.legacy || !section.contains("tables-legacy");
            let [before, after] = [before, after]
                .map(|text| if empty_counts { text.clone() } else { without_empty_tables(text) });
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

/// Output of iptables-save without the tables that have no rule, no added chain and no changed
/// policy.
fn without_empty_tables(text: &str) -> String {
    let tables = text.split_inclusive("COMMIT\n");
    let is_added = |line: &str| line.starts_with('-') || !line.ends_with(" ACCEPT");
    let of_kernel = |line: &str| line.starts_with('*') || line == "COMMIT";
    tables.filter(|table| table.lines().any(|l| !of_kernel(l) && is_added(l))).collect()
}

/// Output without what changes by itself: comments with the time, counters, ages of IPv6 routes,
/// and size and seed of a set's hash. The table `local` does not count either: link-local addresses
/// appear in it late.
fn normalised(text: &str) -> String {
    let mut kept = String::new();
    let own = |line: &&str| line.starts_with('#') || line.contains(" table local ");
    for line in text.lines().filter(|line| !own(line)) {
        let line = match line.split_once(" expires ") {
            Some((before, after)) => {
                format!("{before}{}", after.split_once(' ').map_or("", |(_, rest)| rest))
            }
            None if line.starts_with("create ") => {
                line.split(" hashsize ").next().unwrap_or(line).to_owned()
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

/// All files below the node's `/run/symroute`, with their content. Empty folders count only where
/// symroute is not in force: there they are leftovers.
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
