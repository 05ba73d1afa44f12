//! Writes packets and their summary as text and as JSON.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::Flow;
use super::join::{Actor, Asked, Packet, RP_FILTER, Step};
use super::message::{Headers, IcmpError};
use super::ruleset::Point;
use super::summary::{Direction, Summary};
use super::text::Lookup;
use crate::netlink::uapi::*;

/// Function from the index of an interface to its name.
type Names<'a> = &'a dyn Fn(u32) -> String;

fn table_name(table: u32) -> String {
    match table {
        RT_TABLE_MAIN => "table main".into(),
        RT_TABLE_LOCAL => "table local".into(),
        other => format!("table {other}"),
    }
}

fn protocol_name(protocol: u8) -> String {
    match protocol {
        IPPROTO_TCP => "tcp".into(),
        IPPROTO_UDP => "udp".into(),
        IPPROTO_ICMP => "icmp".into(),
        IPPROTO_ICMPV6 => "icmpv6".into(),
        other => format!("protocol {other}"),
    }
}

/// A number of packets in words.
fn packets(count: u64) -> String {
    if count == 1 { "1 packet".into() } else { format!("{count} packets") }
}

/// ICMP errors from the node to this address in words.
fn undelivered(count: u64, to: IpAddr) -> String {
    let (errors, packets) = if count == 1 { ("error", "packet") } else { ("errors", "packets") };
    format!("ICMP {errors} from the node to {to}: its {packets} could not be delivered")
}

/// Names of the TCP flags that are set, from the lowest bit on.
fn flags(headers: &Headers) -> String {
    let set = headers.flags.unwrap_or(0);
    let names = [" FIN", " SYN", " RST", " PSH", " ACK"].into_iter().enumerate();
    names.filter(|(bit, _)| set & 1 << bit != 0).map(|(_, name)| name).collect()
}

fn endpoint_text(headers: &Headers, sender: bool) -> String {
    let end = if sender { headers.sender() } else { headers.receiver() };
    if headers.ports.is_some() { end.to_string() } else { end.ip().to_string() }
}

/// The answer of a routing table as text.
fn answer(lookup: &Lookup) -> String {
    match (lookup.error, lookup.router) {
        (0, None) => lookup.nic.clone(),
        (0, Some(router)) => format!("{} via {router}", lookup.nic),
        (-13, _) => "prohibited".into(),
        (-22, _) => "blackhole".into(),
        _ => "no route".into(),
    }
}

impl Actor {
    /// Who dropped a packet.
    fn dropper(&self) -> String {
        match self {
            Self::Policy { table, chain } => {
                format!("by the policy of chain {chain} in nftables table {table}")
            }
            _ => self.words(),
        }
    }

    /// What changed a packet. A policy changes none: this change came before the chain's end.
    fn words(&self) -> String {
        match self {
            Self::Rule { table, chain, handle } => {
                format!(
                    "by the rule with handle {handle} of chain {chain} in nftables table {table}"
                )
            }
            Self::Policy { table, chain } => {
                format!("before the end of chain {chain} in nftables table {table}")
            }
            Self::Unseen(point) => {
                let hook = match point {
                    Point::PreroutingLast => "in prerouting",
                    Point::InputLast => "in input",
                    Point::OutputLast => "in output",
                    Point::PostroutingLast => "in postrouting",
                    Point::Forward => "before forward",
                    _ => "before nftables",
                };
                format!("{hook}, by what nftables does not show: iptables-legacy, BPF or tc")
            }
        }
    }

    /// Adds the rule or the chain with the policy to a JSON object, if there is one.
    fn add_to(&self, object: &mut Value) {
        match self {
            Self::Rule { table, chain, handle } => {
                object["rule"] = json!({"table": table, "chain": chain, "handle": handle});
            }
            Self::Policy { table, chain } => {
                object["policy"] = json!({"table": table, "chain": chain});
            }
            Self::Unseen(_) => {}
        }
    }
}

impl Step {
    fn words(&self, packet: &Packet, name: Names<'_>) -> String {
        match self {
            Self::Came { link, mark } => format!("came in by {}, mark {mark:#x}", name(*link)),
            Self::Sent { mark } => format!("the node sends it, mark {mark:#x}"),
            Self::Marked { from, to, by } => format!("mark {from:#x} -> {to:#x} {}", by.words()),
            Self::DestinationNat(to) => format!("DNATed to {to}"),
            Self::SourceNat(from) => format!("SNATed to {from}"),
            Self::Table { asked, lookup } => {
                let (table, answer) = (table_name(lookup.table), answer(lookup));
                match asked {
                    Asked::Route => format!("{table} says: {answer}"),
                    Asked::WayBack => {
                        format!("the way back to {}: {table} says: {answer}", lookup.to)
                    }
                    Asked::Rule => format!("a rule of nftables asks {table}: {answer}"),
                }
            }
            Self::Delivered => format!("delivered to the node, mark {:#x}", packet.mark),
            Self::Left { link } => format!("left by {}, mark {:#x}", name(*link), packet.mark),
            Self::Dropped { reason } if reason == RP_FILTER => {
                format!("dropped by rp_filter at {}", packet.came_by(name).unwrap_or_default())
            }
            Self::Dropped { reason } => format!("dropped: the kernel says {reason}"),
            Self::Denied(by) => format!("dropped {}", by.dropper()),
        }
    }

    fn to_json(&self, name: Names<'_>) -> Value {
        match self {
            Self::Came { link, mark } => {
                json!({"step": "came", "interface": name(*link), "mark": mark})
            }
            Self::Sent { mark } => json!({"step": "sent", "mark": mark}),
            Self::Marked { from, to, by } => {
                let mut step = json!({"step": "marked", "from": from, "to": to});
                if let Actor::Rule { .. } = by {
                    by.add_to(&mut step);
                }
                step
            }
            Self::DestinationNat(to) => json!({"step": "dnat", "to": to}),
            Self::SourceNat(from) => json!({"step": "snat", "to": from}),
            Self::Table { asked, lookup } => {
                let asked = match asked {
                    Asked::Route => "route",
                    Asked::WayBack => "way-back",
                    Asked::Rule => "rule",
                };
                let nic = (lookup.error == 0).then_some(&lookup.nic);
                json!({"step": "table", "asked": asked, "table": lookup.table, "interface": nic,
                    "router": lookup.router, "error": lookup.error})
            }
            Self::Delivered => json!({"step": "delivered"}),
            Self::Left { link } => json!({"step": "left", "interface": name(*link)}),
            Self::Dropped { reason } => json!({"step": "dropped", "reason": reason}),
            Self::Denied(by) => {
                let mut step = json!({"step": "denied"});
                by.add_to(&mut step);
                step
            }
        }
    }
}

impl Packet {
    fn came_by(&self, name: Names<'_>) -> Option<String> {
        self.steps.iter().find_map(|step| match step {
            Step::Came { link, .. } => Some(name(*link)),
            _ => None,
        })
    }

    fn left_by(&self, name: Names<'_>) -> Option<String> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::Left { link } => Some(name(*link)),
            _ => None,
        })
    }

    /// The steps of the packet as lines of text, without look-ups by rules of nftables.
    fn story(&self, name: Names<'_>) -> Vec<String> {
        let by_rule = |s: &&Step| matches!(s, Step::Table { asked: Asked::Rule, .. });
        let steps = self.steps.iter().filter(|step| !by_rule(step));
        let mut lines: Vec<String> = steps.map(|step| step.words(self, name)).collect();
        if self.icmp_error() == Some((IcmpError::Undelivered, true)) {
            lines.insert(0, undelivered(1, self.headers.to));
        }
        if self.is_lost() {
            lines.push(
                "not seen again: dropped, or taken by something that bypasses netfilter".into(),
            );
        }
        lines
    }

    /// The packet as text. `since` is its time since the trace began.
    pub(crate) fn to_text(&self, since: Duration, name: Names<'_>) -> String {
        let (headers, protocol) = (&self.headers, protocol_name(self.headers.protocol));
        let mut out = format!(
            "{:.6} s: {protocol}{} {} -> {}\n",
            since.as_secs_f64(),
            flags(headers),
            endpoint_text(headers, true),
            endpoint_text(headers, false)
        );
        for line in self.story(name) {
            let _ = writeln!(out, "  {line}");
        }
        out
    }

    pub(crate) fn to_json(&self, flow: &Flow, since: Duration, name: Names<'_>) -> Value {
        let reason = self.steps.iter().find_map(|step| match step {
            Step::Dropped { reason } => Some(reason.as_str()),
            Step::Denied(_) => Some("rule"),
            _ => None,
        });
        let dnat = self.steps.iter().find_map(|step| match step {
            Step::DestinationNat(to) => Some(to),
            _ => None,
        });
        json!({"packet": {
            "seconds": since.as_secs_f64(),
            "direction": match self.direction(flow) {
                Direction::Request => "request",
                Direction::Reply => "reply",
                Direction::Error => "error",
            },
            "protocol": protocol_name(self.headers.protocol),
            "from": endpoint_text(&self.headers, true),
            "to": endpoint_text(&self.headers, false),
            "cameBy": self.came_by(name),
            "dnatTo": dnat,
            "mark": self.mark,
            "table": self.table(),
            "leftBy": self.left_by(name),
            "dropped": reason,
            "lost": self.is_lost(),
            "steps": self.steps.iter().map(|step| step.to_json(name)).collect::<Vec<_>>(),
            "story": self.story(name),
        }})
    }
}

impl Summary {
    /// The summary as text. `time`: how long the trace ran. `missed` lists what the trace did not
    /// see, and why.
    pub(crate) fn to_text(&self, time: Duration, missed: &[String]) -> String {
        let mut out = if self.packets == 0 {
            format!(
                "no packet seen in {}: did the client send? If so, netfilter did not get it, and \
                 \"symroutectl doctor\" may know why\n",
                humantime::format_duration(time)
            )
        } else {
            format!("{} seen\n", packets(self.packets))
        };
        let mut line = |text: String| {
            let _ = writeln!(out, "  {text}");
        };
        for (nic, count) in &self.came {
            line(format!("{} of the client came in by {nic}", packets(*count)));
        }
        for ((nic, table), count) in &self.left {
            let by = table.map_or_else(
                || "by the route that the connection had".to_owned(),
                |table| format!("by {}", table_name(table)),
            );
            line(format!("{} to the client left by {nic}, {by}", packets(*count)));
        }
        if self.elsewhere > 0 {
            let count = self.elsewhere;
            line(format!("{count} of them by another interface than the request came in by"));
        }
        for (nic, count) in &self.rp_filter {
            line(format!("rp_filter dropped {} at {nic}", packets(*count)));
        }
        for (by, count) in &self.denied {
            line(format!("{} dropped {}", packets(*count), by.dropper()));
        }
        for (reason, count) in &self.reasons {
            line(format!("{} dropped: the kernel says {reason}", packets(*count)));
        }
        for (to, count) in &self.undelivered {
            line(format!("{count} {}", undelivered(*count, *to)));
        }
        if self.lost > 0 {
            let lost = packets(self.lost);
            line(format!("{lost} not seen again: dropped, or taken past netfilter"));
        }
        for (table, chain) in &self.chains {
            line(format!("\"nft -a list chain {table} {chain}\" shows the rule"));
        }
        for what in missed {
            line(format!("not seen: {what}"));
        }
        out
    }

    pub(crate) fn to_json(&self, version: u32, missed: &[String]) -> Value {
        let left = self.left.iter().map(
            |((nic, table), count)| json!({"interface": nic, "table": table, "packets": count}),
        );
        let denied = self.denied.iter().map(|(by, count)| {
            let mut drop = json!({"packets": count});
            by.add_to(&mut drop);
            drop
        });
        let reasons = self.reasons.iter();
        let reasons = reasons.map(|(reason, count)| json!({"reason": reason, "packets": count}));
        json!({"summary": {
            "version": version,
            "packets": self.packets,
            "cameBy": self.came,
            "leftBy": left.collect::<Vec<_>>(),
            "elsewhere": self.elsewhere,
            "rpFilter": self.rp_filter,
            "dropped": self.dropped,
            "droppedBy": denied.chain(reasons).collect::<Vec<_>>(),
            "undelivered": self.undelivered,
            "lost": self.lost,
            "notSeen": missed,
        }})
    }
}
