//! The protocol, compared with its reference: three plugins of the CNI project as Debian ships them
//! (release 1.1.1), `tuning`, `portmap` and `sbr`. The same calls go to symroute and to each of them,
//! on nodes of their own. `protocol/peers.txt` records the peers' answers. Where symroute differs, the
//! case names the reason, and the table in `docs/cni.md` shows it.
//!
//! `SYMROUTE_BLESS=1` writes both files anew, to be looked at and committed.

mod cases;
mod compare;
mod outcome;

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use cases::Case;
use outcome::{Answer, answers};

/// The plugins under test, symroute first.
const PLUGINS: [&str; 4] = ["symroute", "tuning", "portmap", "sbr"];
const BEGIN: &str = "<!-- differences: written by tests/e2e/protocol.rs -->\n";
const END: &str = "<!-- end of differences -->";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Writes the file when blessing. Otherwise compares, and reports the first line that differs.
fn settle(name: &str, old: &str, new: &str, wrong: &mut Vec<String>) {
    if env::var_os("SYMROUTE_BLESS").is_some() {
        fs::write(file(name), new).unwrap_or_else(|error| panic!("{name}: {error}"));
        return;
    }
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let longest = old.len().max(new.len());
    if let Some(at) = (0..longest).find(|at| old.get(*at) != new.get(*at)) {
        let [was, is] = [&old, &new].map(|lines| lines.get(at).unwrap_or(&"(nothing)"));
        wrong.push(format!("{name}, line {}: written is\n  {was}\nseen is\n  {is}", at + 1));
    }
}

#[test]
fn answers_are_those_of_the_reference_plugins() {
    let cases = cases::all();
    let names: BTreeSet<String> = cases.iter().map(Case::name).collect();
    assert_eq!(names.len(), cases.len(), "each case has a name of its own");
    let [ours, tuning, portmap, sbr] = thread::scope(|scope| {
        let workers = PLUGINS.map(|plugin| {
            let cases = &cases;
            scope.spawn(move || answers(plugin, cases))
        });
        workers.map(|worker| worker.join().expect("a plugin's answers"))
    });
    let peers: Vec<[&Answer; 3]> =
        (0..cases.len()).map(|at| [&tuning[at], &portmap[at], &sbr[at]]).collect();
    let mut wrong = Vec::new();
    for (case, (ours, peers)) in cases.iter().zip(ours.iter().zip(&peers)) {
        wrong.extend(compare::complaints(case, ours, peers));
    }

    let record = record(&cases, &peers);
    let name = "tests/e2e/protocol/peers.txt";
    let old = fs::read_to_string(file(name)).unwrap_or_default();
    settle(name, &old, &record, &mut wrong);

    let document = fs::read_to_string(file("docs/cni.md")).expect("read docs/cni.md");
    let start = document.find(BEGIN).expect("the table's beginning in docs/cni.md") + BEGIN.len();
    let end = document.find(END).expect("the table's end in docs/cni.md");
    let mut new = document.clone();
    new.replace_range(start..end, &compare::table(&cases, &peers));
    settle("docs/cni.md", &document, &new, &mut wrong);

    let different = cases.iter().filter(|case| case.differs.is_some()).count();
    println!(
        "protocol: {} cases, {} the same as the peers', {different} different with a reason",
        cases.len(),
        cases.len() - different,
    );
    assert!(wrong.is_empty(), "{} complaints:\n{}", wrong.len(), wrong.join("\n"));
}

/// One line per case: what each peer answers.
fn record(cases: &[Case], peers: &[[&Answer; 3]]) -> String {
    let mut text = format!("# case: {}\n", PLUGINS[1..].join(" | "));
    for (case, peers) in cases.iter().zip(peers) {
        let all = peers.map(|answer| answer.outcome.as_str()).join(" | ");
        let _ = writeln!(text, "{}: {all}", case.name());
    }
    text
}
