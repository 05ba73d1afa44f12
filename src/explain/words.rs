//! What was found, in plain words and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::ask::Explained;
use super::{Chosen, Ending};
use crate::model::Facts;
use crate::netlink::uapi::{RT_TABLE_LOCAL, RT_TABLE_MAIN};

/// The width of the first column.
const HEAD: usize = 18;

fn table_name(table: u32) -> String {
    match table {
        RT_TABLE_MAIN => "main".into(),
        RT_TABLE_LOCAL => "local".into(),
        other => other.to_string(),
    }
}

fn way(facts: &Facts, chosen: &Chosen) -> String {
    let rule = chosen.rule.as_ref().map_or_else(String::new, |r| format!("rule {}, ", r.priority));
    let router = match chosen.way.gateway {
        Some(router) => format!("via {router}"),
        None => "on the link".into(),
    };
    let link = facts.link_name(chosen.way.link);
    format!("{link}: {rule}table {}, {router}", table_name(chosen.way.table))
}

impl Explained {
    /// For a person.
    pub(crate) fn to_text(&self, facts: &Facts) -> String {
        let nic = facts.link_name(self.packet.link);
        let mut out = format!("{} -> {}, arrives on {nic}\n", self.packet.from, self.packet.to);
        let mut paragraph = |head: &str, lines: Vec<String>| {
            for (at, line) in lines.iter().enumerate() {
                let _ = writeln!(out, "  {:HEAD$}{line}", if at == 0 { head } else { "" });
            }
        };
        paragraph("without symroute", self.story(facts, &self.without));
        match (&self.with, &self.not_bound) {
            (Some(with), _) => {
                paragraph("with symroute", self.story(facts, with));
                if !self.in_force {
                    paragraph("", vec!["(symroute is not in force here; this is its plan)".into()]);
                }
            }
            (None, why) => {
                let why = why.as_deref().unwrap_or("it binds no such connection");
                paragraph("with symroute", vec![format!("the same: {why}")]);
            }
        }
        out
    }

    /// What becomes of the request, in lines.
    pub(crate) fn story(&self, facts: &Facts, ending: &Ending) -> Vec<String> {
        let nic = facts.link_name(self.packet.link);
        match ending {
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

    /// For programs.
    pub(crate) fn to_json(&self, facts: &Facts) -> Value {
        let side = |ending: &Ending| {
            let (word, chosen) = match ending {
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
                })
            };
            json!({
                "ending": word,
                "symmetric": ending.is_symmetric(&self.packet),
                "way": chosen.map(by),
                "story": self.story(facts, ending),
            })
        };
        json!({
            "from": self.packet.from,
            "to": self.packet.to,
            "in": facts.link_name(self.packet.link),
            "rpFilter": {"all": self.filter.all, "interface": self.filter.own},
            "without": side(&self.without),
            "with": self.with.as_ref().map(side),
            "notBound": self.not_bound,
            "inForce": self.in_force,
        })
    }
}
