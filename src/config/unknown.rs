//! Finds unknown keys in our plugin object. An ADD ignores them, as is usual in CNI. If an operator passes
//! the object to the tool, a misspelt key must not pass for a setting.

use std::fmt;

use serde_json::{Map, Value};

use super::KEYS;
use crate::process::{VALUE_MOST, cut};

/// Keys of `log`.
const OF_LOG: [&str; 2] = ["level", "file"];
/// Keys that the CNI specification and runtimes put into a plugin object.
const OF_CNI: [&str; 13] = [
    "type",
    "name",
    "cniVersion",
    "cniVersions",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "capabilities",
    "args",
    "ipam",
    "dns",
    "runtimeConfig",
    "prevResult",
];

/// An unknown key. The text names the known keys and the nearest one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// Prefix of the object that has the key, such as `log.`; empty for the plugin object.
    place: &'static str,
    key: String,
    known: &'static [&'static str],
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, key, known } = self;
        write!(f, "\"{place}{key}\": unknown key; known: {}", known.join(", "))?;
        match nearest(key, known) {
            Some(near) => write!(f, "; did you mean \"{place}{near}\"?"),
            None => Ok(()),
        }
    }
}

/// The keys of our plugin object that belong neither to symroute nor to CNI nor to another tool.
pub(crate) fn unknown(object: &Map<String, Value>) -> impl Iterator<Item = Unknown> {
    let not_of_cni = object.keys().filter(|key| !OF_CNI.contains(&key.as_str()));
    let log = object.get("log").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    unknown_keys("", not_of_cni, &KEYS).chain(unknown_keys("log.", log, &OF_LOG))
}

fn unknown_keys<'a>(
    place: &'static str,
    keys: impl Iterator<Item = &'a String>,
    known: &'static [&'static str],
) -> impl Iterator<Item = Unknown> {
    let unknown = keys.filter(move |key| !known.contains(&key.as_str()) && !is_of_others(key));
    unknown.map(move |key| Unknown { place, key: cut(key, VALUE_MOST), known })
}

/// Whether a key is a comment (`_…`, `//…`) or another tool's key, which has a `/`.
fn is_of_others(key: &str) -> bool {
    key.contains('/') || key.starts_with('_')
}

/// The known key with the smallest edit distance, if it is close enough to be meant.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let distance =
        |near: &str| strsim::damerau_levenshtein(&key.to_lowercase(), &near.to_lowercase());
    let near = known.iter().copied().min_by_key(|near| distance(near))?;
    (distance(near) <= near.len().div_ceil(3)).then_some(near)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(object: Value) -> Vec<String> {
        let Value::Object(object) = object else { panic!("not an object") };
        unknown(&object).map(|unknown| unknown.to_string()).collect()
    }

    #[test]
    fn keys_of_ours_of_cni_and_of_other_tools_pass() {
        let keys = KEYS.iter().chain(&OF_CNI).chain(&["cni.dev/x", "io.x/y", "_comment", "// why"]);
        let object = keys.map(|key| ((*key).to_owned(), json!({}))).collect();
        assert_eq!(said(Value::Object(object)), [""; 0]);
        assert_eq!(said(json!({"log": {"level": "warn", "file": "/x", "_": 1}})), [""; 0]);
    }

    #[test]
    fn a_slip_is_named_with_what_was_meant() {
        for (key, meant) in [
            ("uplink", "uplinks"),
            ("hairPin", "hairpin"),
            ("backends", "backend"),
            ("gateway", "gateways"),
            ("mark_mask", "markMask"),
            ("rulePrioriti", "rulePriority"),
        ] {
            let said = said(json!({ key: 1 }));
            assert_eq!(said.len(), 1, "{said:?}");
            let (begin, end) =
                (format!("\"{key}\": unknown key; known: uplinks, gateways, "), meant);
            assert!(said[0].starts_with(&begin), "{said:?}");
            assert!(said[0].ends_with(&format!("did you mean \"{end}\"?")), "{said:?}");
        }
        assert!(said(json!({"mtu": 1500}))[0].ends_with("scope, log"));
        let in_log = said(json!({"log": {"levle": "debug"}}));
        assert_eq!(
            in_log,
            ["\"log.levle\": unknown key; known: level, file; did you mean \"log.level\"?"]
        );
    }
}
