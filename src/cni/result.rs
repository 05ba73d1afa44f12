//! What is read from `prevResult`: the pod's addresses. The document itself is passed on as it
//! came, since other plugins put things into it that only they understand.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Code, Failure};
use crate::config;

/// Keys of an object with their values unread.
pub(super) type Fields<'a> = BTreeMap<String, &'a RawValue>;

fn wrong(what: &str) -> Failure {
    Failure::new(Code::Config, format!("\"prevResult\": {what}"))
        .with("the plugin before this one in the chain has to give a valid result")
}

/// The keys of a result. Only what is needed is read: other keys may hold what only other plugins
/// understand.
pub(super) fn fields(result: &RawValue) -> Result<Fields<'_>, Failure> {
    serde_json::from_str(result.get())
        .map_err(|_| wrong(&format!("not an object: {}", result.get())))
}

/// The addresses of a result of any version (`ips[].address`, `ip4.ip`, `ip6.ip`), each once.
/// Addresses that no packet from outside can have are left out.
pub(crate) fn addresses(result: &RawValue) -> Result<Vec<IpAddr>, Failure> {
    let all = fields(result)?;
    let mut found = Vec::new();
    for (name, entry, key) in entries(&all)? {
        let text = serde_json::from_str::<Fields<'_>>(entry.get()).ok();
        let net: IpNetwork = text
            .and_then(|mut entry| entry.remove(key))
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
            // A prefix is part of it: without one, libraries refuse the result as we pass it on.
            .and_then(|text| text.contains('/').then(|| text.parse().ok())?)
            .ok_or_else(|| wrong(&format!("{name}.{key} is no address: {entry}")))?;
        // An IPv4 address in IPv6's clothes is one on the wire all the same.
        let ip = net.ip().to_canonical();
        if is_reachable(ip) && !found.contains(&ip) {
            found.push(ip);
        }
    }
    Ok(found)
}

/// The routers that a result names (`ips[].gateway`, `ip4.gateway`, `ip6.gateway`), by the interface whose address
/// they stand beside. Where it names no interface that is the one of the call. What can't be read is left out: no
/// more than a way is lost by it.
pub(crate) fn gateways(result: &RawValue, ifname: &str) -> BTreeMap<String, Vec<IpAddr>> {
    let mut found = BTreeMap::<String, Vec<IpAddr>>::new();
    let Ok(all) = fields(result) else { return found };
    let names: Vec<Named> = all
        .get("interfaces")
        .and_then(|list| serde_json::from_str::<Option<Vec<Named>>>(list.get()).ok()?)
        .unwrap_or_default();
    for (_, entry, _) in entries(&all).unwrap_or_default() {
        let Ok(entry) = serde_json::from_str::<Beside>(entry.get()) else { continue };
        let Some(router) = entry.gateway.and_then(|text| text.parse::<IpAddr>().ok()) else {
            continue;
        };
        let name = match entry.interface {
            Some(at) => usize::try_from(at).ok().and_then(|at| names.get(at)),
            None => None,
        };
        // One on the node's side has no sandbox.
        let name = name.filter(|named| !named.sandbox.is_empty());
        let name = name.map_or(ifname, |named| &named.name);
        let usable = !(router.is_unspecified() || router.is_loopback() || router.is_multicast());
        if usable && config::is_interface_name(name) {
            found.entry(name.to_owned()).or_default().push(router);
        }
    }
    found
}

/// An interface of a result.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    /// The pod's namespace; empty for an interface of the node.
    #[serde(default)]
    sandbox: String,
}

/// What stands beside an address.
#[derive(Deserialize)]
struct Beside {
    gateway: Option<String>,
    /// Index of its interface. Some plugins write a negative one for none.
    interface: Option<i64>,
}

/// Where a result has addresses: the place's name, what stands there, and the key in it.
fn entries<'a>(all: &Fields<'a>) -> Result<Vec<(String, &'a RawValue, &'static str)>, Failure> {
    let mut entries = Vec::new();
    if let Some(list) = all.get("ips") {
        let ips: Option<Vec<&'a RawValue>> = serde_json::from_str(list.get())
            .map_err(|_| wrong(&format!("\"ips\" is no list: {list}")))?;
        let named = ips.unwrap_or_default().into_iter().enumerate();
        entries.extend(named.map(|(at, entry)| (format!("ips[{at}]"), entry, "address")));
    }
    for name in ["ip4", "ip6"] {
        let entry = all.get(name).filter(|raw| raw.get() != "null");
        entries.extend(entry.map(|entry| (name.to_string(), *entry, "ip")));
    }
    Ok(entries)
}

fn is_reachable(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    /// Interface and routers, one line each.
    fn routers(result: &str) -> String {
        let result = RawValue::from_string(result.into()).unwrap();
        let found = gateways(&result, "net1").into_iter();
        found.map(|(name, routers)| format!("{name} {routers:?}\n")).collect::<Vec<_>>().concat()
    }

    #[test]
    fn routers_stand_beside_the_interface_of_their_address() {
        let result = r#"{
            "interfaces": [{"name": "veth7"}, {"name": "net2", "sandbox": "/run/netns/a"}],
            "ips": [
                {"address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 1},
                {"address": "10.0.1.5/24", "gateway": "10.0.1.1", "interface": 0},
                {"address": "10.0.2.5/24", "gateway": "10.0.2.1", "interface": 9},
                {"address": "10.0.3.5/24", "gateway": "10.0.3.1", "interface": -1},
                {"address": "2001:db8::5/64", "gateway": "2001:db8::1"},
                {"address": "10.0.4.5/24", "gateway": "0.0.0.0"},
                {"address": "10.0.5.5/24", "gateway": "no address"},
                {"address": "10.0.6.5/24"}
            ]
        }"#;
        // One on the node's side, or of no interface, is that of the call.
        let of_call = "net1 [10.0.1.1, 10.0.2.1, 10.0.3.1, 2001:db8::1]\n";
        assert_eq!(routers(result), format!("{of_call}net2 [10.0.0.1]\n"));
    }

    #[test]
    fn results_of_the_oldest_versions_name_routers_too() {
        let result = r#"{"ip4": {"ip": "10.0.0.5/24", "gateway": "10.0.0.1"}, "ip6": null}"#;
        assert_eq!(routers(result), "net1 [10.0.0.1]\n");
        for odd in ["[]", "7", r#"{"ips": 7}"#, r#"{"interfaces": 7, "ips": [7]}"#] {
            assert_eq!(routers(odd), "", "{odd}");
        }
    }
}
