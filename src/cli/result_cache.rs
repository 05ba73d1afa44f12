//! The runtime's cache of ADD results, as libcni writes it (`cachedInfo` in libcni's api.go). The cache
//! records the plugins that ran for a pod, and so the pods that need symroute at their end.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::config::file;

/// The only cache format that libcni has written so far.
const KIND: &str = "cniCacheV1";

/// Content of one cache file: an attachment of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) container: String,
    /// `namespace/name` of a Kubernetes pod.
    pub(crate) pod: Option<String>,
    /// Addresses in the result.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether symroute is among the plugins that ran for the pod.
    pub(crate) names_us: bool,
}

/// Parses a cache file. `None` if the file is half-written or libcni did not write it.
pub(crate) fn read(text: &str) -> Option<Entry> {
    let entry: Value = serde_json::from_str(text).ok()?;
    let word = |name: &str| entry.get(name)?.as_str();
    let config = word("config").filter(|_| word("kind") == Some(KIND))?;
    let network: Value = serde_json::from_slice(&STANDARD.decode(config).ok()?).ok()?;
    // "cniArgs" is a list of pairs: [[NAME, VALUE], …].
    let argument = |name: &str| {
        let mut pairs = entry.get("cniArgs")?.as_array()?.iter();
        pairs.find_map(|pair| (pair.get(0)? == name).then(|| pair.get(1)?.as_str())?)
    };
    let pod = argument("K8S_POD_NAMESPACE").zip(argument("K8S_POD_NAME"));
    Some(Entry {
        container: word("containerId").unwrap_or_default().into(),
        pod: pod.map(|(namespace, name)| format!("{namespace}/{name}")),
        addresses: addresses(&entry["result"]),
        names_us: file::names_us(&network),
    })
}

/// The addresses of a CNI result: `{"ips": [{"address": "10.244.1.5/24"}]}`.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let texts = ips.filter_map(|ip| ip["address"].as_str());
    texts.filter_map(|text| text.parse::<IpNetwork>().ok()).map(|net| net.ip()).collect()
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
        assert!(read(&entry("symroute")).unwrap().names_us);
        assert!(!read(&entry("portmap")).unwrap().names_us);
        let whole = entry("symroute");
        assert!((0..whole.len()).all(|end| read(&whole[..end]).is_none()), "half a file");
        assert_eq!(read(&whole.replace(KIND, "other")), None);
    }

    #[test]
    fn a_pod_is_named_as_kubernetes_names_it() {
        let with = |arguments: Value| {
            let mut entry: Value = serde_json::from_str(&entry("symroute")).unwrap();
            entry["cniArgs"] = arguments;
            read(&entry.to_string()).unwrap().pod
        };
        let of = json!([
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", "shop"],
            ["K8S_POD_NAME", "web-0"]
        ]);
        assert_eq!(with(of).as_deref(), Some("shop/web-0"));
        for odd in
            [json!(null), json!([["K8S_POD_NAME", "web-0"]]), json!([[], 3, ["K8S_POD_NAME"]])]
        {
            assert_eq!(with(odd), None);
        }
    }

    #[test]
    fn the_addresses_of_a_result() {
        let result =
            json!({"ips": [{"address": "10.244.1.5/24"}, {"address": "2001:db8::5/64"}, {}]});
        let found: Vec<_> = addresses(&result).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.244.1.5", "2001:db8::5"]);
        assert!(addresses(&json!(null)).is_empty());
    }
}
