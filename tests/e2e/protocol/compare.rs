//! Compares an answer of symroute with the peers', and lists the differences.

use std::fmt::Write as _;

use serde_json::Value;

use super::PLUGINS;
use super::cases::Case;
use super::outcome::Answer;

/// Checks symroute's answer. Returns what is wrong.
pub(super) fn complaints(case: &Case, ours: &Answer, peers: &[&Answer; 3]) -> Vec<String> {
    let theirs = peers.map(|answer| answer.outcome.as_str());
    let agreed = theirs.iter().all(|outcome| *outcome == theirs[0]);
    let wanted = match &case.differs {
        Some((outcome, _)) if agreed && outcome == theirs[0] => {
            return vec![format!("{}: the peers' answer now, {outcome}", case.name())];
        }
        Some((outcome, _)) => outcome.as_str(),
        None if agreed => theirs[0],
        None => return vec![format!("{}: the peers disagree, {theirs:?}", case.name())],
    };
    let mut wrong = Vec::new();
    if ours.outcome != wanted {
        wrong.push(format!("not {wanted}, but {}: {}", ours.outcome, ours.stdout.trim_end()));
    }
    let failed = ours.document.get("code").is_some();
    if failed {
        for key in ["cniVersion", "code", "msg", "details"] {
            if ours.document.get(key).is_none() {
                wrong.push(format!("no \"{key}\" in the error: {}", ours.stdout));
            }
        }
    }
    // Equal answers have equal words.
    if case.verb == "ADD" && !failed && ours.outcome == theirs[0] {
        let [a, b] = [&ours.document, &peers[0].document].map(without_empty);
        if !includes(&a, &b) {
            wrong.push(format!("the result differs from {}'s:\n{a}\n{b}", PLUGINS[1]));
        }
    }
    wrong.into_iter().map(|text| format!("{}: {text}", case.name())).collect()
}

/// A document without keys that say nothing.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let kept = object.iter().map(|(key, value)| (key.clone(), without_empty(value)));
            let mut kept: Vec<_> = kept.filter(|(_, value)| !is_empty(value)).collect();
            kept.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(kept.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_empty).collect()),
        other => other.clone(),
    }
}

/// Whether `whole` has all of `part`. It may have keys that the peers do not know.
fn includes(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|found| includes(found, value))),
        _ => whole == part,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

/// A row of the table of differences; cases that differ alike share one.
struct Row<'a> {
    whats: Vec<&'a str>,
    verbs: Vec<&'a str>,
    versions: Vec<&'a str>,
    ours: &'a str,
    theirs: [&'a str; 3],
    reason: &'a str,
}

/// The table for `docs/cni.md`.
pub(super) fn table(cases: &[Case], peers: &[[&Answer; 3]]) -> String {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (case, peers) in cases.iter().zip(peers) {
        let Some((ours, reason)) = &case.differs else { continue };
        let (ours, theirs) =
            (short_outcome(ours, case), peers.map(|answer| short_outcome(&answer.outcome, case)));
        let answered =
            |row: &Row<'_>| row.ours == ours && row.theirs == theirs && row.reason == *reason;
        match rows.iter_mut().find(|row| row.whats == [&case.what] && answered(row)) {
            Some(row) => {
                push_new(&mut row.verbs, case.verb);
                push_new(&mut row.versions, case.version);
            }
            None => rows.push(Row {
                whats: vec![&case.what],
                verbs: vec![case.verb],
                versions: vec![case.version],
                ours,
                theirs,
                reason,
            }),
        }
    }
    let mut merged: Vec<Row<'_>> = Vec::new();
    for row in rows {
        let same = |other: &&mut Row<'_>| {
            other.verbs == row.verbs
                && other.versions == row.versions
                && other.ours == row.ours
                && other.theirs == row.theirs
                && other.reason == row.reason
        };
        match merged.iter_mut().find(same) {
            Some(other) => other.whats.extend(row.whats),
            None => merged.push(row),
        }
    }
    let mut text = String::from("| call | verbs | cniVersion | symroute | peers | reason |\n");
    text.push_str("|---|---|---|---|---|---|\n");
    for row in merged {
        let theirs = match row.theirs {
            [one, two, three] if one == two && two == three => one.to_owned(),
            all => {
                let named =
                    PLUGINS[1..].iter().zip(all).map(|(peer, said)| format!("{peer} {said}"));
                named.collect::<Vec<_>>().join(", ")
            }
        };
        let cells = [
            &row.whats.join("; "),
            &row.verbs.join(" "),
            &row.versions.join(" "),
            row.ours,
            &theirs,
            row.reason,
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// An outcome without the version of a result where it is that of the request.
fn short_outcome<'a>(outcome: &'a str, case: &Case) -> &'a str {
    if outcome.strip_prefix("ok ") == Some(case.version) { "ok" } else { outcome }
}

fn push_new<'a>(words: &mut Vec<&'a str>, word: &'a str) {
    if !words.contains(&word) {
        words.push(word);
    }
}
