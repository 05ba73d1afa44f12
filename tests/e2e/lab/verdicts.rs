//! Compares the outcome of flows on the wire with the verdict of `explain`.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::Value;

use super::flows::{Flow, PATIENT};
use super::node::Node;
use super::plugin::Ran;
use crate::agent::plugin_object;

/// How long a flow may take that is expected to fail. Other tests show that it fails for longer.
const SHORT: Duration = Duration::from_millis(400);
/// Chains that record packets. They see the first packet of a connection after conntrack and before
/// DNAT, and the interface of an answer after all NAT.
const CHAINS: &str = "
  chain arrive {
    type filter hook prerouting priority -199; policy accept;
    ct state new jump note
  }
  chain send {
    type filter hook output priority -199; policy accept;
    ct state new jump note
  }
  chain leave {
    type filter hook postrouting priority 300; policy accept;
    oifname != \"lo\" ct direction reply jump note_left
  }";

/// The table that records packets, with a set for each word, family and protocol. With more than
/// five fields, nft prints elements wrongly.
fn probe() -> String {
    let mut sets = String::new();
    let mut asked = String::from("iifname \"lo\" return\noifname \"lo\" return\n");
    let mut left = String::new();
    for (family, ip) in [("4", "ip"), ("6", "ip6")] {
        for protocol in PROTOCOLS {
            for word in ["asked", "left"] {
                let _ = writeln!(
                    sets,
                    "set {word}{family}_{protocol} {{
                       type ifname . ipv{family}_addr . ipv{family}_addr . inet_service . inet_service;
                       flags dynamic; size 1024;
                     }}"
                );
            }
            let ports = |near: &str, far: &str| format!("{protocol} {near} . {protocol} {far}");
            let _ = writeln!(
                asked,
                "add @asked{family}_{protocol} {{ iifname . {ip} saddr . {ip} daddr . {} }}",
                ports("dport", "sport")
            );
            let _ = writeln!(
                left,
                "add @left{family}_{protocol} {{ oifname . {ip} daddr . {ip} saddr . {} }}",
                ports("sport", "dport")
            );
        }
    }
    format!(
        "table inet probe-explain {{
           {sets}
           chain note {{ {asked} }}
           chain note_left {{ {left} }}
           {CHAINS}
         }}"
    )
}

const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// A request or an answer, with NIC, client, server, protocol and ports. For a request, `nic` is
/// where its first packet arrived, or empty if the node sent it. For an answer it is where it left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(super) nic: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(super) protocol: String,
    pub(crate) port: u64,
    /// The client's port, which distinguishes answers to an earlier connection.
    pub(super) client_port: u64,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nic, from, to, protocol, port, .. } = self;
        write!(f, "{from} to {to} {protocol} {port} by {nic:?}")
    }
}

/// Whether two requests are equal except for the client's port.
pub(super) fn is_same(a: &Recorded, b: &Recorded) -> bool {
    Recorded { client_port: b.client_port, ..a.clone() } == *b
}

/// The requests without those that differ only in the client's port, which `explain` does not ask
/// for.
pub(crate) fn each_once(asked: &[Recorded]) -> Vec<&Recorded> {
    let mut found: Vec<&Recorded> = Vec::new();
    for one in asked {
        if !found.iter().any(|known| is_same(known, one)) {
            found.push(one);
        }
    }
    found
}

/// The part of a request's report that describes the node as it is now, with or without symroute.
pub(crate) fn side_in_force(request: &Value) -> &Value {
    let is_with = request["inForce"] == true && !request["with"].is_null();
    &request[if is_with { "with" } else { "without" }]
}

/// Number of verdicts that were compared with packets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdicts {
    /// Flows that worked; `failed` counts the others.
    pub(crate) worked: usize,
    pub(crate) failed: usize,
    /// Requests of the flows that the node got.
    pub(crate) requests: usize,
}

impl Node {
    /// Runs these flows one after the other and explains each request that the node gets. A flow
    /// has to work exactly if `explain` finds no fault in any of its requests.
    pub(crate) fn assert_verdicts(
        &self,
        what: &str,
        settings: &Value,
        flows: &[Flow<'_>],
        broken: &[&str],
    ) -> Verdicts {
        let config = plugin_object(self, settings);
        self.record_requests();
        let mut counts = Verdicts::default();
        let mut wrong = Vec::new();
        for flow in flows {
            for set in ["asked4", "asked6"] {
                for protocol in PROTOCOLS {
                    self.ns.nft(&format!("flush set inet probe-explain {set}_{protocol}"));
                }
            }
            let deadline = if broken.contains(&flow.name.as_str()) { SHORT } else { PATIENT };
            let works = flow.failure(deadline).is_none();
            let asked = self.recorded_requests();
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
        self.stop_recording();
        let Verdicts { worked, failed, requests } = counts;
        println!("explain, {what}: {worked} flows worked and {failed} failed, {requests} requests");
        assert!(wrong.is_empty(), "{what}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
        counts
    }

    /// Makes the node record the first packets of connections.
    pub(crate) fn record_requests(&self) {
        self.ns.nft(&probe());
    }

    pub(crate) fn stop_recording(&self) {
        self.ns.nft("delete table inet probe-explain");
    }

    /// Whether `explain` says that the request is answered now, through any interface; and its
    /// report.
    pub(crate) fn is_explained_as_answered(
        &self,
        config: &str,
        request: &Recorded,
    ) -> (bool, Value) {
        let ran = self.explained(config, request, &["--json"]);
        let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
        let requests = report["requests"].as_array().expect("requests");
        let is_answered = |request: &Value| side_in_force(request)["ending"] == "answered";
        (requests.iter().all(is_answered), report)
    }

    /// Whether `explain` finds no fault in the request now; and its text.
    fn verdict(&self, config: &str, request: &Recorded) -> (bool, String) {
        let ran = self.explained(config, request, &[]);
        (ran.code == Some(0), ran.stdout)
    }

    pub(super) fn explained(&self, config: &str, request: &Recorded, more: &[&str]) -> Ran {
        let to =
            if request.to.contains(':') { format!("[{}]", request.to) } else { request.to.clone() };
        let to = format!("{to}:{}", request.port);
        let words = ["explain", "--from", &request.from, "--to", &to, "--proto", &request.protocol];
        let place = if request.nic.is_empty() { &[][..] } else { &["--in", &request.nic] };
        let ran = self.symroute(&[&words[..], &["--config", config], place, more].concat());
        assert!(matches!(ran.code, Some(0 | 4)), "{request}: {}", ran.stderr);
        ran
    }

    /// The recorded requests.
    pub(crate) fn recorded_requests(&self) -> Vec<Recorded> {
        self.recorded("asked")
    }

    /// The recorded answers.
    pub(super) fn recorded_answers(&self) -> Vec<Recorded> {
        self.recorded("left")
    }

    fn recorded(&self, word: &str) -> Vec<Recorded> {
        let text = self.ns.exec(&["nft", "-j", "list", "table", "inet", "probe-explain"], "");
        let report: Value = serde_json::from_str(&text).expect("JSON of nft");
        let mut found = Vec::new();
        for set in report["nftables"].as_array().expect("parts").iter().map(|part| &part["set"]) {
            let name = set["name"].as_str().unwrap_or_default();
            let Some((_, protocol)) = name.strip_prefix(word).and_then(|rest| rest.split_once('_'))
            else {
                continue;
            };
            for element in set["elem"].as_array().into_iter().flatten() {
                let concat = element["elem"]["val"]["concat"].as_array();
                let concat = concat.or(element["concat"].as_array()).expect("a concatenation");
                let text = |at: usize| concat[at].as_str().unwrap_or_default().to_owned();
                let number = |at: usize| concat[at].as_u64().expect("a port");
                found.push(Recorded {
                    nic: text(0),
                    from: text(1),
                    to: text(2),
                    protocol: protocol.to_owned(),
                    port: number(3),
                    client_port: number(4),
                });
            }
        }
        found
    }
}
