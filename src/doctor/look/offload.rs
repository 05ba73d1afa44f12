//! Counts the connections in symroute's flowtable, and looks for filters that need to see their packets.

use crate::doctor::Finding;
use crate::doctor::offload::{of_connections, of_filters};
use crate::explain::ask::Asker;
use crate::ledger::Ledger;
use crate::node::counters;

/// Findings about offloading; none if the node does not offload.
pub(super) fn findings(asker: &Asker<'_>, ledger: &Ledger) -> Vec<Finding> {
    let view = &asker.view;
    if !view.facts.ours.offloads() || !view.plan.offloads() {
        return Vec::new();
    }
    // Without conntrack's netlink the count is unknown; the check of the filters still works.
    let by_id = counters::offloaded(view.settings.field).unwrap_or_default();
    let uplinks = &view.plan.uplinks;
    let by: Vec<_> = uplinks.iter().map(|u| (u.name.as_str(), u.total(&by_id))).collect();
    let names: Vec<_> = uplinks.iter().map(|uplink| uplink.name.as_str()).collect();
    of_connections(&by).into_iter().chain(of_filters(&ledger.entries, &names)).collect()
}
