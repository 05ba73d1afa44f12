//! Writes the figures: a JSON file, tables in a README, and plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::plot::{Bar, bars};
use crate::stats::Measured;
use crate::targets;

const BEGIN: &str = "<!-- figures: written by benches/run -->\n";
const END: &str = "<!-- end of figures -->\n";
pub(crate) const NOOP: &str = "static no-op";
/// Label of the release to compare with, see [`crate::lab::Release`].
const BEFORE: &str = "symroute before";
/// End of a call's name for the release to compare with.
const BEFORE_CALL: &str = " before";

/// Results of one run.
pub(crate) struct Results {
    /// Commit, date, machine and length of the run.
    taken: Value,
    /// Single values by key.
    set: Map<String, Value>,
    /// Rows of the tables.
    measured: Vec<Measured>,
}

impl Results {
    pub(crate) fn new(length: &str) -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let taken = json!({
            "commit": variable("SYMROUTE_COMMIT"), "date": variable("SYMROUTE_DATE"),
            "machine": variable("SYMROUTE_MACHINE"), "length": length,
            "before": variable("SYMROUTE_BEFORE_NAME"),
            "load": variable("SYMROUTE_LOAD"),
        });
        let bytes = fs::metadata(variable("SYMROUTE_BIN")).map_or(0, |data| data.len());
        let set = Map::from_iter([("program_bytes".to_owned(), json!(bytes))]);
        Self { taken, set, measured: Vec::new() }
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.set.insert(key.into(), value);
    }

    pub(crate) fn add(&mut self, measured: Vec<Measured>) {
        self.measured.extend(measured);
    }

    /// Writes `results.json`. Keeps the sections of earlier runs that this run did not measure.
    pub(crate) fn save(self, directory: &Path) {
        let file = directory.join("results.json");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut all: Value = serde_json::from_str(&text).unwrap_or_else(|_| json!({}));
        for (key, value) in self.set {
            all["taken"][&key] = self.taken.clone();
            all[key] = value;
        }
        let mut rows = all["measured"].as_array().cloned().unwrap_or_default();
        rows.retain(|row| self.measured.iter().all(|new| row["section"] != *new.section));
        for new in &self.measured {
            all["taken"][&new.section] = self.taken.clone();
            rows.push(new.json());
        }
        all["measured"] = rows.into();
        fs::create_dir_all(directory).expect("make the directory");
        let text = serde_json::to_string_pretty(&all).expect("JSON") + "\n";
        fs::write(file, text).expect("write the results");
    }
}

pub(crate) struct Figures {
    pub(crate) all: Value,
    rows: Vec<Measured>,
}

impl Figures {
    pub(crate) fn find(&self, section: &str, label: &str, call: &str) -> Option<&Measured> {
        let same =
            |row: &&Measured| row.section == section && row.label == label && row.call == call;
        self.rows.iter().find(same)
    }

    fn median(&self, section: &str, label: &str, call: &str) -> Option<f64> {
        self.find(section, label, call).map(|row| row.median)
    }

    /// The row of the release to compare with that belongs to this row.
    pub(crate) fn before(&self, row: &Measured) -> Option<&Measured> {
        let Measured { section, label, call, .. } = row;
        if label.starts_with(BEFORE) || call.ends_with(BEFORE_CALL) {
            return None;
        }
        let label_before = label.replacen("symroute", BEFORE, 1);
        self.find(section, &label_before, call)
            .filter(|_| label_before != *label)
            .or_else(|| self.find(section, label, &format!("{call}{BEFORE_CALL}")))
    }

    pub(crate) fn section<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a Measured> {
        self.rows.iter().filter(move |row| row.section == section)
    }

    fn taken(&self, key: &str) -> String {
        let taken = &self.all["taken"][key];
        let text = |key: &str| taken[key].as_str().unwrap_or("unknown");
        let before = match text("before") {
            "" | "unknown" => String::new(),
            before => format!(" \"Before\" is {before}."),
        };
        format!(
            "Commit {}, {}, {} run, load {}; {}.{before}\n\n",
            text("commit"),
            text("date"),
            text("length"),
            text("load"),
            text("machine")
        )
    }
}

/// Writes tables and plots from `results.json` in a directory.
pub(crate) fn render(directory: &Path) {
    let text = fs::read_to_string(directory.join("results.json")).expect("results.json");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let rows = all["measured"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = rows.iter().map(Measured::from_json).collect();
    let figures = Figures { all, rows };
    let mut text = targets::table(&figures);
    for (section, title, plot) in [
        ("calls", "One call", "ADD as a whole process"),
        ("scale", "Full nodes", "ADD by what is on the node"),
        ("tool", "The tool", "symroutectl by how many pods there are"),
        ("parallel", "Many at once", "ADD and no-op, median"),
        ("path", "Data path", "A reply of 64 bytes, client to pod and all between"),
        ("um", "Data path, user-mode kernel", "A reply of 64 bytes in a user-mode kernel"),
    ] {
        if figures.section(section).next().is_some() {
            let _ = write!(text, "\n## {title}\n\n{}", figures.taken(section));
            let _ = write!(text, "![{plot}]({section}.svg)\n\n{}", table(&figures, section));
            let chart = chart(&figures, section, plot);
            fs::write(directory.join(format!("{section}.svg")), chart).expect("write a plot");
        }
    }
    if let Some(counts) = figures.all["instructions"].as_object() {
        let _ = write!(
            text,
            "\n## Instructions\n\nBy valgrind, user space only. {}| call | instructions |\n|---|---:|\n",
            figures.taken("instructions")
        );
        for (verb, count) in counts {
            let _ = writeln!(text, "| {verb} | {count} |");
        }
    }
    print!("{text}");
    let file = directory.join("README.md");
    let old = fs::read_to_string(&file).unwrap_or_else(|_| format!("{BEGIN}{END}"));
    let parts =
        old.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = parts.expect("README.md has the two marks of the figures");
    fs::write(file, format!("{head}{BEGIN}{text}{END}{tail}")).expect("write the tables");
}

fn table(figures: &Figures, section: &str) -> String {
    // Heads of the ratio columns, and the labels of their denominators.
    let bases: [(&str, &str); 2] = match section {
        "calls" => [("no-op", NOOP), ("tuning", "tuning, empty configuration")],
        "scale" => [("no-op", NOOP), ("empty node", "empty node")],
        "parallel" => [("no-op", ""), ("no-op, p99", "")],
        "tool" => [("5 pods", "5 pods"), ("", "")],
        _ => [("no plugin", "no plugin, no conntrack"), ("conntrack", "no plugin, conntrack")],
    };
    let compared = figures.section(section).any(|row| figures.before(row).is_some());
    let bases = bases.into_iter().filter(|(head, _)| !head.is_empty());
    let mut heads: Vec<_> = bases.clone().map(|(head, _)| head).collect();
    heads.extend(compared.then_some("before"));
    let mut text = "| where | what | n | min | median | ± % | p95 | p99 |".to_owned();
    for head in &heads {
        let _ = write!(text, " × {head} |");
    }
    let _ = writeln!(text, "\n|---|---|{}", "---:|".repeat(6 + heads.len()));
    for row in figures.section(section) {
        let mut ratios = match section {
            "parallel" => {
                let base = figures.find(section, &row.label, "no-op");
                vec![base.map(|base| row.median / base.median), base.map(|base| row.p99 / base.p99)]
            }
            _ => (bases.clone())
                .map(|(_, label)| {
                    let verb = if label == NOOP || section == "calls" && row.call != "DEL" {
                        "ADD"
                    } else {
                        &row.call
                    };
                    figures.median(section, label, verb).map(|base| row.median / base)
                })
                .collect(),
        };
        if compared {
            ratios.push(figures.before(row).map(|before| row.median / before.median));
        }
        let digits = if row.median < 100.0 { 2 } else { 0 };
        let _ = write!(
            text,
            "| {} | {} | {} | {:.digits$} | {:.digits$} {} | {:.1} | {:.digits$} | {:.digits$} |",
            row.label,
            row.call,
            row.count,
            row.min,
            row.median,
            row.unit,
            100.0 * row.doubt,
            row.p95,
            row.p99
        );
        for ratio in ratios {
            let ratio = ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.2}"));
            let _ = write!(text, " {ratio} |");
        }
        text.push('\n');
    }
    text
}

fn chart(figures: &Figures, section: &str, title: &str) -> String {
    let wanted = |row: &&Measured| match section {
        "calls" => row.call == "ADD" || row.label == "symroute",
        "path" | "um" => row.call.starts_with("reply"),
        "scale" => row.call == "ADD",
        _ => true,
    };
    let rows: Vec<_> = figures.section(section).filter(wanted).collect();
    let unit = rows.first().map_or("", |row| &row.unit);
    let all: Vec<Bar> = rows
        .iter()
        .map(|row| Bar {
            label: if matches!(section, "path" | "um" | "scale") || row.label == NOOP {
                row.label.clone()
            } else {
                format!("{}, {}", row.label, row.call)
            },
            min: row.min,
            median: row.median,
            p95: row.p95,
            own: match section {
                "scale" => row.label != NOOP,
                "parallel" => row.call == "ADD",
                _ => row.label.starts_with("symroute") && !row.label.starts_with(BEFORE),
            },
        })
        .collect();
    bars(title, &format!("{unit}; bar: median, line: min to p95"), &all)
}
