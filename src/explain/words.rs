//! Explanations as text and as JSON.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::ask::Explained;
use super::{Chosen, Departure, Ending, Packet, Side, Translated};
use crate::model::{Facts, Field, mac_text};
use crate::netfilter::walk::{Nat, NewAddress};
use crate::netlink::conntrack::Connection;
use crate::netlink::uapi::{IPS_SEEN_REPLY, RT_TABLE_LOCAL, RT_TABLE_MAIN, RTN_LOCAL};
use crate::node::View;
use crate::plan::Uplink;

/// The line for a packet that lacks symroute's mark.
const MARK_LOST: &str = "symroute's mark is not on each packet: \"symroutectl marks\" and \"symroutectl status\" say why";
/// Maximum number of connections that are shown.
const SHOWN: usize = 5;
/// Width of the first column.
const HEAD: usize = 18;

pub(super) fn table_name(table: u32) -> String {
    match table {
        RT_TABLE_MAIN => "main".into(),
        RT_TABLE_LOCAL => "local".into(),
        other => other.to_string(),
    }
}

fn way(facts: &Facts, chosen: &Chosen) -> String {
    let rule = chosen.rule.as_ref().map_or_else(String::new, |r| format!("rule {}, ", r.priority));
    let router = match chosen.way.gateway {
        Some(router) => {
            let mac = chosen.mac.map_or("not known".into(), mac_text);
            format!("via {router} (hardware address {mac})")
        }
        None => "on the link".into(),
    };
    let link = facts.link_name(chosen.way.link);
    format!("{link}: {rule}table {}, {router}", table_name(chosen.way.table))
}

/// What happens to a request on the node as it is now, in a few words.
pub(super) fn short(one: &Explained, facts: &Facts) -> String {
    let side = one.now();
    let by = |chosen: &Chosen| facts.link_name(chosen.way.link);
    let departs_well = side.departure.as_ref().is_none_or(Departure::is_well);
    match &side.ending {
        Ending::Filtered => format!("lost: {} rp_filter", one.filter.kind()),
        Ending::Refused => "lost: no route".into(),
        Ending::Dropped => "lost: dropped".into(),
        Ending::NoReply => "lost: no route back".into(),
        Ending::PassesThrough => "passes through".into(),
        _ if !departs_well => "lost: its source or answer".into(),
        Ending::Leaves(request) => format!("leaves by {}", by(request)),
        Ending::Answered(_) if side.is_symmetric(&one.packet) => "answered".into(),
        Ending::Answered(reply) => format!("reply by {}", by(reply)),
    }
}

/// The name of a protocol on the command line.
pub(crate) fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => format!("protocol {other}"),
    }
}

/// An address, with its port if there is one.
fn with_port(ip: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| ip.to_string(), |port| SocketAddr::new(ip, port).to_string())
}

/// "203.0.113.9 -> 10.21.0.10:30080 (tcp), arrives on eth1"
fn head(packet: &Packet, facts: &Facts) -> String {
    let to = with_port(packet.to, packet.port);
    let protocol = packet.protocol.map(protocol_name);
    let protocol = protocol.map_or_else(String::new, |name| format!(" ({name})"));
    let place = if packet.is_of_node() {
        "sent by the node itself".into()
    } else {
        format!("arrives on {}", facts.link_name(packet.link))
    };
    format!("{} -> {to}{protocol}, {place}", packet.from)
}

impl Translated {
    fn dnat(&self) -> Option<(String, &str)> {
        let Nat { to: NewAddress::Destination(to, port), by } = self.nat.as_ref()? else {
            return None;
        };
        Some((with_port(*to, *port), by))
    }

    fn lines(&self) -> Vec<String> {
        let (at, of) = self.which;
        let which =
            if of > 1 { format!("; {at} of {of} that may be chosen") } else { String::new() };
        self.dnat().map(|(to, by)| format!("to {to}, by {by}{which}")).into_iter().collect()
    }
}

/// A connection in conntrack: the client's port, and the uplink that the connection is bound to.
fn connection(one: &Connection, field: Field, uplinks: &[Uplink]) -> String {
    let id = one.mark & field.id_mask();
    let bound = uplinks.iter().find(|uplink| id != 0 && field.of(uplink.id) == id);
    let bound = match bound {
        Some(uplink) if one.mark & field.d() != 0 => {
            format!("bound to {} and turns round", uplink.name)
        }
        Some(uplink) => format!("bound to {}", uplink.name),
        None => "not bound".into(),
    };
    let answered = if one.status & IPS_SEEN_REPLY == 0 { "not answered" } else { "answered" };
    format!("from port {}: {bound}, mark {:#x}, {answered}", one.original.from.port(), one.mark)
}

impl Departure {
    /// Lines about a request that leaves the node, and about its reply.
    fn lines(&self, packet: &Packet, to: IpAddr, facts: &Facts) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(by) = &self.by {
            lines.push(format!("its source becomes {}, by {by}", self.source));
        }
        let leaves = facts.link_name(self.link);
        if let Some(owner) = self.owner.map(|owner| facts.link_name(owner)) {
            let source = self.source;
            let subject = if self.by.is_some() { "that".into() } else { source.to_string() };
            let drops = if self.is_tunnelled {
                ", a tunnel: strict rp_filter at its other end drops it, unless symroute is there"
            } else {
                ": a source check on the way drops it"
            };
            lines.push(format!(
                "{subject} is an address of {owner}, and the packet leaves by {leaves}{drops}"
            ));
        }
        if let Some(lost) = &self.lost {
            let (nic, kind) = (facts.link_name(lost.link), lost.filter.kind());
            let back = lost.back.as_ref().map_or("none".into(), |back| way(facts, back));
            lines.push(format!(
                "its answer arrives on {nic}, where {kind} rp_filter drops it: the way back to {to} is {back}"
            ));
        } else if self.owner.is_none() && packet.is_of_node() {
            lines.push(format!("its answer is let in at {leaves}"));
        }
        lines
    }
}

impl Explained {
    /// Text for a person.
    pub(crate) fn to_text(&self, view: &View) -> String {
        let facts = &view.facts;
        let nic = facts.link_name(self.packet.link);
        let mut out = format!("{}\n", head(&self.packet, facts));
        let mut paragraph = |head: &str, lines: Vec<String>| {
            for (at, line) in lines.iter().enumerate() {
                let _ = writeln!(out, "  {:HEAD$}{line}", if at == 0 { head } else { "" });
            }
        };
        paragraph("DNAT", self.translated.lines());
        paragraph("connections", self.connections(view));
        let untracked = self.translated.untracked_by.iter();
        let untracked = untracked.map(|by| format!("{by}: a rule keeps it from being tracked"));
        paragraph("connection", untracked.collect());
        paragraph("not understood", self.translated.unsure.clone());
        paragraph("without symroute", self.story(facts, &self.without));
        match &self.with {
            Ok(with) => {
                paragraph("with symroute", self.story(facts, with));
                if with.mark_is_lost {
                    paragraph("", vec![MARK_LOST.into()]);
                }
                if !self.in_force {
                    paragraph("", vec!["(symroute is not in force here; this is its plan)".into()]);
                }
            }
            Err(why) => {
                paragraph("with symroute", vec![format!("the same: {why}")]);
                if view.plan.leaves_out_nic(&nic) {
                    paragraph("", vec![format!("to use it, name \"{nic}\" in \"uplinks\"")]);
                }
            }
        }
        out
    }

    /// Lines about the first existing connections, and the number of others.
    fn connections(&self, view: &View) -> Vec<String> {
        let (alive, uplinks) = (&self.translated.alive, &view.plan.uplinks);
        let shown = alive.iter().take(SHOWN);
        let mut lines: Vec<_> =
            shown.map(|one| connection(one, view.settings.field, uplinks)).collect();
        if alive.len() > SHOWN {
            lines.push(format!("and {} more", alive.len() - SHOWN));
        }
        lines
    }

    /// The destination after DNAT.
    fn to(&self) -> IpAddr {
        match self.translated.nat.as_ref().map(|nat| nat.to) {
            Some(NewAddress::Destination(to, _)) => to,
            _ => self.packet.to,
        }
    }

    /// Lines that say what happens to the request.
    pub(crate) fn story(&self, facts: &Facts, side: &Side) -> Vec<String> {
        let mut lines = self.ending(facts, side);
        let departure = side.departure.as_ref();
        lines
            .extend(departure.map(|d| d.lines(&self.packet, self.to(), facts)).unwrap_or_default());
        lines
    }

    fn ending(&self, facts: &Facts, side: &Side) -> Vec<String> {
        let nic = facts.link_name(self.packet.link);
        match &side.ending {
            Ending::Dropped => vec![
                "lost: a rule of netfilter drops the request; \"symroutectl trace\" names it"
                    .into(),
            ],
            Ending::Filtered => {
                let kind = self.filter.kind();
                let mut lines = vec![format!("lost: {kind} rp_filter drops the request at {nic}")];
                lines.push(match &self.back {
                    Some(back) => {
                        format!("the way back to {} is {}", self.packet.from, way(facts, back))
                    }
                    None => format!("there is no way back to {}", self.packet.from),
                });
                lines.push(format!(
                    "net.ipv4.conf.all.rp_filter is {}, net.ipv4.conf.{nic}.rp_filter is {}; the \
                     larger one counts",
                    self.filter.all, self.filter.own
                ));
                lines
            }
            Ending::Refused => vec![format!(
                "lost: the kernel has no route for the request, or takes its source for an address \
                 of the node"
            )],
            Ending::PassesThrough => {
                vec![format!("passes through: nothing on this node has {}", self.packet.to)]
            }
            Ending::Leaves(request) if request.way.kind == RTN_LOCAL => {
                vec!["is for the node itself".into()]
            }
            Ending::Leaves(request) => vec![format!("leaves the node by {}", way(facts, request))],
            Ending::NoReply => {
                vec![format!("lost: there is no route for the reply to {}", self.packet.from)]
            }
            Ending::Answered(reply) if reply.way.link == self.packet.link => {
                vec![format!("answered: the reply leaves by {}", way(facts, reply))]
            }
            Ending::Answered(reply) => vec![
                format!("the reply leaves by {}", way(facts, reply)),
                format!(
                    "that is another interface than {nic}: a firewall or a source check drops it"
                ),
            ],
        }
    }

    /// JSON for programs.
    pub(crate) fn to_json(&self, facts: &Facts) -> Value {
        let side = |side: &Side| {
            let (word, chosen) = match &side.ending {
                Ending::Dropped => ("dropped", None),
                Ending::Filtered => ("filtered", None),
                Ending::Refused => ("refused", None),
                Ending::PassesThrough => ("passes-through", None),
                Ending::Leaves(request) => ("leaves", Some(request)),
                Ending::NoReply => ("no-reply", None),
                Ending::Answered(reply) => ("answered", Some(reply)),
            };
            let by = |chosen: &Chosen| {
                json!({
                    "interface": facts.link_name(chosen.way.link),
                    "table": chosen.way.table,
                    "rule": chosen.rule.as_ref().map(|rule| rule.priority),
                    "router": chosen.way.gateway,
                    "hardwareAddress": chosen.mac.map(mac_text),
                })
            };
            let departure = |departure: &Departure| {
                json!({
                    "interface": facts.link_name(departure.link),
                    "source": departure.source,
                    "by": departure.by,
                    "sourceIsOf": departure.owner.map(|owner| facts.link_name(owner)),
                    "answerIsDroppedAt": departure.lost.as_ref().map(|l| facts.link_name(l.link)),
                })
            };
            json!({
                "ending": word,
                "symmetric": side.is_symmetric(&self.packet),
                "well": side.is_well(&self.packet),
                "way": chosen.map(by),
                "departure": side.departure.as_ref().map(departure),
                "markIsLost": side.mark_is_lost,
                "story": self.story(facts, side),
            })
        };
        let connection = |one: &Connection| {
            json!({
                "clientPort": one.original.from.port(),
                "mark": format!("{:#x}", one.mark),
                "answered": one.status & IPS_SEEN_REPLY != 0,
            })
        };
        json!({
            "from": self.packet.from,
            "to": self.packet.to,
            "protocol": self.packet.protocol.map(protocol_name),
            "port": self.packet.port,
            "in": (!self.packet.is_of_node()).then(|| facts.link_name(self.packet.link)),
            "dnat": self.translated.dnat().map(|(to, by)| json!({"to": to, "by": by})),
            "choice": [self.translated.which.0, self.translated.which.1],
            "connections": self.translated.alive.iter().map(connection).collect::<Vec<_>>(),
            "untrackedBy": self.translated.untracked_by,
            "notUnderstood": self.translated.unsure,
            "rpFilter": {"all": self.filter.all, "interface": self.filter.own},
            "without": side(&self.without),
            "with": self.with.as_ref().ok().map(side),
            "notBound": self.with.as_ref().err(),
            "inForce": self.in_force,
        })
    }
}
