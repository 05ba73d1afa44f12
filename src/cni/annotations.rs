//! Annotations of the pod. The runtime passes them if the conflist entry has
//! `"capabilities": {"io.kubernetes.cri.pod-annotations": true}`.

use serde_json::{Map, Value};

use crate::config::Invalid;

/// Name of the runtime's capability and key in `runtimeConfig`.
pub(super) const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";
const PREFIX: &str = "symroute.io/";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Annotations {
    /// `symroute.io/enabled`: whether symroute serves the pod.
    pub(crate) enabled: bool,
    /// `symroute.io/hairpin`: whether a request to this pod may have a local pod's address as its source.
    pub(crate) hairpin: bool,
}

pub(crate) fn read(config: &Map<String, Value>) -> Result<Annotations, Invalid> {
    let mut found = Annotations { enabled: true, hairpin: false };
    let given = config.get("runtimeConfig").and_then(|all| all.get(CAPABILITY));
    for (name, value) in given.and_then(Value::as_object).into_iter().flatten() {
        let Some(own) = name.strip_prefix(PREFIX) else { continue };
        let place = match own {
            "enabled" => &mut found.enabled,
            "hairpin" => &mut found.hairpin,
            _ => {
                let hint = "unknown annotation; known: symroute.io/enabled, symroute.io/hairpin";
                return Err(Invalid::new(name, value, hint));
            }
        };
        *place = match value.as_str() {
            Some("true") => true,
            Some("false") => false,
            _ => return Err(Invalid::new(name, value, "allowed: \"true\", \"false\"")),
        };
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(annotations: &Value) -> Result<Annotations, Invalid> {
        let config = json!({ "runtimeConfig": { CAPABILITY: annotations } });
        read(config.as_object().unwrap())
    }

    #[test]
    fn annotations_are_read_and_wrong_ones_named() {
        let default = Annotations { enabled: true, hairpin: false };
        assert_eq!(read(&Map::new()), Ok(default));
        assert_eq!(of(&json!({"a/b": "c"})), Ok(default));
        let both = json!({"symroute.io/enabled": "false", "symroute.io/hairpin": "true"});
        assert_eq!(of(&both), Ok(Annotations { enabled: false, hairpin: true }));
        for wrong in [json!({"symroute.io/enabled": "no"}), json!({"symroute.io/hairpin": true})] {
            assert!(of(&wrong).unwrap_err().to_string().contains("allowed"));
        }
        let unknown = of(&json!({"symroute.io/mark": "1"})).unwrap_err();
        assert_eq!(unknown.key, "symroute.io/mark");
    }
}
