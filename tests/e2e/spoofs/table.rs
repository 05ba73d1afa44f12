//! The differences as people read them, and the files that hold them.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;

use super::Difference;
use crate::lab::backend::Backend;

pub(super) const REMEDY: &str = "look at what has changed; SYMROUTE_BLESS=1 writes the table anew, and docs/security.md explains it";

const HEAD: &str = "\
What becomes of forged packets with the plugin, where it differs from a node without it.
Written by SYMROUTE_BLESS=1 from tests/e2e/spoofs.rs, which draws the node and lists every packet that was sent.
docs/security.md explains each reason.
";

/// Rows that differ in one column only are one row.
#[derive(Clone, PartialEq, Eq)]
struct Row {
    title: String,
    columns: [Vec<String>; 4],
}

/// Compares the differences with the file, or writes it. How many rows are not in both.
pub(super) fn compare(found: &[Difference]) -> usize {
    let now = text(found);
    let name = if Backend::of_run().is_iptables() { "iptables" } else { "nftables" };
    let path = format!("{}/tests/e2e/spoofs/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if env::var_os("SYMROUTE_BLESS").is_some() {
        fs::write(&path, &now).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    let (now, known) = (lines(&now), lines(&known));
    for line in now.difference(&known) {
        println!("not in {name}.txt: {line}");
    }
    for line in known.difference(&now) {
        println!("only in {name}.txt: {line}");
    }
    now.symmetric_difference(&known).count()
}

/// Each row with the title that it stands under.
fn lines(text: &str) -> BTreeSet<String> {
    let mut title = "";
    let mut lines = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with(' ') {
            lines.insert(format!("{title} {}", line.trim()));
        } else {
            title = line;
        }
    }
    lines
}

fn text(found: &[Difference]) -> String {
    let mut rows: Vec<Row> = found.iter().map(row).collect();
    // Destinations first: readers look for what gets in where.
    for column in [3, 2, 1, 0] {
        rows = merged(rows, column);
    }
    let mut out = HEAD.to_owned();
    let mut titles: Vec<&str> = Vec::new();
    for row in &rows {
        if !titles.contains(&row.title.as_str()) {
            titles.push(&row.title);
        }
    }
    for title in titles {
        let _ = writeln!(out, "\n{title}");
        for row in rows.iter().filter(|row| row.title == title) {
            let [by, packets, to, who] = row.columns.each_ref().map(|column| column.join(", "));
            let _ = writeln!(out, "  by {by} | {packets} | to {to} | from {who}");
        }
    }
    out
}

fn row(difference: &Difference) -> Row {
    let Difference { hairpin, cell, fates: [before, after] } = difference;
    let family = ["IPv4", "IPv6"][cell.family];
    let nodes = if *hairpin {
        ["with hairpin false", "with hairpin true"]
    } else {
        ["without the plugin", "with it"]
    };
    let reason = difference.reason();
    let title = format!("{family}: {before} {}, {after} {}. {reason}:", nodes[0], nodes[1]);
    let to = if cell.is_of_a_connection { format!("[{}]", cell.to) } else { cell.to.clone() };
    let columns = [cell.by.as_str(), cell.packet, &to, &cell.who].map(|word| vec![word.to_owned()]);
    Row { title, columns }
}

/// Rows that agree in all but this column become one.
fn merged(rows: Vec<Row>, column: usize) -> Vec<Row> {
    let mut out: Vec<Row> = Vec::new();
    for mut row in rows {
        let words = std::mem::take(&mut row.columns[column]);
        let same = out.iter_mut().find(|other| {
            other.title == row.title
                && (0..4).all(|at| at == column || other.columns[at] == row.columns[at])
        });
        if let Some(same) = same {
            same.columns[column].extend(
                words
                    .into_iter()
                    .filter(|word| !same.columns[column].contains(word))
                    .collect::<Vec<_>>(),
            );
        } else {
            row.columns[column] = words;
            out.push(row);
        }
    }
    out
}
