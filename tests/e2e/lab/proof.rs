//! What every field report has to show once the plugin is there: flows work, each reply leaves by
//! the NIC of its request, nothing is dropped on the way, and afterwards the node is as before.

use super::capture::{Capture, assert_replies_symmetric};
use super::flows::{Flow, assert_all_work};
use super::node::Node;
use super::router::Router;
use super::snapshot::Snapshot;

pub(crate) struct Proof<'a> {
    node: &'a Node,
    router: &'a Router,
    before: Snapshot,
    strict: u64,
    source: u64,
}

impl<'a> Proof<'a> {
    /// Remembers the node as it is before the plugin runs.
    pub(crate) fn begin(node: &'a Node, router: &'a Router) -> Self {
        let (strict, source) = (node.rp_filter_drops(), router.dropped());
        Self { node, router, before: Snapshot::take(node), strict, source }
    }

    /// Runs the flows at once. `both_ways` is how many address and port pairs the router must see
    /// packets of in both directions on the node's `nics`, each on one NIC alone.
    pub(crate) fn assert_flows_work(&self, flows: &[Flow<'_>], nics: &[&str], both_ways: usize) {
        let capture = Capture::start(&self.router.ns);
        assert_all_work(flows);
        let symmetric = assert_replies_symmetric(&capture.stop(), nics, true);
        assert_eq!(symmetric, both_ways, "flows that the capture saw both ways");
        self.assert_nothing_dropped();
    }

    /// Neither strict `rp_filter` nor the source check has dropped anything since the beginning.
    pub(crate) fn assert_nothing_dropped(&self) {
        assert_eq!(self.node.rp_filter_drops(), self.strict, "drops of strict rp_filter");
        assert_eq!(self.router.dropped(), self.source, "drops of the source check");
    }

    /// The plugin has left: rules, routes, tables, sysctls and files are those of the beginning.
    pub(crate) fn assert_as_before(&self) {
        self.before.assert_unchanged(&Snapshot::take(self.node));
    }
}
