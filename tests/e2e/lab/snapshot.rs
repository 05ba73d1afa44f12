//! Everything on a node that the plugin may change, for "as it was before".
//!
//! The rules of iptables are there twice: as nft prints them, which is blind for matches like `set`,
//! and as iptables-save does. A table of iptables-legacy can't be removed once a tool has looked at
//! it. Where that variant was asked for, and only there, an empty one counts as none.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::netns::Netns;
use super::node::Node;

pub(crate) struct Snapshot {
    /// Text by section, each line one rule, route, sysctl or file.
    sections: BTreeMap<String, String>,
    legacy: bool,
}

impl Snapshot {
    pub(crate) fn take(node: &Node) -> Self {
        Self::of(&node.ns, node)
    }

    /// The same of another namespace, with the files of the node.
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
        // One entry into the namespace for all of them: tests take hundreds of snapshots.
        let names = commands.iter().map(|argv| argv.join(" ")).collect::<Vec<_>>();
        let script = format!("set -e; {}", names.join("; printf '\\0'; "));
        let output = ns.exec(&["sh", "-c", &script], "");
        let mut sections: BTreeMap<String, String> =
            names.into_iter().zip(output.split('\0').map(normalised)).collect();
        assert_eq!(sections.len(), commands.len(), "an output of each command");
        // A table that is made anew comes last.
        let tables = sections.get_mut("nft -s list ruleset").expect("a section");
        let mut parts: Vec<_> = tables.split_inclusive("\n}\n").collect();
        parts.sort_unstable();
        *tables = parts.concat();
        sections.insert("sysctls".into(), ns.run(sysctls));
        sections.insert("/run/symroute".into(), files(node));
        Self { sections, legacy: node.legacy.load(Ordering::Relaxed) }
    }

    /// Panics with a line-by-line difference unless `now` is the same.
    pub(crate) fn assert_unchanged(&self, now: &Self) {
        let difference = self.difference(now);
        assert!(difference.is_empty(), "the node is not as it was before:\n{difference}");
    }

    /// The same for the kernel alone.
    pub(crate) fn assert_unchanged_but_files(&self, now: &Self) {
        let files = "/run/symroute";
        let mut sections = self.sections.clone();
        sections.insert(files.into(), now.sections[files].clone());
        Self { sections, legacy: self.legacy }.assert_unchanged(now);
    }

    /// The lines that are not the same; empty when all are.
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

/// What iptables-save prints, less the tables without rules, chains and policies of anybody.
fn without_empty_tables(text: &str) -> String {
    let tables = text.split_inclusive("COMMIT\n");
    let is_of_anybody = |line: &str| line.starts_with('-') || !line.ends_with(" ACCEPT");
    let of_kernel = |line: &str| line.starts_with('*') || line == "COMMIT";
    tables.filter(|table| table.lines().any(|l| !of_kernel(l) && is_of_anybody(l))).collect()
}

/// Without what changes by itself: comments with the time of day, counters, ages of IPv6 routes,
/// the size and the random start of a set's hash, and the kernel's own table, which follows
/// link-local addresses that come up late.
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
