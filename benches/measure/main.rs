//! Measures symroute. `benches/run` builds what this needs and calls it; see its `--help`.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark stops at the first surprise and prints its figures"
)]

mod calls;
mod counts;
mod fair;
mod lab;
mod path;
mod plot;
mod report;
mod scale;
mod stats;
mod targets;
mod traffic;
mod way;

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

/// Prints progress to stderr; results go to stdout.
fn say(text: &str) {
    eprintln!("{text}");
}

/// Prints the progress of a loop: on a terminal each percent, otherwise each quarter.
fn progress(what: &str, done: u32, all: u32) {
    let step = if std::io::stderr().is_terminal() { (all / 100).max(1) } else { (all / 4).max(1) };
    if done % step == 0 {
        eprint!("{}{what}: {done} of {all}", if step > all / 50 { "" } else { "\r" });
        if step > all / 50 {
            eprintln!();
        }
        let _ = std::io::stderr().flush();
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (baseline, rustc) = (Path::new("benches/baseline.json"), variable("SYMROUTE_RUSTC"));
    match words.as_slice() {
        ["check"] if !counts::check(baseline, &rustc) => return ExitCode::FAILURE,
        ["check"] => {}
        ["baseline"] => counts::write(baseline, &rustc),
        ["render", directory] => report::render(Path::new(directory)),
        ["measure", length, sections, directory] => {
            let short = *length == "short";
            let named = |name: &str| sections.split(',').any(|one| one == name);
            let wanted = |name: &str| named(name) || named("all");
            let mut results = report::Results::new(length);
            if wanted("counts") {
                say("counts");
                results.set("instructions", counts::count().into());
                results.set("peak_kib", counts::peak().into());
            }
            // Before `pin`: parallel calls use all cores.
            if wanted("parallel") {
                results.add(scale::parallel(if short { 64 } else { 640 }));
            }
            lab::pin();
            if wanted("calls") {
                let rounds = if short { 80 } else { 400 };
                results.add(calls::measure(rounds, &variable("SYMROUTE_PEERS")));
                calls::clean_up();
            }
            if wanted("scale") {
                results.add(scale::measure(if short { 40 } else { 100 }, short));
                results.add(scale::tool(if short { 20 } else { 100 }, short));
            }
            if wanted("path") {
                results.add(path::measure("path", if short { 80 } else { 400 }));
            }
            // Runs in the guest, which measures nothing else.
            if named("um") {
                results.add(path::measure("um", if short { 80 } else { 400 }));
            }
            results.save(Path::new(directory));
            report::render(Path::new(directory));
        }
        _ => {
            say("called by benches/run; see its --help");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
