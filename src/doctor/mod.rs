//! Diagnoses a node's replies, with or without symroute: findings with evidence and remedy.

mod bypass;
pub(crate) mod conflist;
mod drops;
pub(crate) mod fix;
mod legacy;
pub(crate) mod look;
pub(crate) mod marks;
pub(crate) mod offload;
mod plan;
mod tproxy;
pub(crate) mod udp;
mod words;

use crate::error::Error;
use crate::explain::Ending;
use crate::explain::ask::Explained;
use crate::model::Facts;

/// Severity of a finding, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// Worth knowing; no packets are lost.
    Note,
    /// Packets are lost, or may be, under conditions that the finding names.
    Warning,
    /// Packets are lost now, or would be.
    Problem,
}

impl Severity {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One diagnosis. Each id has a row in docs/troubleshooting.md.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    pub(crate) what: String,
    /// Lines that support the finding.
    pub(crate) evidence: Vec<String>,
    pub(crate) remedy: String,
}

/// The ids of all findings.
#[cfg(test)]
pub(crate) const IDS: [&str; 27] = [
    REFUSED,
    RP_FILTER,
    ELSEWHERE,
    NO_REPLY,
    DROPS,
    STATE,
    ADVICE,
    BEHIND,
    NOT_IN_FORCE,
    NO_AGENT,
    LOOSE,
    MARK_CLASH,
    MARK_UNSEEN,
    TPROXY,
    TUNNEL,
    NOTRACK,
    EARLY_CHECK,
    FLOWTABLE,
    OFFLOADED,
    IPVS,
    LEGACY,
    VALID_MARK,
    UDP,
    CONFLIST,
    OUT_OF_STEP,
    KERNEL,
    BPF,
];

const REFUSED: &str = "settings-refused";
const RP_FILTER: &str = "rp-filter";
const ELSEWHERE: &str = "reply-elsewhere";
const NO_REPLY: &str = "no-reply-route";
const DROPS: &str = "rp-filter-drops";
const STATE: &str = "node-state";
const ADVICE: &str = "advice";
const BEHIND: &str = "networks-behind";
const NOT_IN_FORCE: &str = "not-in-force";
const NO_AGENT: &str = "no-agent";
const LOOSE: &str = "loose-rp-filter";
const MARK_CLASH: &str = "mark-clash";
const MARK_UNSEEN: &str = "mark-unseen";
const TPROXY: &str = "tproxy";
const TUNNEL: &str = "tunnel-drops";
const NOTRACK: &str = "notrack";
const EARLY_CHECK: &str = "early-source-check";
const FLOWTABLE: &str = "flowtable";
const OFFLOADED: &str = "offloaded";
const LEGACY: &str = "legacy-rules";
const VALID_MARK: &str = "src-valid-mark";
const UDP: &str = "unbound-udp";
const CONFLIST: &str = "conflist-order";
const KERNEL: &str = "kernel-features";
const OUT_OF_STEP: &str = "conflist-settings";
const BPF: &str = "bpf-routing";
const IPVS: &str = "ipvs-conntrack";

/// A problem if the error means that the kernel lacks a feature; `None` for other errors.
pub(crate) fn of_kernel(error: &Error) -> Option<Finding> {
    error.is_of_kernel().then(|| Finding {
        id: KERNEL,
        severity: Severity::Problem,
        what: "the kernel lacks what symroute needs".into(),
        evidence: vec![error.to_string()],
        remedy: error.remedy().unwrap_or_default().into(),
    })
}

/// A finding if the node loses a request from outside, or sends the reply through another interface. It is a
/// note if no uplink is wanted there, because then the node may not be meant to answer.
pub(crate) fn of_request(facts: &Facts, one: &Explained, is_wanted: bool) -> Option<Finding> {
    let nic = facts.link_name(one.packet.link);
    let (to, now) = (one.packet.to, one.now());
    let (id, severity, what) = match &now.ending {
        Ending::Filtered => {
            let kind = one.filter.kind();
            (RP_FILTER, Severity::Problem, format!("{kind} rp_filter drops requests at {nic}"))
        }
        Ending::Answered(reply) if reply.way.link != one.packet.link => {
            let by = facts.link_name(reply.way.link);
            let what = format!("replies to requests by {nic} leave by {by}");
            (ELSEWHERE, Severity::Problem, what)
        }
        Ending::NoReply => {
            let what = format!("there is no route for replies to requests by {nic}");
            (NO_REPLY, Severity::Warning, what)
        }
        Ending::Answered(_)
        | Ending::Leaves(_)
        | Ending::Refused
        | Ending::Dropped
        | Ending::PassesThrough => {
            return None;
        }
    };
    let severity = if is_wanted { severity } else { Severity::Note };
    let mut evidence = vec![format!("a request from {} to {to}:", one.packet.from)];
    evidence.extend(one.story(facts, now).into_iter().map(|line| format!("  {line}")));
    let remedy = match &one.with {
        _ if one.translated.untracked_by.is_some() => {
            "symroute binds only tracked connections: remove the rule \"notrack\" that \
             \"symroutectl explain\" names, or limit it to other traffic"
                .into()
        }
        Ok(with) if with.mark_is_lost => {
            let would = if one.in_force { "is" } else { "would be" };
            format!(
                "symroute's mark {would} removed: \"symroutectl marks\" names the program, and \
                 \"symroutectl status\" what is missing"
            )
        }
        Ok(with) if with.is_symmetric(&one.packet) && !one.in_force => {
            format!("symroute answers them by {nic}: symroutectl conflist add, or symroutectl up")
        }
        Err(why) if one.is_by_uplink => {
            format!("symroute leaves them alone ({why}): \"symroutectl status\" has the remedy")
        }
        Err(why) => format!("symroute leaves them alone ({why}): name {nic} in \"uplinks\""),
        Ok(_) => format!(
            "\"symroutectl status\" names the reason: {nic} has no router (\"gateways\"), rules of another \
             program come first (\"rulePriority\"), or state is missing (symroutectl up)"
        ),
    };
    Some(Finding { id, severity, what, evidence, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn every_finding_has_a_row_in_the_table_of_symptoms() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md");
        let text = fs::read_to_string(file).unwrap();
        for id in IDS {
            assert!(text.contains(&format!("| `doctor`: `{id}`")), "{id}");
        }
    }
}
