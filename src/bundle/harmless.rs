//! The parts of a conflist that may leave the node. Plugins keep tokens, passwords and paths of kubeconfig
//! files in their objects, so only fields that are known to be harmless are kept.

use serde_json::{Map, Value, json};

use crate::config::KEYS;
use crate::names;

/// Keys of a network that are kept.
const OF_NETWORK: [&str; 6] =
    ["cniVersion", "cniVersions", "name", "type", "disableCheck", "disableGC"];
/// Keys of other plugins that are kept if their value is a number, a flag, a short text, or a list of short
/// texts.
const OF_PLUGIN: [&str; 21] = [
    "type",
    "mtu",
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "hairpinMode",
    "promiscMode",
    "vlan",
    "mode",
    "master",
    "snat",
    "masqAll",
    "markMasqBit",
    "vethPrefix",
    "datastore_type",
    "enable-debug",
    "subnet",
    "rangeStart",
    "rangeEnd",
];
/// Keys whose values are objects like a plugin's, or lists of them.
const NESTED: [&str; 5] = ["plugins", "delegate", "delegates", "ipam", "ranges"];
/// Maximum bytes of a text that is kept. Longer texts may be more than names.
const SHORT: usize = 64;
/// The key that holds the number of keys that were left out.
const LEFT_OUT: &str = "keysLeftOut";

/// A conflist without possible secrets. Error: why it can't be parsed.
pub(super) fn of_conflist(text: &[u8]) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| {
        // The parser's own message may quote the text.
        format!("no JSON, at line {} column {}", error.line(), error.column())
    })?;
    let Value::Object(network) = value else { return Err("no JSON object".into()) };
    Ok(of_object(&network, &[&OF_NETWORK[..], &OF_PLUGIN].concat()))
}

fn of_object(object: &Map<String, Value>, known: &[&str]) -> Value {
    let is_ours = object.get("type").is_some_and(|kind| kind == names::PLUGIN_TYPE);
    let (mut kept, mut left_out) = (Map::new(), 0);
    for (key, value) in object {
        let key_is = |keys: &[&str]| keys.contains(&key.as_str());
        let harmless = if is_ours && key_is(&KEYS) {
            Some(value.clone())
        } else if key_is(&NESTED) {
            nested(value)
        } else if key == "capabilities" {
            flags(value)
        } else if key_is(known) {
            short(value)
        } else {
            None
        };
        match harmless {
            Some(value) => drop(kept.insert(key.clone(), value)),
            None => left_out += 1,
        }
    }
    if left_out > 0 {
        kept.insert(LEFT_OUT.into(), json!(left_out));
    }
    Value::Object(kept)
}

fn nested(value: &Value) -> Option<Value> {
    match value {
        Value::Object(object) => Some(of_object(object, &OF_PLUGIN)),
        // `ranges` is a list of lists.
        Value::Array(list) => Some(list.iter().filter_map(nested).collect()),
        _ => None,
    }
}

fn flags(value: &Value) -> Option<Value> {
    let flags = value.as_object()?.iter().filter(|(key, flag)| flag.is_boolean() && is_short(key));
    Some(Value::Object(flags.map(|(key, flag)| (key.clone(), flag.clone())).collect()))
}

fn short(value: &Value) -> Option<Value> {
    let is_harmless = match value {
        Value::Bool(_) | Value::Number(_) | Value::Null => true,
        Value::String(text) => is_short(text),
        Value::Array(list) => {
            return list
                .iter()
                .all(|one| one.as_str().is_some_and(is_short))
                .then(|| value.clone());
        }
        Value::Object(_) => false,
    };
    is_harmless.then(|| value.clone())
}

fn is_short(text: &str) -> bool {
    text.len() <= SHORT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_harmless_stays() {
        let text = json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "token": "SECRET",
            "plugins": [
                {
                    "type": "calico",
                    "mtu": 1440,
                    "etcd_key": "SECRET",
                    "master": "S".repeat(65),
                    "mode": {"SECRET": "SECRET"},
                    "kubernetes": {"kubeconfig": "/SECRET", "k8s_auth_token": "SECRET"},
                    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/8", "x": "SECRET"}]]},
                    "capabilities": {"portMappings": true, "x": "SECRET"},
                },
                {"type": "symroute", "uplinks": ["eth0"], "password": "SECRET"},
                "SECRET",
            ],
        });
        let kept = of_conflist(text.to_string().as_bytes()).unwrap();
        assert!(!kept.to_string().contains("SECRET"), "{kept:#}");
        assert!(!kept.to_string().contains("SSS"), "{kept:#}");
        let wanted = json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "plugins": [
                {
                    "type": "calico",
                    "mtu": 1440,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": "10.0.0.0/8", "keysLeftOut": 1}]],
                    },
                    "capabilities": {"portMappings": true},
                    "keysLeftOut": 4,
                },
                {"type": "symroute", "uplinks": ["eth0"], "keysLeftOut": 1},
            ],
            "keysLeftOut": 1,
        });
        assert_eq!(kept, wanted);
        let why = of_conflist(b"{\"token\": SECRET}").unwrap_err();
        assert!(!why.contains("SECRET"), "{why}");
    }
}
