//! What libcni remembers of an ADD, as a file of its result cache (`cachedInfo` of libcni's
//! api.go): which plugins ran, and with what result.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::result::{self, Fields};
use super::{Failure, annotations};
use crate::config::file;
use crate::state::{Attachment, Key};

/// The only format there has been.
const KIND: &str = "cniCacheV1";

/// A pod as the cache has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// We were among its plugins: ADD enrolled it, and DEL will take it out.
    Ours,
    /// It is to be left alone, for this reason.
    LeftOut(String),
    /// It was there before us, and would be enrolled like this.
    Before(Attachment),
}

/// The name of the file that the cache has for an attachment.
pub(crate) fn file_name(key: &Key) -> String {
    format!("{}-{}-{}", key.network, key.container, key.ifname)
}

/// Reads a file of the cache. None where it is half-written or none of libcni's.
pub(crate) fn read(text: &str) -> Option<Cached> {
    let fields: Fields<'_> = serde_json::from_str(text).ok()?;
    let word = |name: &str| serde_json::from_str::<String>(fields.get(name)?.get()).ok();
    if word("kind")? != KIND {
        return None;
    }
    let config = STANDARD.decode(word("config")?).ok()?;
    let network: Value = serde_json::from_slice(&config).ok()?;
    if file::names_us(&network) {
        return Some(Cached::Ours);
    }
    let result = *fields.get("result")?;
    let key = Key {
        network: word("networkName")?,
        container: word("containerId")?,
        ifname: word("ifName")?,
    };
    Some(before(key, result, fields.get("capabilityArgs").copied(), word("netns").as_deref()))
}

fn before(
    key: Key,
    result: &RawValue,
    capabilities: Option<&RawValue>,
    netns: Option<&str>,
) -> Cached {
    // Entries of pods that a reboot ended stay in the cache.
    if let Some(gone) = sandboxes(result, netns).into_iter().find(|path| !Path::new(path).exists())
    {
        return Cached::LeftOut(format!("its network namespace {gone} is gone"));
    }
    let given = capabilities.and_then(|raw| serde_json::from_str(raw.get()).ok());
    let config: Map<String, Value> =
        given.map(|all: Value| ("runtimeConfig".to_string(), all)).into_iter().collect();
    let own = match annotations::read(&config) {
        Ok(own) => own,
        Err(invalid) => return Cached::LeftOut(invalid.to_string()),
    };
    if !own.enabled {
        return Cached::LeftOut("its annotation says so".into());
    }
    match result::addresses(result) {
        Ok(addresses) if addresses.is_empty() => Cached::LeftOut("it has no address".into()),
        Ok(addresses) => {
            Cached::Before(Attachment { key, addresses, hairpin: own.hairpin, adopted: true })
        }
        Err(Failure { msg, .. }) => Cached::LeftOut(msg),
    }
}

/// Paths of the pod's network namespace. What is no path (the AWS plugin writes numbers) is left
/// out.
fn sandboxes(result: &RawValue, netns: Option<&str>) -> Vec<String> {
    let result: Value = serde_json::from_str(result.get()).unwrap_or_default();
    let interfaces = result.get("interfaces").and_then(Value::as_array).into_iter().flatten();
    let named = interfaces.filter_map(|interface| interface.get("sandbox")?.as_str());
    named.chain(netns).filter(|path| path.starts_with('/')).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cached(plugins: &Value, result: &Value) -> Value {
        json!({
            "kind": KIND,
            "containerId": "c1",
            "config": STANDARD.encode(json!({"name": "k8s", "plugins": plugins}).to_string()),
            "ifName": "eth0",
            "networkName": "k8s",
            "result": result,
        })
    }

    #[test]
    fn pods_of_before_are_told_from_ours() {
        let result = json!({"ips": [{"address": "10.0.0.5/32"}], "interfaces": [
            {"name": "eni1"}, {"name": "eth0", "sandbox": "/"}, {"name": "x", "sandbox": "1"}]});
        let bridge = json!([{"type": "bridge"}]);
        let Some(Cached::Before(pod)) = read(&cached(&bridge, &result).to_string()) else {
            panic!("it was there before us");
        };
        assert_eq!(pod.addresses, ["10.0.0.5".parse::<std::net::IpAddr>().unwrap()]);
        assert!(pod.adopted && !pod.hairpin);
        assert_eq!(file_name(&pod.key), "k8s-c1-eth0");
        let ours = json!([{"type": "bridge"}, {"type": "symroute"}]);
        assert_eq!(read(&cached(&ours, &result).to_string()), Some(Cached::Ours));
    }

    #[test]
    fn what_has_to_be_left_alone_is() {
        let bridge = json!([{"type": "bridge"}]);
        let left_out = |entry: &Value| matches!(read(&entry.to_string()), Some(Cached::LeftOut(_)));
        assert!(left_out(&cached(&bridge, &json!({"interfaces": []}))));
        let gone = json!({"ips": [{"address": "10.0.0.5/32"}],
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/no-such-thing"}]});
        assert!(left_out(&cached(&bridge, &gone)));
        let mut annotated = cached(&bridge, &json!({"ips": [{"address": "10.0.0.5/32"}]}));
        annotated["capabilityArgs"] =
            json!({annotations::CAPABILITY: {"symroute.io/enabled": "false"}});
        assert!(left_out(&annotated));
    }

    #[test]
    fn half_a_file_is_none() {
        let text = cached(&json!([{"type": "bridge"}]), &json!({"ips": []})).to_string();
        for end in 0..text.len() {
            assert_eq!(read(&text[..end]), None);
        }
        assert_eq!(read("{\"kind\": \"other\"}"), None);
    }
}
