//! Counts the instructions of a call with valgrind. The count is equal in every run, and nearly
//! equal on every machine with the same compiler.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Map, Value, json};

use crate::lab::{Lab, Plugin, Release, noop, variable};

/// `GLIBC_TUNABLES` value that selects plain string functions. By default glibc selects them by the
/// processor.
const PLAIN: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-AVX,-ERMS,-FSRM,-BMI2,\
                     -SSE4_1,-SSE4_2,-SSSE3";
const VALGRIND: [&str; 3] = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
/// Maximum growth over the baseline, in percent.
const ALLOWED: f64 = 3.0;
/// Maximum growth over the baseline, in percent, if another compiler built the program.
const ALLOWED_LOOSELY: f64 = 15.0;

/// Instructions of each verb and of the no-op.
pub(crate) fn count() -> Map<String, Value> {
    let lab = Lab::new("count", 2);
    let plugin = lab.symroute(&Release::now());
    plugin.call(&lab, "ADD", 0);
    let mut counts = Map::new();
    counts.insert("no-op".into(), instructions(&noop(), &lab, "ADD").into());
    for verb in ["VERSION", "STATUS", "ADD", "CHECK", "DEL"] {
        counts.insert(verb.into(), instructions(&plugin, &lab, verb).into());
    }
    counts
}

fn instructions(plugin: &Plugin, lab: &Lab, verb: &str) -> u64 {
    let (mut command, input) = plugin.command(&VALGRIND, lab, verb, 1);
    command.env("GLIBC_TUNABLES", PLAIN).stderr(Stdio::piped());
    let mut text = String::new();
    lab.node.run(|| {
        let mut child = command.spawn().expect("start valgrind");
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        child.stderr.take().expect("piped").read_to_string(&mut text).expect("UTF-8");
        let status = child.wait().expect("wait");
        assert!(status.success(), "{verb} under valgrind: {status}: {text}");
    });
    let line = text.lines().find_map(|line| line.split_once("Collected :"));
    let number = line.and_then(|(_, number)| number.trim().parse().ok());
    number.unwrap_or_else(|| panic!("valgrind reports no count: {text}"))
}

/// Peak memory of an ADD on a ready node, in KiB.
pub(crate) fn peak() -> u64 {
    let lab = Lab::new("peak", 1);
    let plugin = lab.symroute(&Release::now());
    plugin.call(&lab, "ADD", 0);
    let helper = variable("SYMROUTE_PEAK");
    let (mut command, input) = plugin.command(&[&helper], &lab, "ADD", 1);
    let output = lab.node.run(|| {
        let mut child = command.spawn().expect("start the helper");
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        child.wait_with_output().expect("wait").stdout
    });
    String::from_utf8_lossy(&output).trim().parse().expect("a number")
}

/// Compares with the baseline. False if a count grew more than allowed, or has no baseline.
pub(crate) fn check(file: &Path, rustc: &str) -> bool {
    let text = fs::read_to_string(file)
        .unwrap_or_else(|error| panic!("{}: {error}; see benches/run --help", file.display()));
    let baseline: Value = serde_json::from_str(&text).expect("JSON");
    let built_by = baseline["rustc"].as_str().unwrap_or("unknown");
    let allowed = if built_by == rustc {
        ALLOWED
    } else {
        println!("note: the baseline was built by {built_by:?}, this by {rustc:?}:");
        println!(
            "      other compilers make other code, so {ALLOWED_LOOSELY} % are allowed, not {ALLOWED} %"
        );
        ALLOWED_LOOSELY
    };
    let mut good = true;
    println!("{:<8} {:>12} {:>12} {:>8}", "CALL", "BASELINE", "NOW", "CHANGE");
    for (verb, now) in count() {
        let (now, before) = (number(&now), number(&baseline["instructions"][&verb]));
        let change = (now / before - 1.0) * 100.0;
        // False without a baseline: `change` is then NaN.
        let fits = change <= allowed;
        good &= fits;
        let verdict = if fits { "" } else { "  TOO MUCH" };
        println!("{verb:<8} {before:>12} {now:>12} {change:>+7.2}%{verdict}");
    }
    if !good {
        println!(
            "a count grew by more than {allowed} %. If that is wanted: benches/run --baseline"
        );
    }
    good
}

/// Counts, and writes the baseline.
pub(crate) fn write(file: &Path, rustc: &str) {
    let baseline = json!({"rustc": rustc, "instructions": count()});
    let text = serde_json::to_string_pretty(&baseline).expect("JSON") + "\n";
    fs::write(file, &text).expect("write the baseline");
    print!("{text}");
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}
