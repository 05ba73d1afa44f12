//! Counts what is in symroute's flowtable, and looks for what needs to see it.

use crate::doctor::Finding;
use crate::doctor::offload::{of_connections, of_filters};
use crate::explain::ask::Asker;
use crate::ledger::Ledger;
use crate::node::counters;

/// Nothing where nothing is offloaded.
pub(super) fn findings(asker: &Asker<'_>, ledger: &Ledger) -> Vec<Finding> {
    let view = &asker.view;
    if !view.facts.ours.offloads() || !view.plan.offloads() {
        return Vec::new();
    }
    // Without conntrack's netlink the number is not known, and the rest is.
    let by_id = counters::offloaded(view.settings.field).unwrap_or_default();
    let uplinks = &view.plan.uplinks;
    let by: Vec<_> = uplinks.iter().map(|u| (u.name.as_str(), u.total(&by_id))).collect();
    let names: Vec<_> = uplinks.iter().map(|uplink| uplink.name.as_str()).collect();
    of_connections(&by).into_iter().chain(of_filters(&ledger.entries, &names)).collect()
}
