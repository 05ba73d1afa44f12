//! Flows, what becomes of each on the wire, and what `explain` says of it.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::flows::{Flow, PATIENT};
use super::node::Node;
use super::plugin::Ran;
use crate::agent::plugin_object;

/// How long a flow may take that is expected to fail. That it fails for longer, other tests show.
const SHORT: Duration = Duration::from_millis(400);
/// Notes the first packets of connections as the node gets them: behind conntrack, before DNAT. And by which
/// interface answers leave, behind all NAT.
const PROBE: &str = "table inet probe-explain {
  set left4 { type ifname . ipv4_addr . ipv4_addr . inet_proto . inet_service; flags dynamic; size 1024; }
  set left6 { type ifname . ipv6_addr . ipv6_addr . inet_proto . inet_service; flags dynamic; size 1024; }
  set asked4 { type ifname . ipv4_addr . ipv4_addr . inet_proto . inet_service; flags dynamic; size 1024; }
  set asked6 { type ifname . ipv6_addr . ipv6_addr . inet_proto . inet_service; flags dynamic; size 1024; }
  chain arrive {
    type filter hook prerouting priority -199; policy accept;
    ct state new meta l4proto { tcp, udp } jump note
  }
  chain send {
    type filter hook output priority -199; policy accept;
    ct state new meta l4proto { tcp, udp } jump note
  }
  chain leave {
    type filter hook postrouting priority 300; policy accept;
    oifname != \"lo\" ct direction reply meta l4proto { tcp, udp } jump note_left
  }
  chain note_left {
    add @left4 { oifname . ip daddr . ip saddr . meta l4proto . th sport }
    add @left6 { oifname . ip6 daddr . ip6 saddr . meta l4proto . th sport }
  }
  chain note {
    iifname \"lo\" return
    oifname \"lo\" return
    add @asked4 { iifname . ip saddr . ip daddr . meta l4proto . th dport }
    add @asked6 { iifname . ip6 saddr . ip6 daddr . meta l4proto . th dport }
  }
}";

/// The first packet of a connection: where it came in (nowhere: the node sent it), client, server, protocol, port.
/// Or its answers, with where they left the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(super) nic: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(super) protocol: String,
    pub(crate) port: u64,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nic, from, to, protocol, port } = self;
        write!(f, "{from} to {to} {protocol} {port} by {nic:?}")
    }
}

/// How many verdicts were held against packets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdicts {
    /// Flows that worked, and those that did not.
    pub(crate) worked: usize,
    pub(crate) failed: usize,
    /// Requests that the node got of them.
    pub(crate) requests: usize,
}

impl Node {
    /// Runs these flows one after the other and asks `explain` about each request that the node got of them. A
    /// flow has to work if all of them are well, and to fail otherwise.
    pub(crate) fn hold_verdicts(
        &self,
        what: &str,
        settings: &Value,
        flows: &[Flow<'_>],
        broken: &[&str],
    ) -> Verdicts {
        let config = plugin_object(self, settings);
        self.note_requests();
        let mut counts = Verdicts::default();
        let mut wrong = Vec::new();
        for flow in flows {
            for set in ["asked4", "asked6"] {
                self.ns.nft(&format!("flush set inet probe-explain {set}"));
            }
            let deadline = if broken.contains(&flow.name.as_str()) { SHORT } else { PATIENT };
            let works = flow.failure(deadline).is_none();
            let asked = self.asked();
            assert!(!asked.is_empty(), "{what}: {}: the node got no request", flow.name);
            let mut is_well = true;
            let mut said = String::new();
            for one in &asked {
                let (well, text) = self.verdict(&config, one);
                is_well &= well;
                said += &text;
            }
            if is_well != works {
                wrong.push(format!("{}: works {works}, and explain says:\n{said}", flow.name));
            }
            let count = if works { &mut counts.worked } else { &mut counts.failed };
            *count += 1;
            counts.requests += asked.len();
        }
        self.end_noting_requests();
        let Verdicts { worked, failed, requests } = counts;
        println!("explain, {what}: {worked} flows worked and {failed} failed, {requests} requests");
        assert!(wrong.is_empty(), "{what}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
        counts
    }

    /// From now on the node notes the first packets of connections.
    pub(crate) fn note_requests(&self) {
        self.ns.nft(PROBE);
    }

    pub(crate) fn end_noting_requests(&self) {
        self.ns.nft("delete table inet probe-explain");
    }

    /// Whether the request is answered as the node is now, by whatever interface; and what is said of it.
    pub(crate) fn is_answered(&self, config: &str, asked: &Asked) -> (bool, Value) {
        let ran = self.explained(config, asked, &["--json"]);
        let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
        let is_now = |request: &Value| {
            let is_with = request["inForce"] == true && !request["with"].is_null();
            request[if is_with { "with" } else { "without" }]["ending"] == "answered"
        };
        let requests = report["requests"].as_array().expect("requests");
        (requests.iter().all(is_now), report)
    }

    /// Whether the request fares well as the node is now, and what is said of it.
    fn verdict(&self, config: &str, asked: &Asked) -> (bool, String) {
        let ran = self.explained(config, asked, &[]);
        (ran.code == Some(0), ran.stdout)
    }

    pub(super) fn explained(&self, config: &str, asked: &Asked, more: &[&str]) -> Ran {
        let to = if asked.to.contains(':') { format!("[{}]", asked.to) } else { asked.to.clone() };
        let to = format!("{to}:{}", asked.port);
        let words = ["explain", "--from", &asked.from, "--to", &to, "--proto", &asked.protocol];
        let place = if asked.nic.is_empty() { &[][..] } else { &["--in", &asked.nic] };
        let ran = self.symroute(&[&words[..], &["--config", config], place, more].concat());
        assert!(matches!(ran.code, Some(0 | 4)), "{asked}: {}", ran.stderr);
        ran
    }

    /// The requests that were noted.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.noted(["asked4", "asked6"])
    }

    /// The answers that left the node.
    pub(super) fn left(&self) -> Vec<Asked> {
        self.noted(["left4", "left6"])
    }

    fn noted(&self, sets: [&str; 2]) -> Vec<Asked> {
        let mut found = Vec::new();
        for set in sets {
            let text =
                self.ns.exec(&["nft", "-j", "list", "set", "inet", "probe-explain", set], "");
            let report: Value = serde_json::from_str(&text).expect("JSON of nft");
            let parts = report["nftables"].as_array().expect("parts").iter();
            let elements = parts.filter_map(|part| part["set"]["elem"].as_array()).flatten();
            found.extend(elements.map(|element| {
                let concat = element["elem"]["val"]["concat"].as_array();
                let concat = concat.or(element["concat"].as_array()).expect("a concatenation");
                let text = |at: usize| concat[at].as_str().unwrap_or_default().to_owned();
                Asked {
                    nic: text(0),
                    from: text(1),
                    to: text(2),
                    protocol: text(3),
                    port: concat[4].as_u64().expect("a port"),
                }
            }));
        }
        found
    }
}
