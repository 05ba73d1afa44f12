//! Versions of the protocol and the shapes of their results.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::result::{Fields, fields};
use super::{Code, Failure};

/// Versions of the protocol that the plugin supports, oldest first.
pub(crate) const VERSIONS: [&str; 7] =
    ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Version of an answer to a request whose own version is not known.
pub(super) const LATEST: &str = "1.1.0";

/// Versions whose results have the same shape. The plugin passes on results unchanged inside a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// Results with `ip4` and `ip6`: 0.1.0 and 0.2.0.
    Single,
    /// Results with `ips` that have a key `version`: 0.3.0 to 0.4.0.
    Listed,
    /// Results with `ips` without a key `version`: from 1.0.0 on.
    Current,
}

/// The family of a version; `None` for a version that the plugin does not support.
pub(crate) fn family(version: &str) -> Option<Family> {
    let at = VERSIONS.iter().position(|known| *known == version)?;
    Some(match at {
        0..=1 => Family::Single,
        2..=4 => Family::Listed,
        _ => Family::Current,
    })
}

/// Whether the plugin supports `version` and it is not older than `least`.
pub(super) fn at_least(version: &str, least: &str) -> bool {
    let place = |wanted: &str| VERSIONS.iter().position(|known| *known == wanted);
    place(version).zip(place(least)).is_some_and(|(version, least)| version >= least)
}

/// The answer to a request of this version: prevResult byte for byte inside a family, where only
/// `cniVersion` may change; converted between families.
pub(crate) fn answer(result: &RawValue, version: &str) -> Result<String, Failure> {
    let text = result.get();
    let all = fields(result)?;
    let Some(raw) = all.get("cniVersion") else {
        // Libraries take a result without "cniVersion" for the oldest version and lose its addresses.
        let rest = text.trim_start().strip_prefix('{').unwrap_or(text);
        let comma = if all.is_empty() { "" } else { "," };
        return Ok(format!("{{\"cniVersion\":\"{version}\"{comma}{rest}"));
    };
    let own: String = serde_json::from_str(raw.get()).unwrap_or_default();
    if own == version {
        return Ok(text.to_string());
    }
    let Some(from) = family(&own) else {
        let msg = format!("\"prevResult\": \"cniVersion\" is {}, an unknown version", raw.get());
        return Err(Failure::new(Code::IncompatibleVersion, msg)
            .with(format!("supported: {}", VERSIONS.join(", "))));
    };
    if Some(from) == family(version) {
        // The raw value borrows from the text, so the difference of the pointers is its offset.
        let at = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        let rest = &text[at + raw.get().len()..];
        return Ok(format!("{}\"{version}\"{rest}", &text[..at]));
    }
    let to = family(version).unwrap_or(Family::Current);
    convert(&all, to, version).map(|value| value.to_string())
}

/// An address of a result in any family.
struct Address {
    net: Value,
    gateway: Option<Value>,
    interface: Option<Value>,
    v6: bool,
}

/// The value of a key; `None` if the key is absent or null.
fn value(all: &Fields<'_>, key: &str) -> Result<Option<Value>, Failure> {
    let Some(raw) = all.get(key).filter(|raw| raw.get() != "null") else { return Ok(None) };
    serde_json::from_str(raw.get()).map(Some).map_err(|error| wrong(key, &error.to_string()))
}

fn wrong(key: &str, what: &str) -> Failure {
    Failure::new(Code::Config, format!("\"prevResult\": \"{key}\": {what}"))
        .with("the plugin before this one in the chain has to give a valid result")
}

fn list(all: &Fields<'_>, key: &str) -> Result<Vec<Value>, Failure> {
    match value(all, key)? {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(wrong(key, &format!("no list: {other}"))),
    }
}

/// Converts a result to the shape of a family. A plugin may name one version and use the keys of another, so
/// the result gets the addresses of all keys, as in [`super::result::addresses`].
fn convert(all: &Fields<'_>, to: Family, version: &str) -> Result<Value, Failure> {
    let (mut addresses, mut routes) = listed(all)?;
    let (more, their_routes) = single(all)?;
    for address in more {
        if !addresses.iter().any(|known| known.net == address.net) {
            addresses.push(address);
        }
    }
    for route in their_routes {
        if !routes.contains(&route) {
            routes.push(route);
        }
    }
    let mut out = Map::new();
    out.insert("cniVersion".into(), json!(version));
    if to == Family::Single {
        for (key, v6) in [("ip4", false), ("ip6", true)] {
            let Some(first) = addresses.iter().find(|a| a.v6 == v6) else { continue };
            let mut object = Map::new();
            object.insert("ip".into(), first.net.clone());
            object.extend(first.gateway.clone().map(|gateway| ("gateway".into(), gateway)));
            let own: Vec<&Value> = routes.iter().filter(|r| is_v6(&r["dst"]) == v6).collect();
            if !own.is_empty() {
                object.insert("routes".into(), json!(own));
            }
            out.insert(key.into(), Value::Object(object));
        }
    } else {
        if let Some(interfaces) = value(all, "interfaces")? {
            out.insert("interfaces".into(), interfaces);
        }
        let ips: Vec<Value> = addresses.into_iter().map(|a| address(a, to)).collect();
        out.insert("ips".into(), json!(ips));
        if !routes.is_empty() {
            out.insert("routes".into(), json!(routes));
        }
    }
    out.insert("dns".into(), value(all, "dns")?.unwrap_or_else(|| json!({})));
    Ok(Value::Object(out))
}

fn address(address: Address, to: Family) -> Value {
    let mut object = Map::new();
    if to == Family::Listed {
        object.insert("version".into(), json!(if address.v6 { "6" } else { "4" }));
    }
    object.extend(address.interface.map(|at| ("interface".into(), at)));
    object.insert("address".into(), address.net);
    object.extend(address.gateway.map(|gateway| ("gateway".into(), gateway)));
    Value::Object(object)
}

/// Addresses and routes of a result with `ip4` and `ip6`.
fn single(all: &Fields<'_>) -> Result<(Vec<Address>, Vec<Value>), Failure> {
    let (mut addresses, mut routes) = (Vec::new(), Vec::new());
    for (key, v6) in [("ip4", false), ("ip6", true)] {
        let mut object = match value(all, key)? {
            None => continue,
            Some(Value::Object(object)) => object,
            Some(other) => return Err(wrong(key, &format!("no object: {other}"))),
        };
        let net = object.remove("ip").unwrap_or_default();
        addresses.push(Address { net, gateway: object.remove("gateway"), interface: None, v6 });
        if let Some(Value::Array(list)) = object.remove("routes") {
            routes.extend(list);
        }
    }
    Ok((addresses, routes))
}

/// Addresses and routes of a result with `ips`.
fn listed(all: &Fields<'_>) -> Result<(Vec<Address>, Vec<Value>), Failure> {
    let addresses = list(all, "ips")?.into_iter().map(|mut ip| {
        let mut take = |key: &str| ip.get_mut(key).map(Value::take);
        let (net, gateway) = (take("address").unwrap_or_default(), take("gateway"));
        Address { v6: is_v6(&net), net, gateway, interface: take("interface") }
    });
    Ok((addresses.collect(), list(all, "routes")?))
}

fn is_v6(net: &Value) -> bool {
    net.as_str().is_some_and(|text| text.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(result: &str, version: &str) -> String {
        let raw: Box<RawValue> = serde_json::from_str(result).unwrap();
        answer(&raw, version).unwrap()
    }

    const LISTED: &str = r#"{ "cniVersion" : "0.4.0", "ips":[{"version":"4","interface":1,"address":"10.0.0.5/24","gateway":"10.0.0.1"},{"version":"6","address":"fd00::5/64"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{},"x":1e400}"#;

    #[test]
    fn inside_a_family_nothing_but_the_version_changes() {
        assert_eq!(answered(LISTED, "0.4.0"), LISTED);
        assert_eq!(answered(LISTED, "0.3.1"), LISTED.replace("0.4.0", "0.3.1"));
        assert_eq!(answered(r#"{"ips":[ ]}"#, "1.0.0"), r#"{"cniVersion":"1.0.0","ips":[ ]}"#);
        assert_eq!(answered("{ }", "1.0.0"), r#"{"cniVersion":"1.0.0" }"#);
    }

    #[test]
    fn between_families_results_are_converted() {
        let current = answered(LISTED, "1.1.0");
        assert_eq!(
            current,
            r#"{"cniVersion":"1.1.0","ips":[{"interface":1,"address":"10.0.0.5/24","gateway":"10.0.0.1"},{"address":"fd00::5/64"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#
        );
        let single = answered(&current, "0.2.0");
        assert_eq!(
            single,
            r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.5/24","gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::5/64"},"dns":{}}"#
        );
        let listed = answered(&single, "0.3.0");
        assert!(listed.contains(r#""ips":[{"version":"4","address":"10.0.0.5/24""#), "{listed}");
        assert_eq!(answered(&listed, "0.1.0"), single.replace("0.2.0", "0.1.0"));
    }

    #[test]
    fn keys_of_another_version_than_it_names_are_converted() {
        let named_old =
            r#"{"cniVersion":"0.2.0","ips":[{"address":"10.0.0.5/24"}],"ip6":{"ip":"fd00::5/64"}}"#;
        assert_eq!(
            answered(named_old, "1.0.0"),
            r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24"},{"address":"fd00::5/64"}],"dns":{}}"#
        );
    }

    #[test]
    fn an_unknown_version_of_a_result_is_an_error() {
        let raw: Box<RawValue> = serde_json::from_str(r#"{"cniVersion":"9.9.9"}"#).unwrap();
        assert_eq!(answer(&raw, "1.0.0").unwrap_err().code, Code::IncompatibleVersion);
    }

    #[test]
    fn versions_are_ordered() {
        assert!(at_least("1.0.0", "0.4.0") && at_least("0.4.0", "0.4.0"));
        assert!(!at_least("0.3.1", "0.4.0") && !at_least("2.0.0", "0.4.0"));
    }
}
