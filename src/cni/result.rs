//! What is read from `prevResult`: the pod's addresses. The document itself is passed on as it
//! came, since other plugins put things into it that only they understand.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Code, Failure};

/// The addresses of a result of version 0.3.0 or later (`ips[].address`), each once. Addresses
/// that no packet from outside can have are left out.
pub(super) fn addresses(result: &RawValue) -> Result<Vec<IpAddr>, Failure> {
    let wrong = |what: String| {
        Failure::new(Code::Config, format!("\"prevResult\": {what}"))
            .with("the plugin before this one in the chain has to give a valid result")
    };
    let value: Value =
        serde_json::from_str(result.get()).map_err(|error| wrong(error.to_string()))?;
    if !value.is_object() {
        return Err(wrong("not an object".into()));
    }
    let ips = match value.get("ips") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ips)) => ips,
        Some(other) => return Err(wrong(format!("\"ips\" is no list: {other}"))),
    };
    let mut found = Vec::new();
    for (at, entry) in ips.iter().enumerate() {
        let text = entry.get("address").and_then(Value::as_str);
        let net: IpNetwork = text
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| wrong(format!("ips[{at}].address is no address: {entry}")))?;
        if is_reachable(net.ip()) && !found.contains(&net.ip()) {
            found.push(net.ip());
        }
    }
    Ok(found)
}

fn is_reachable(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}
