//! What is read from `prevResult`: the pod's addresses. The document itself is passed on as it
//! came, since other plugins put things into it that only they understand.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::value::RawValue;

use super::{Code, Failure};

/// The addresses of a result of version 0.3.0 or later (`ips[].address`), each once. Addresses
/// that no packet from outside can have are left out.
pub(super) fn addresses(result: &RawValue) -> Result<Vec<IpAddr>, Failure> {
    let wrong = |what: String| {
        Failure::new(Code::Config, format!("\"prevResult\": {what}"))
            .with("the plugin before this one in the chain has to give a valid result")
    };
    let object = |text: &str| -> Result<BTreeMap<String, Box<RawValue>>, Failure> {
        serde_json::from_str(text).map_err(|_| wrong(format!("not an object: {text}")))
    };
    // Only what is needed is read: other keys may hold what only other plugins understand.
    let ips: Option<Vec<Box<RawValue>>> = match object(result.get())?.get("ips") {
        None => None,
        Some(list) => serde_json::from_str(list.get())
            .map_err(|_| wrong(format!("\"ips\" is no list: {list}")))?,
    };
    let mut found = Vec::new();
    for (at, entry) in ips.unwrap_or_default().iter().enumerate() {
        let address = object(entry.get()).ok().and_then(|mut entry| entry.remove("address"));
        let net: IpNetwork = address
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok()?.parse().ok())
            .ok_or_else(|| wrong(format!("ips[{at}].address is no address: {entry}")))?;
        // An IPv4 address in IPv6's clothes is one on the wire all the same.
        let ip = net.ip().to_canonical();
        if is_reachable(ip) && !found.contains(&ip) {
            found.push(ip);
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
