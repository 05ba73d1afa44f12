//! Examines the node without changing it.

mod bpf;
mod bypass;
mod drops;
pub(crate) mod flowtables;
mod legacy;
mod offload;
mod requests;
pub(crate) mod sample;
mod tproxy;
mod udp;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::{Finding, marks, plan};
use crate::config::Settings;
use crate::error::Error;
use crate::explain::ask::Asker;
use crate::ledger;
use crate::model::RpFilter;
use crate::names::ALL_LINKS;
use crate::netstat;
use crate::node::{Node, sysctl};
use crate::state::AgentLock;

pub(crate) use tproxy::remedies;

/// All findings, the most severe first. `watched`: how long drops are counted.
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
            found.extend(requests::findings(&mut asker)?);
            found.extend(marks::clashes(&ledger, &asker.view, field));
            found.extend(plan::of_view(&asker.view, in_force, &filters(&asker)?));
            found.extend(tproxy::findings(&mut asker)?);
            found.extend(bypass::findings(&mut asker)?);
            found.extend(offload::findings(&asker, &ledger));
            found.extend(udp::findings(&mut asker.kernel.netfilter, &asker.view.facts));
            found.extend(plan::of_valid_mark(sysctl::src_valid_mark_of(ALL_LINKS)?.0));
            found.extend(drops::findings(before, watched, Some(&mut asker))?);
        }
        Err(Error::Config(invalid)) => {
            found.push(plan::of_refusal(&invalid));
            found.extend(marks::without_plan(&ledger, field));
            found.extend(drops::findings(before, watched, None)?);
        }
        Err(other) => return Err(other),
    }
    found.extend(ledger.unseen.iter().map(Finding::from));
    found.extend(legacy::findings(&mut node.kernel.netfilter));
    found.extend(plan::of_agent(in_force, agent_runs));
    found.sort_by_key(|finding| Reverse(finding.severity));
    Ok(found)
}

/// `rp_filter` of each uplink with IPv4, by index.
fn filters(asker: &Asker<'_>) -> Result<BTreeMap<u32, RpFilter>, Error> {
    let facts = asker.facts();
    let uplinks = asker.view.plan.uplinks.iter();
    let with_ipv4 = uplinks.filter(|uplink| facts.rp_filter.contains_key(&uplink.link));
    with_ipv4.map(|u| Ok((u.link, sysctl::rp_filter_of(&u.name)?))).collect()
}
