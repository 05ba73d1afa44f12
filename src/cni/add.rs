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

/// What ADD and CHECK are about.
pub(super) struct Pod<'a> {
    pub(super) config: Config,
    pub(super) prev_result: &'a RawValue,
    /// The attachment that ADD writes.
    pub(super) attachment: Attachment,
}

impl<'a> Pod<'a> {
    /// Looks at the namespace before anything else, then reads settings, annotations and the
    /// previous plugin's result.
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
        // Only a pod's own data plane asks for them.
        let gateways = if config.scope.pod {
            result::gateways(prev_result, &key.ifname)
        } else {
            BTreeMap::new()
        };
        let attachment = Attachment { key, netns, addresses, hairpin, left_out, gateways };
        Ok(Self { config, prev_result, attachment })
    }
}

/// Attaches the pod and gives back `prevResult`. A failed ADD leaves nothing of its own behind.
pub(super) fn add(request: &Request<'_>) -> Result<String, Failure> {
    let mut node = Node::open()?;
    let pod = Pod::of(request, &node)?;
    // Before anything is written: this may fail, too.
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

/// After an ADD has answered: where no agent looks at the node as a whole, it does that itself, once
/// a minute at most. Another process that holds the lock looks in its place.
pub(super) fn look_if_overdue() {
    if !Node::is_overdue(&State::new(names::STATE_DIR)) {
        return;
    }
    match Node::open().and_then(|mut node| node.look()) {
        Ok(()) => {}
        Err(error @ Error::Busy { .. }) => log::debug!("no look at the node: {error}"),
        Err(error) => log::warn!("a look at the node: {error}"),
    }
}

/// The host scope leaves the pod's namespace alone; one that is the caller's own is a mistake of
/// the runtime that must not be acted on.
fn own_namespace(netns: &str, node: &Node) -> Result<(), Failure> {
    let fail = |msg: String| Failure::new(Code::NetworkNamespace, msg);
    let identity = |path: &str| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let open = |error: &dyn std::fmt::Display| format!("open network namespace {netns}: {error}");
    let theirs = identity(netns).map_err(|error| fail(open(&error)))?;
    // The socket tells in a third of the time, where the kernel lets it.
    let own = (node.kernel.rtnetlink.namespace())
        .or_else(|_| identity("/proc/self/ns/net"))
        .map_err(|error| fail(format!("open own network namespace: {error}")))?;
    // Namespaces lie on one device.
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
