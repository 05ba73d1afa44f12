//! Reads the pod's addresses and routers from `prevResult`. The plugin passes on the document unchanged,
//! because other plugins put keys into it that only they understand.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Code, Failure};
use crate::config;

/// Keys of a JSON object with their undecoded values.
pub(super) type Fields<'a> = BTreeMap<String, &'a RawValue>;

fn wrong(what: &str) -> Failure {
    Failure::new(Code::Config, format!("\"prevResult\": {what}"))
        .with("the plugin before this one in the chain has to give a valid result")
}

/// Splits a result into its keys without decoding the values, which `serde_json` may not be able to read.
pub(super) fn fields(result: &RawValue) -> Result<Fields<'_>, Failure> {
    serde_json::from_str(result.get())
        .map_err(|_| wrong(&format!("not an object: {}", result.get())))
}

/// The addresses of a result of any version (`ips[].address`, `ip4.ip`, `ip6.ip`), each once. Leaves out
/// link-local, loopback, multicast and unspecified addresses, to which no request from outside is sent.
pub(crate) fn addresses(result: &RawValue) -> Result<Vec<IpAddr>, Failure> {
    let all = fields(result)?;
    let mut found = Vec::new();
    for (name, entry, key) in entries(&all)? {
        let text = serde_json::from_str::<Fields<'_>>(entry.get()).ok();
        let net: IpNetwork = text
            .and_then(|mut entry| entry.remove(key))
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
            // Requires a prefix: libraries refuse a result without one, which the plugin would pass on.
            .and_then(|text| text.contains('/').then(|| text.parse().ok())?)
            .ok_or_else(|| wrong(&format!("{name}.{key} is no address: {entry}")))?;
        // Packets of an IPv4-mapped IPv6 address are IPv4.
        let ip = net.ip().to_canonical();
        if is_reachable(ip) && !found.contains(&ip) {
            found.push(ip);
        }
    }
    Ok(found)
}

/// The routers of a result (`ips[].gateway`, `ip4.gateway`, `ip6.gateway`) by the interface of their address. An
/// address without interface counts as `ifname`, the interface of the call. Leaves out unreadable entries, since
/// the pod only lacks that router then.
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
        // An interface on the node has no sandbox.
        let name = name.filter(|named| !named.sandbox.is_empty());
        let name = name.map_or(ifname, |named| &named.name);
        let usable = !(router.is_unspecified() || router.is_loopback() || router.is_multicast());
        if usable && config::is_interface_name(name) {
            found.entry(name.to_owned()).or_default().push(router);
        }
    }
    found
}

/// An entry of `interfaces` in a result.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
    /// The pod's namespace; empty for an interface of the node.
    #[serde(default)]
    sandbox: String,
}

/// The keys beside an address in a result.
#[derive(Deserialize)]
struct Beside {
    gateway: Option<String>,
    /// Index in `interfaces`. Some plugins write a negative index for none.
    interface: Option<i64>,
}

/// The objects of a result that have an address: name of the place, object, and key of the address in it.
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

    /// Formats interface and routers, one line each.
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
        // An address of an interface on the node, or without one, counts as the call's.
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
