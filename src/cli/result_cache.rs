//! The runtime's cache of ADD results, as libcni writes it (`cachedInfo` of libcni's api.go): it
//! says which plugins ran for a pod, so which pods need the plugin at their end.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::config::file;

/// The only format there has been.
const KIND: &str = "cniCacheV1";

/// Whether symroute was among the plugins of the pod that a file of the cache is about. False for
/// what is half-written or no file of libcni.
pub(super) fn names_us(text: &str) -> bool {
    let network = || -> Option<Value> {
        let entry: Value = serde_json::from_str(text).ok()?;
        let word = |name: &str| entry.get(name)?.as_str();
        let config = word("config").filter(|_| word("kind") == Some(KIND))?;
        serde_json::from_slice(&STANDARD.decode(config).ok()?).ok()
    };
    network().is_some_and(|network| file::names_us(&network))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(plugin: &str) -> String {
        let network = json!({"name": "k8s", "plugins": [{"type": "bridge"}, {"type": plugin}]});
        json!({"kind": KIND, "config": STANDARD.encode(network.to_string())}).to_string()
    }

    #[test]
    fn pods_that_need_the_plugin_are_told_from_others() {
        assert!(names_us(&entry("symroute")));
        assert!(!names_us(&entry("portmap")));
        let whole = entry("symroute");
        assert!((0..whole.len()).all(|end| !names_us(&whole[..end])), "half a file");
        assert!(!names_us(&whole.replace(KIND, "other")));
    }
}
