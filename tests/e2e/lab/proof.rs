//! Proof that the plugin helps, for each field report. Flows work, and each reply leaves through
//! the NIC of its request. No filter drops a packet, and afterwards the node is as before.

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
    /// Takes a snapshot of the node before the plugin runs.
    pub(crate) fn begin(node: &'a Node, router: &'a Router) -> Self {
        let (strict, source) = (node.rp_filter_drops(), router.dropped());
        Self { node, router, before: Snapshot::take(node), strict, source }
    }

    /// Runs the flows at once. `both_ways` is the number of address and port pairs whose packets
    /// the router must see in both directions, each pair on one of `nics` alone.
    pub(crate) fn assert_flows_work(&self, flows: &[Flow<'_>], nics: &[&str], both_ways: usize) {
        let capture = Capture::start(&self.router.ns);
        assert_all_work(flows);
        let symmetric = assert_replies_symmetric(&capture.stop(), nics, true);
        assert_eq!(symmetric, both_ways, "flows that the capture saw both ways");
        self.assert_nothing_dropped();
    }

    /// Asserts that neither strict `rp_filter` nor the source check has dropped a packet since
    /// [`Self::begin`].
    pub(crate) fn assert_nothing_dropped(&self) {
        assert_eq!(self.node.rp_filter_drops(), self.strict, "drops of strict rp_filter");
        assert_eq!(self.router.dropped(), self.source, "drops of the source check");
    }

    /// Asserts that rules, routes, tables, sysctls and files are as at [`Self::begin`].
    pub(crate) fn assert_as_before(&self) {
        self.before.assert_unchanged(&Snapshot::take(self.node));
    }
}
