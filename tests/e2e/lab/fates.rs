//! The fate of each of many forged packets. Each packet carries a number, and the node records the
//! numbers that it lets in.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::forge::{self, TTL};
use super::netns::Netns;
use super::node::Node;
use super::router::Router;
use super::wire::Wire;

/// Maximum number of packets at a time, so that these and their consequences fill no queue of the
/// kernel.
const AT_ONCE: usize = 400;
/// Two rounds are enough: the consequences of these packets do not matter here.
const ROUNDS: u64 = 2;

/// Where the node led a packet; the worst fate is the last one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fate {
    Dropped,
    /// The packet left through this NIC.
    Out(String),
    /// The packet reached a socket of the node or one of its pods.
    In,
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dropped => f.pad("dropped"),
            Self::In => f.pad("let in"),
            Self::Out(nic) => f.pad(&format!("out by {nic}")),
        }
    }
}

/// An interface from which the node gets packets.
pub(crate) struct Port<'a> {
    pub(crate) ns: &'a Netns,
    pub(crate) name: &'a str,
    /// The node's hardware address on this interface.
    pub(crate) mac: String,
}

pub(crate) struct Fates<'a> {
    wire: Wire<'a>,
    node: &'a Node,
}

impl<'a> Fates<'a> {
    pub(crate) fn new(router: &'a Router, node: &'a Node) -> Self {
        let wire = Wire::new(router, node);
        let forwarded = TTL - 1;
        node.ns.nft(&format!(
            "table inet fates {{
                set out4 {{ typeof ip id . meta oifname; flags dynamic; size 1024; }}
                set out6 {{ typeof ip6 flowlabel . meta oifname; flags dynamic; size 1024; }}
                set in4 {{ typeof ip id . meta iifname; flags dynamic; size 1024; }}
                set in6 {{ typeof ip6 flowlabel . meta iifname; flags dynamic; size 1024; }}
                chain forwarded {{
                    type filter hook forward priority 300; policy accept;
                    ip ttl {forwarded} add @out4 {{ ip id . oifname }}
                    ip6 hoplimit {forwarded} add @out6 {{ ip6 flowlabel . oifname }}
                }}
                chain delivered {{
                    type filter hook input priority 300; policy accept;
                    ip ttl {TTL} add @in4 {{ ip id . iifname }}
                    ip6 hoplimit {TTL} add @in6 {{ ip6 flowlabel . iifname }}
                }}
            }}"
        ));
        Self { wire, node }
    }

    /// Sends packets through an interface and returns the fate of each, in the same order. `nics`
    /// are the interfaces that lead outside.
    pub(crate) fn send(&self, port: &Port<'_>, nics: &[&str], packets: &[Vec<u8>]) -> Vec<Fate> {
        packets.chunks(AT_ONCE).flat_map(|some| self.send_chunk(port, nics, some)).collect()
    }

    /// Sends groups of packets through an interface and returns the worst fate in each group.
    pub(crate) fn send_groups(
        &self,
        port: &Port<'_>,
        nics: &[&str],
        groups: &[Vec<Vec<u8>>],
    ) -> Vec<Fate> {
        let mut fates = self.send(port, nics, &groups.concat()).into_iter();
        let worst = |group: &Vec<_>| fates.by_ref().take(group.len()).max().expect("a packet");
        groups.iter().map(worst).collect()
    }

    fn send_chunk(&self, port: &Port<'_>, nics: &[&str], packets: &[Vec<u8>]) -> Vec<Fate> {
        self.node.ns.nft(
            "flush set inet fates out4
             flush set inet fates out6
             flush set inet fates in4
             flush set inet fates in6",
        );
        let stamped: Vec<_> = packets
            .iter()
            .zip(1..)
            .map(|(packet, number)| {
                let mut packet = packet.clone();
                forge::stamp(&mut packet, number);
                packet
            })
            .collect();
        self.wire.deliver((port.ns, port.name, &port.mac), &stamped, ROUNDS);
        let noted = self.noted();
        let fate = |number: u64| match noted.get(&number) {
            None => Fate::Dropped,
            Some(Some(nic)) if nics.contains(&nic.as_str()) => Fate::Out(nic.clone()),
            Some(_) => Fate::In,
        };
        (1..).take(packets.len()).map(fate).collect()
    }

    /// The packets that the node let in, by number: the interface that a packet left through, or
    /// `None` if the node delivered it.
    fn noted(&self) -> BTreeMap<u64, Option<String>> {
        let text = self.node.ns.exec(&["nft", "-j", "list", "table", "inet", "fates"], "");
        let report: Value = serde_json::from_str(&text).expect("JSON of nft");
        let mut noted = BTreeMap::new();
        for set in report["nftables"].as_array().expect("parts").iter().map(|part| &part["set"]) {
            let is_out = set["name"].as_str().is_some_and(|name| name.starts_with("out"));
            for element in set["elem"].as_array().into_iter().flatten() {
                let pair =
                    element["concat"].as_array().or(element["elem"]["val"]["concat"].as_array());
                let pair = pair.expect("a number and an interface");
                let number = pair[0].as_u64().expect("a number");
                let name = pair[1].as_str().expect("a name").to_owned();
                noted.insert(number, is_out.then_some(name));
            }
        }
        noted
    }
}
