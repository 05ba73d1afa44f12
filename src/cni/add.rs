//! ADD: enroll a pod.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::statfs::{NSFS_MAGIC, PROC_SUPER_MAGIC, statfs};
use serde_json::value::RawValue;

use super::{Code, Failure, Request, annotations, log_failures, result, version};
use crate::config::{self, Config, Invalid, Scope};
use crate::error::Error;
use crate::fast::{self, Enrolled};
use crate::logging;
use crate::node::Node;
use crate::state::{Attachment, Lock};

/// What ADD and CHECK are about.
pub(super) struct Pod<'a> {
    pub(super) config: Config,
    pub(super) prev_result: &'a RawValue,
    /// What is to be enrolled; none for a pod that its annotation leaves out.
    pub(super) attachment: Option<Attachment>,
}

impl<'a> Pod<'a> {
    /// Looks at the namespace before anything else, then reads settings, annotations and the result
    /// before ours.
    pub(super) fn of(request: &'a Request<'_>) -> Result<Self, Failure> {
        own_namespace(request.netns)?;
        let config = config::parse(&request.config).map_err(Error::from)?;
        logging::start(&config.log);
        let own = annotations::read(&request.config).map_err(Error::from)?;
        if config.scope == Scope::Pod {
            let hint = "this release serves the node's own data plane only; set \"host\"";
            return Err(Error::from(Invalid::new("scope", &"pod".into(), hint)).into());
        }
        let Some(prev_result) = request.prev_result.as_deref() else {
            let msg = "missing \"prevResult\": symroute must be chained after a plugin that gives \
                       the pod its interface";
            return Err(Failure::new(Code::Config, msg)
                .with("list it behind the primary plugin in \"plugins\" of a conflist"));
        };
        let addresses = result::addresses(prev_result)?;
        let attachment = Attachment { key: request.key.clone(), addresses, hairpin: own.hairpin };
        Ok(Self { config, prev_result, attachment: own.enabled.then_some(attachment) })
    }
}

/// Enrolls the pod and gives back `prevResult`. A failed ADD leaves nothing of its own behind.
pub(super) fn add(request: &Request<'_>) -> Result<String, Failure> {
    let pod = Pod::of(request)?;
    // Before anything is enrolled: this may fail, too.
    let answer = version::answer(pod.prev_result, &request.version)?;
    let Some(attachment) = pod.attachment else { return Ok(answer) };
    let mut node = Node::open()?;
    let before = node.state.attachment(&attachment.key).map_err(Error::from)?;
    match (enroll(&mut node, &pod.config, &attachment), before) {
        (Ok(()), None) => {}
        // ADD twice, with other addresses the second time.
        (Ok(()), Some(before)) => {
            log_failures(request, &node.withdraw(&before, Some(&attachment)));
        }
        (Err(error), None) => {
            log_failures(request, &node.remove(&attachment.key));
            return Err(error.into());
        }
        (Err(error), Some(before)) => {
            node.state.enroll(&before).map_err(Error::from)?;
            log_failures(request, &node.withdraw(&attachment, Some(&before)));
            return Err(error.into());
        }
    }
    Ok(answer)
}

fn enroll(node: &mut Node, config: &Config, attachment: &Attachment) -> Result<(), Error> {
    if quickly(node, config, attachment)? {
        return Ok(());
    }
    let lock = node.lock()?;
    // Of many pods that start on a new node, the first has done the work for the others.
    if quickly(node, config, attachment)? {
        return Ok(());
    }
    slowly(node, config, attachment, &lock)
}

/// The fast path; false where it does not do.
fn quickly(node: &mut Node, config: &Config, attachment: &Attachment) -> Result<bool, Error> {
    let Some(marking) = node.state.marking().filter(|_| node.state.has_record()) else {
        return Ok(false);
    };
    // The file comes first: a DEL that is about to take the table away looks for files last.
    node.state.enroll(attachment)?;
    match fast::prove(&mut node.kernel, marking, &config.settings, &attachment.addresses) {
        Ok(()) => {
            let mut enrolled = Enrolled::at(marking, &mut node.kernel.netfilter);
            match enrolled.enroll(&fast::memberships(attachment)) {
                Ok(()) => return Ok(true),
                // The last pod before this one took the table with it just now.
                Err(error) => log::info!("slow path: {error}"),
            }
        }
        Err(fast::Surprise(why)) => log::info!("slow path: {why}"),
    }
    Ok(false)
}

/// Reconciles the node; the pod is in its file, so it is part of the desired state.
fn slowly(
    node: &mut Node,
    config: &Config,
    attachment: &Attachment,
    lock: &Lock,
) -> Result<(), Error> {
    node.state.enroll(attachment)?;
    let plan = node.reconcile(lock, &attachment.key.network, &config.settings)?;
    for note in &plan.notes {
        log::warn!("{note}");
    }
    let marking = node.marking();
    if let Err(fast::Surprise(why)) =
        fast::prove(&mut node.kernel, marking, &config.settings, &attachment.addresses)
    {
        log::warn!("the node is reconciled, but {why}; see \"symroute status\"");
    }
    Ok(())
}

/// The host scope leaves the pod's namespace alone; one that is the caller's own is a mistake of
/// the runtime that must not be acted on.
fn own_namespace(netns: &str) -> Result<(), Failure> {
    let fail = |msg: String| Failure::new(Code::NetworkNamespace, msg);
    let identity = |path: &str| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let open = |error: &dyn std::fmt::Display| format!("open network namespace {netns}: {error}");
    let theirs = identity(netns).map_err(|error| fail(open(&error)))?;
    let kind = statfs(netns).map_err(|error| fail(open(&error)))?.filesystem_type();
    if kind != NSFS_MAGIC && kind != PROC_SUPER_MAGIC {
        return Err(fail(format!("CNI_NETNS {netns} is no network namespace"))
            .with("the runtime has to pass a path like /run/netns/NAME or /proc/PID/ns/net"));
    }
    let own = identity("/proc/self/ns/net")
        .map_err(|error| fail(format!("open own network namespace: {error}")))?;
    if theirs == own {
        let msg = format!("CNI_NETNS {netns} is the network namespace of the node itself");
        return Err(fail(msg).with("the runtime has to pass the pod's"));
    }
    Ok(())
}
