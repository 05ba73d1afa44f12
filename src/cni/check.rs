//! CHECK: proves that the node still serves the pod as ADD left it.

use super::add::Pod;
use super::{Code, Failure, Request};
use crate::config::Config;
use crate::error::Error;
use crate::node::proof::{self, Surprise};
use crate::node::{Node, pods};
use crate::state::{Attachment, State};

/// Compares the attachment's file with the request and proves that the node serves the pod. Later
/// plugins or a VPN may change the pod's routes without failing the check.
pub(super) fn check(request: &Request<'_>) -> Result<(), Failure> {
    let mut node = Node::open()?;
    let pod = Pod::of(request, &node)?;
    let wanted = pod.attachment;
    let remedy = "restart the pod, or see \"symroutectl status\" and run \"symroutectl up\"";
    let wrong =
        |what: String| Failure::new(Code::NotAsAdded, format!("symroute: {what}")).with(remedy);
    let like = |found: &Attachment| {
        (&found.addresses, found.hairpin, found.left_out)
            == (&wanted.addresses, wanted.hairpin, wanted.left_out)
    };
    let is_attached = |state: &State| {
        let found = state.attachment(&wanted.key).map_err(Error::from)?;
        if found.as_ref().is_some_and(like) {
            return Ok(());
        }
        let addresses: Vec<_> = wanted.addresses.iter().map(ToString::to_string).collect();
        Err(wrong(format!("the pod is not attached with {}", addresses.join(", "))))
    };
    let Config { settings, scope, .. } = &pod.config;
    if scope.pod && !wanted.left_out {
        is_attached(&node.state.of_pod(&wanted.key.container))?;
        let proven = pods::prove(&node.state, &wanted, settings)?;
        proven.map_err(|Surprise(why)| {
            let what = format!("symroute: in the pod: {why}");
            let remedy =
                format!("restart the pod, or see \"symroutectl status --netns {}\"", wanted.netns);
            Failure::new(Code::NotAsAdded, what).with(remedy)
        })?;
    }
    if !scope.host {
        return Ok(());
    }
    is_attached(&node.state)?;
    if wanted.left_out {
        return Ok(());
    }
    // Accepts the ruleset with and without IPVS: if kube-proxy switched since, the next ADD adapts it.
    let forms = settings.fingerprints();
    let Node { state, kernel, .. } = &mut node;
    let mut prove = || {
        let ready = proof::prove(state, kernel, &forms)?;
        proof::reaches(&ready, kernel, &wanted.addresses)?;
        let hairpin: &[_] = if wanted.hairpin { &wanted.addresses } else { &[] };
        proof::accepts_hairpin(&ready, kernel, hairpin)
    };
    prove().map_err(|Surprise(why)| wrong(why))
}
