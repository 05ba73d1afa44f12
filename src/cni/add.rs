//! ADD: attach a pod.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::statfs::{NSFS_MAGIC, PROC_SUPER_MAGIC, statfs};
use serde_json::value::RawValue;

use super::{
    Code, Failure, Request, annotations, log_failures, result, settle_capabilities, version,
};
use crate::config::{self, Config};
use crate::error::Error;
use crate::logging;
use crate::names;
use crate::node::{Node, pods};
use crate::state::{Attachment, State};

/// Checked input of an ADD or CHECK.
pub(super) struct Pod<'a> {
    pub(super) config: Config,
    pub(super) prev_result: &'a RawValue,
    /// The attachment that ADD writes and CHECK expects.
    pub(super) attachment: Attachment,
}

impl<'a> Pod<'a> {
    /// Checks the network namespace first, then reads the settings, the annotations and prevResult.
    pub(super) fn of(request: &'a Request<'_>, node: &Node) -> Result<Self, Failure> {
        own_namespace(request.netns, node)?;
        let config = config::parse(&request.config).map_err(Error::from)?;
        settle_capabilities(config.scope.pod);
        logging::start(&config.log);
        let own = annotations::read(&request.config).map_err(Error::from)?;
        let Some(prev_result) = request.prev_result.as_deref() else {
            let msg = "missing \"prevResult\": symroute must be chained after a plugin that gives \
                       the pod its interface";
            return Err(Failure::new(Code::Config, msg)
                .with("list it behind the primary plugin in \"plugins\" of a conflist"));
        };
        let addresses = result::addresses(prev_result)?;
        let (key, left_out) = (request.key.clone(), !own.enabled);
        let hairpin = own.hairpin && !left_out;
        let netns = request.netns.to_string();
        // Only a pod's own data plane needs the routers.
        let gateways = if config.scope.pod {
            result::gateways(prev_result, &key.ifname)
        } else {
            BTreeMap::new()
        };
        let attachment = Attachment { key, netns, addresses, hairpin, left_out, gateways };
        Ok(Self { config, prev_result, attachment })
    }
}

/// Attaches the pod and returns prevResult as the answer. A failed ADD leaves nothing behind.
pub(super) fn add(request: &Request<'_>) -> Result<String, Failure> {
    let mut node = Node::open()?;
    let pod = Pod::of(request, &node)?;
    // Converts prevResult before anything is written, because the conversion may fail.
    let answer = version::answer(pod.prev_result, &request.version)?;
    let Config { settings, scope, .. } = &pod.config;
    let in_pod = scope.pod && !pod.attachment.left_out;
    let was_attached = in_pod && pods::attach(&node.state, settings, &pod.attachment)?;
    if scope.host {
        let attached = node.attach(settings, &pod.attachment);
        if attached.is_err() && in_pod && !was_attached {
            log_failures(request, &pods::detach(&node.state, &pod.attachment.key));
        }
        attached?;
    }
    Ok(answer)
}

/// Reconciles the whole node after an ADD has answered, unless the last full reconcile, by an agent or
/// by an ADD, is less than a minute old. Skips it while another process reconciles the node.
pub(super) fn reconcile_if_overdue() {
    if !Node::is_overdue(&State::new(names::STATE_DIR)) {
        return;
    }
    match Node::open().and_then(|mut node| node.reconcile_if_used()) {
        Ok(()) => {}
        Err(error @ Error::Busy { .. }) => log::debug!("no look at the node: {error}"),
        Err(error) => log::warn!("a look at the node: {error}"),
    }
}

/// Checks that `CNI_NETNS` is a network namespace and not the node's own, which would be a mistake of
/// the runtime.
fn own_namespace(netns: &str, node: &Node) -> Result<(), Failure> {
    let fail = |msg: String| Failure::new(Code::NetworkNamespace, msg);
    let identity = |path: &str| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let open = |error: &dyn std::fmt::Display| format!("open network namespace {netns}: {error}");
    let theirs = identity(netns).map_err(|error| fail(open(&error)))?;
    // Asking the socket takes a third of the time, but not every kernel supports it.
    let own = (node.kernel.rtnetlink.namespace())
        .or_else(|_| identity("/proc/self/ns/net"))
        .map_err(|error| fail(format!("open own network namespace: {error}")))?;
    // All namespaces have the same device number.
    if theirs.0 != own.0 {
        let kind = statfs(netns).map_err(|error| fail(open(&error)))?.filesystem_type();
        if kind != NSFS_MAGIC && kind != PROC_SUPER_MAGIC {
            return Err(fail(format!("CNI_NETNS {netns} is no network namespace"))
                .with("the runtime has to pass a path like /run/netns/NAME or /proc/PID/ns/net"));
        }
    }
    if theirs == own {
        let msg = format!("CNI_NETNS {netns} is the network namespace of the node itself");
        return Err(fail(msg).with("the runtime has to pass the pod's"));
    }
    Ok(())
}
