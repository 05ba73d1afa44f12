//! The cloud around the node: one router with a port for every NIC.
//!
//! It behaves like a VPC fabric. It is the gateway on every port and knows which address belongs to
//! which NIC. It answers ARP and neighbour solicitations for all addresses. With the source check
//! on, it drops packets that leave a NIC with a source address of another NIC.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::Value;

use super::netns::{Netns, unique};

pub(crate) struct Router {
    pub(crate) ns: Netns,
    ports: Vec<Port>,
}

/// A port of the router, named after the NIC or host at its other end.
struct Port {
    name: String,
    peer_mac: String,
    addresses: Vec<IpAddr>,
}

impl Router {
    pub(crate) fn new() -> Self {
        let ns = Netns::new("router");
        ns.sysctl("ipv4/ip_forward", "1");
        ns.sysctl("ipv4/conf/default/proxy_arp", "1");
        // The router also answers for addresses behind the port that asks.
        ns.sysctl("ipv4/conf/default/proxy_arp_pvlan", "1");
        ns.sysctl("ipv6/conf/all/forwarding", "1");
        ns.sysctl("ipv6/conf/default/proxy_ndp", "1");
        Self { ns, ports: Vec::new() }
    }

    /// Connects `ifname` of `peer` to a new port, which has `gateways` and `fe80::1` as addresses.
    pub(crate) fn plug(&mut self, port: &str, peer: &Netns, ifname: &str, gateways: &[&str]) {
        let number = unique();
        let mac = |side: u8| {
            format!("02:{side:02x}:{}", number.to_be_bytes().map(|b| format!("{b:02x}")).join(":"))
        };
        let (ours, theirs) = (mac(1), mac(2));
        self.ns.ip(&format!(
            "link add {port} address {ours} type veth peer name {ifname} address {theirs} netns {}
             link set {port} up
             addr add fe80::1/64 dev {port} nodad",
            peer.name()
        ));
        peer.ip(&format!("link set {ifname} up"));
        // By default the kernel delays a proxy answer by up to 0.8 s.
        self.ns.sysctl(&format!("ipv4/neigh/{port}/proxy_delay"), "0");
        self.ns.sysctl(&format!("ipv6/neigh/{port}/proxy_delay"), "0");
        let mut batch = String::new();
        for gateway in gateways {
            let nodad = if gateway.contains(':') { "nodad" } else { "" };
            let _ = writeln!(batch, "addr add {gateway} dev {port} {nodad}");
        }
        for address in self.ports.iter().flat_map(|other| &other.addresses).filter(|a| a.is_ipv6())
        {
            let _ = writeln!(batch, "neigh add proxy {address} dev {port}");
        }
        self.ns.ip(&batch);
        self.ports.push(Port { name: port.to_owned(), peer_mac: theirs, addresses: Vec::new() });
    }

    /// Makes the router send packets for `address` to `port`.
    ///
    /// The neighbour entry is permanent, as in clouds. A node with strict `rp_filter` does not
    /// answer an ARP request on a NIC that its own route to the asker does not use.
    pub(crate) fn assign(&mut self, port: &str, address: &str) {
        let parsed: IpAddr = address.parse().expect("an address");
        let mut batch = String::new();
        for other in &mut self.ports {
            let name = &other.name;
            if name == port {
                let mac = &other.peer_mac;
                let _ = writeln!(batch, "route add {address} dev {port}");
                let _ =
                    writeln!(batch, "neigh add {address} dev {port} lladdr {mac} nud permanent");
                other.addresses.push(parsed);
            }
            if parsed.is_ipv6() {
                let _ = writeln!(batch, "neigh add proxy {address} dev {name}");
            }
        }
        self.ns.ip(&batch);
    }

    /// The hardware address of the NIC on this port.
    pub(crate) fn peer_mac(&self, port: &str) -> &str {
        let port = self.ports.iter().find(|other| other.name == port);
        &port.unwrap_or_else(|| panic!("no such port")).peer_mac
    }

    /// Moves `address` from another port to this one.
    pub(crate) fn reassign(&mut self, port: &str, address: &str) {
        let parsed: IpAddr = address.parse().expect("an address");
        let mut batch = String::new();
        for other in &mut self.ports {
            if let Some(at) = other.addresses.iter().position(|known| *known == parsed) {
                other.addresses.remove(at);
                let _ = writeln!(batch, "route del {address} dev {}", other.name);
                let _ = writeln!(batch, "neigh del {address} dev {}", other.name);
            }
            if parsed.is_ipv6() {
                let _ = writeln!(batch, "neigh del proxy {address} dev {}", other.name);
            }
        }
        self.ns.ip(&batch);
        self.assign(port, address);
    }

    /// Makes a host with one NIC and a default route, for instance a client or a pod of another
    /// node.
    pub(crate) fn host(&mut self, name: &str, addresses: &[&str]) -> Netns {
        let ns = Netns::new(name);
        self.plug(name, &ns, "eth0", &["169.254.1.1"]);
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ns.ip(&format!("addr add {address} dev eth0 {nodad}"));
            self.assign(name, address);
        }
        ns.ip("route add default via 169.254.1.1 dev eth0 onlink
             route add default via fe80::1 dev eth0");
        ns
    }

    /// Enables the source check for these NICs, with all addresses assigned so far.
    pub(crate) fn check_sources(&self, nics: &[&str]) {
        let mut ruleset = String::from("table inet fabric\ndelete table inet fabric\n");
        ruleset.push_str("table inet fabric {\n");
        for nic in nics {
            let _ = writeln!(ruleset, "counter {nic} {{ packets 0 bytes 0 }}");
        }
        ruleset.push_str("chain source_check {\n");
        ruleset.push_str("type filter hook prerouting priority raw; policy accept;\n");
        for port in self.ports.iter().filter(|port| nics.contains(&port.name.as_str())) {
            let nic = &port.name;
            let of = |family: fn(&IpAddr) -> bool, none: &str| {
                let own: Vec<String> =
                    port.addresses.iter().filter(|a| family(a)).map(IpAddr::to_string).collect();
                if own.is_empty() { none.to_owned() } else { own.join(", ") }
            };
            let (v4, v6) = (of(IpAddr::is_ipv4, "0.0.0.0"), of(IpAddr::is_ipv6, "::"));
            let _ =
                writeln!(ruleset, "iifname {nic} ip saddr != {{ {v4} }} counter name {nic} drop");
            let _ = writeln!(
                ruleset,
                "iifname {nic} ip6 saddr != fe80::/10 ip6 saddr != :: ip6 saddr != {{ {v6} }} counter name {nic} drop"
            );
        }
        ruleset.push_str("}\n}\n");
        self.ns.nft(&ruleset);
    }

    /// Packets that the source check has dropped so far, by NIC; empty while it is disabled.
    pub(crate) fn source_check_drops(&self) -> BTreeMap<String, u64> {
        let text = self.ns.exec(&["nft", "-j", "list", "counters"], "");
        let listing: Value = serde_json::from_str(&text).expect("nft prints JSON");
        let entries = listing["nftables"].as_array().expect("a list of objects");
        entries
            .iter()
            .filter_map(|entry| entry.get("counter"))
            .map(|counter| {
                (
                    counter["name"].as_str().expect("a name").to_owned(),
                    counter["packets"].as_u64().expect("a count"),
                )
            })
            .collect()
    }

    /// The sum over all NICs of [`Self::source_check_drops`].
    pub(crate) fn dropped(&self) -> u64 {
        self.source_check_drops().values().sum()
    }
}
