//! Looks at the node. Changes nothing.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use super::{
    ADVICE, BEHIND, DROPS, Finding, LOOSE, NO_AGENT, NOT_IN_FORCE, REFUSED, STATE, Severity, marks,
    of_request,
};
use crate::config::Settings;
use crate::error::Error;
use crate::explain::Packet;
use crate::explain::ask::Asker;
use crate::ledger;
use crate::model::{Facts, Family};
use crate::netlink::uapi::{IFF_LOOPBACK, IFF_UP};
use crate::netstat;
use crate::node::Node;
use crate::node::apply::describe;
use crate::plan::Note;
use crate::plan::proof::OUTSIDE;
use crate::state::AgentLock;

/// All that is found, the gravest first. `watched`: for how long drops are counted.
pub(crate) fn findings(
    node: &mut Node,
    settings: &Settings,
    watched: Duration,
) -> Result<Vec<Finding>, Error> {
    let before = netstat::rp_filter_drops();
    let mut found = Vec::new();
    let agent_runs = AgentLock::is_held(&node.state);
    let record = node.record()?;
    let in_force = record.is_some();
    let field = record.as_ref().map(|record| record.settings.field);
    let ledger = ledger::read::ledger(&mut node.kernel, record.as_ref());
    match Asker::of(node, settings) {
        Ok(mut asker) => {
            let requests = requests(asker.facts(), &asker);
            for packet in requests {
                for one in asker.explain(packet)? {
                    let finding = of_request(asker.facts(), &one);
                    // One address of an interface is enough to show it.
                    let is_new =
                        |f: &Finding| !found.iter().any(|known: &Finding| known.what == f.what);
                    found.extend(finding.filter(is_new));
                }
            }
            found.extend(of_plan(&asker, in_force));
            found.extend(marks::clashes(&ledger, &asker.view, field));
        }
        Err(Error::Config(invalid)) => {
            found.push(Finding {
                id: REFUSED,
                severity: Severity::Problem,
                what: format!("the settings can't be kept: {invalid}"),
                evidence: Vec::new(),
                remedy: "correct them, then: symroutectl up".into(),
            });
            found.extend(marks::without_plan(&ledger, field));
        }
        Err(other) => return Err(other),
    }
    found.extend(ledger.unseen.iter().map(Finding::from));
    found.extend(of_agent(in_force, agent_runs));
    found.extend(of_drops(before, watched));
    found.sort_by_key(|finding| Reverse(finding.severity));
    Ok(found)
}

/// A request from outside to each address of the node, by the interface that has the address.
fn requests(facts: &Facts, asker: &Asker<'_>) -> Vec<Packet> {
    let real = |link: u32| {
        facts.link(link).is_some_and(|l| l.flags & IFF_LOOPBACK == 0 && l.flags & IFF_UP != 0)
    };
    let own = asker
        .public_addresses()
        .filter(|address| real(address.link) && !asker.leads_inside(address.link));
    let client = |ip: IpAddr| OUTSIDE.of(Family::of(ip));
    own.map(|a| Packet::plain(client(a.ip), a.ip, a.link)).collect()
}

fn of_plan(asker: &Asker<'_>, in_force: bool) -> Vec<Finding> {
    let view = &asker.view;
    let from = |id, severity, note: &Note| Finding {
        id,
        severity,
        what: note.what.clone(),
        evidence: Vec::new(),
        remedy: note.way_out.clone(),
    };
    let mut found: Vec<Finding> = Vec::new();
    found.extend(view.plan.unanswered.iter().map(|note| from(BEHIND, Severity::Warning, note)));
    if !in_force {
        return found;
    }
    found.extend(view.plan.notes.iter().map(|note| from(ADVICE, Severity::Warning, note)));
    if !view.steps.is_empty() {
        found.push(Finding {
            id: STATE,
            severity: Severity::Warning,
            what: "what is in force is not what this node needs: another program has changed it, \
                   or the node has changed since"
                .into(),
            evidence: view.steps.iter().map(|step| describe(step, &view.facts)).collect(),
            remedy: "symroutectl up, or run the agent, which does that within a second".into(),
        });
    }
    for uplink in &view.plan.uplinks {
        let Some(value) = view.facts.rp_filter.get(&uplink.link).filter(|value| **value != 1)
        else {
            continue;
        };
        found.push(Finding {
            id: LOOSE,
            severity: Severity::Note,
            what: format!("rp_filter of {} is {value}, and not strict", uplink.name),
            evidence: Vec::new(),
            remedy: format!(
                "symroute does not need it loose: sysctl -w net.ipv4.conf.{}.rp_filter=1",
                uplink.name
            ),
        });
    }
    found
}

fn of_agent(in_force: bool, runs: bool) -> Option<Finding> {
    let (id, severity, what, remedy) = match (in_force, runs) {
        (true, true) => return None,
        (true, false) => (
            NO_AGENT,
            Severity::Note,
            "no agent runs here, so changes of routes are followed by the next ADD or \"up\"",
            "install.sh install, or the DaemonSet of conf/kubernetes",
        ),
        (false, _) => (
            NOT_IN_FORCE,
            Severity::Note,
            "symroute is not in force on this node",
            "symroutectl up, or let \"install.sh install\" do it at each boot",
        ),
    };
    let (what, remedy) = (what.into(), remedy.into());
    Some(Finding { id, severity, what, evidence: Vec::new(), remedy })
}

/// Whether the reverse path filter drops packets now.
fn of_drops(before: Option<u64>, watched: Duration) -> Option<Finding> {
    let before = before?;
    thread::sleep(watched);
    let drops = netstat::rp_filter_drops()?.saturating_sub(before);
    (drops > 0).then(|| Finding {
        id: DROPS,
        severity: Severity::Problem,
        what: "rp_filter drops packets at this moment".into(),
        evidence: vec![format!(
            "TcpExtIPReversePathFilter grew by {drops} while doctor looked, to {}",
            before + drops
        )],
        remedy: "symroutectl explain --from CLIENT --to ADDRESS says which look-up decides".into(),
    })
}
