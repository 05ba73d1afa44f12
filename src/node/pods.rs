//! Pods with a data plane of their own: the one reconcile, in the pod's network namespace.
//!
//! Each pod has its own state below the node's ([`State::of_pod`]), so pods wait neither for each other nor for
//! the node. Every ADD reconciles, because each adds an interface. The plugin enters a pod's namespace only for
//! the work. A hostile pod may have prepared everything in it.

use std::path::Path;
use std::time::SystemTime;

use super::apply::PATIENCE;
use super::proof::{self, Surprise};
use super::{IMPATIENCE, Node, ended};
use crate::backend::iptables::programs::Programs;
use crate::config::Settings;
use crate::error::Error;
use crate::names;
use crate::netns::Netns;
use crate::process::CpuLimit;
use crate::state::{Attachment, Identity, Key, Lock, Namespace, State};

/// Number of pods that one call checks.
const PODS_AT_ONCE: usize = 16;

/// Attaches an interface of a pod, and returns whether it was attached before. After a failure, an attachment
/// that did not exist before leaves nothing behind.
pub(crate) fn attach(
    node: &State,
    settings: &Settings,
    attachment: &Attachment,
) -> Result<bool, Error> {
    let path = &attachment.netns;
    let netns = open_living(path)?;
    let pod = node.of_pod(&attachment.key.container);
    // Waits in the node's namespace, before the pod's deadline begins to run.
    let lock = pod.lock(PATIENCE)?;
    let attached =
        inside(path, &netns, || attach_inside(&pod, &lock, &netns, settings, attachment));
    if attached.is_err() && is_over(&pod) {
        node.remove_pod(&pod);
    }
    attached
}

/// The part of [`attach`] that runs in the pod's namespace.
fn attach_inside(
    pod: &State,
    lock: &Lock,
    netns: &Netns,
    settings: &Settings,
    attachment: &Attachment,
) -> Result<bool, Error> {
    let (path, key) = (&attachment.netns, &attachment.key);
    let mut of_pod = Node::of_pod(pod.clone(), None)?;
    let namespace = Namespace { path: path.clone(), identity: of_pod.identity(netns)? };
    let known = pod.namespace()?;
    if known.as_ref().is_some_and(|known| known.identity != namespace.identity) {
        // The container id is in use again: the recorded state is that of a namespace that has gone.
        pod.forget()?;
    }
    if known.as_ref() != Some(&namespace) {
        pod.set_namespace(&namespace)?;
    }
    let before = pod.attach(attachment)?.before;
    let done = of_pod.reconcile(lock, &key.network, &settings.for_pod());
    for note in done.iter().flat_map(|plan| &plan.notes) {
        log::warn!("{}: {note}", key.container);
    }
    if let Err(error) = done {
        if let Err(also) = take_back(&of_pod, lock, key, before.as_ref()) {
            log::error!("{}: undo: {also}", key.container);
        }
        return Err(error);
    }
    Ok(before.is_some())
}

/// Undoes an attachment after a failed reconcile.
fn take_back(
    of_pod: &Node,
    lock: &Lock,
    key: &Key,
    before: Option<&Attachment>,
) -> Result<(), Error> {
    if let Some(before) = before {
        of_pod.state.attach(before)?;
        return Ok(());
    }
    of_pod.state.detach(key)?;
    // Opens new sockets: the deadline may have passed in the middle of an answer.
    Node::of_pod(of_pod.state.clone(), None)?.tear_down_if_idle(lock).map(drop)
}

/// Detaches an interface of a pod, and removes the pod's state with the last one. The interface counts as gone,
/// even if no plugin removes it. Goes on after a failure, and returns the failures. If the namespace has gone,
/// only files are left.
pub(crate) fn detach(node: &State, key: &Key) -> Vec<Error> {
    let pod = node.of_pod(&key.container);
    if !pod.exists() {
        // A killed call may have left the folder of all pods.
        node.remove_pods();
        return Vec::new();
    }
    let mut failures = Vec::new();
    failures.extend(pod.detach(key).err().map(Error::from));
    failures.extend(leave(node, &pod, Some(key.ifname.clone())).err());
    // The leftovers of other pods are no failures of this DEL.
    if let Err(error) = sweep(node, Path::new(names::CACHE_DIR)) {
        log::warn!("{error}");
    }
    failures
}

/// Detaches interfaces that the runtime does not know any more. Returns the failures.
pub(crate) fn collect(node: &State, is_gone: impl Fn(&Key) -> bool) -> Vec<Error> {
    let mut failures = Vec::new();
    let pods = node.pods().unwrap_or_else(|error| {
        failures.push(error.into());
        Vec::new()
    });
    for pod in pods {
        match pod.attachments() {
            Ok(found) => {
                let keys = found.readable.into_iter().map(|attachment| attachment.key);
                for key in keys.filter(&is_gone) {
                    failures.extend(detach(node, &key));
                }
            }
            Err(error) => failures.push(error.into()),
        }
    }
    failures
}

/// Ends the data planes of all pods. Returns the failures. A pod whose namespace is out of sight keeps its
/// files.
pub(crate) fn end_all(node: &State) -> Result<Vec<Error>, crate::state::Error> {
    Ok(node.pods()?.iter().filter_map(|pod| end(node, pod).err()).collect())
}

fn end(node: &State, pod: &State) -> Result<(), Error> {
    if let Some(known) = pod.namespace()?.filter(|known| is_out_of_sight(&known.path)) {
        return Err(Error::NamespaceNotVisible(known.path));
    }
    let attachments = pod.attachments()?;
    for attachment in attachments.readable {
        pod.detach(&attachment.key)?;
    }
    State::sweep(&attachments.unreadable)?;
    leave(node, pod, None)
}

/// Whether the folder of a path is missing, so that the path shows nothing. A container may not have the node's
/// folders.
fn is_out_of_sight(path: &str) -> bool {
    let path = Path::new(path);
    !path.starts_with("/proc") && !path.parent().is_some_and(Path::is_dir)
}

/// Ends pods that earlier calls did not end: the DEL was killed, or the pod delayed it. Returns the failures.
pub(crate) fn settle_rest(node: &State) -> Vec<Error> {
    let settled = |pod: State| match leave(node, &pod, None) {
        // The process that has the lock ends the pod.
        Ok(()) | Err(Error::Busy { .. }) => None,
        Err(error) => Some(error),
    };
    match node.pods() {
        Ok(pods) => pods.into_iter().filter(has_ended).filter_map(settled).collect(),
        Err(error) => vec![error.into()],
    }
}

/// Up to [`PODS_AT_ONCE`] pods, from a random place on: checking all takes longer the more there are.
fn some_pods(node: &State) -> Result<Vec<State>, crate::state::Error> {
    let pods = node.pods()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let begin = usize::try_from(now.as_nanos() % 1_000_003).unwrap_or(0) % pods.len().max(1);
    Ok(pods.iter().cycle().skip(begin).take(pods.len().min(PODS_AT_ONCE)).cloned().collect())
}

/// Removes leftovers of some pods: attachments of pods that ended without a DEL, and the state of pods that
/// delayed their DEL until their namespaces were gone. Not every runtime calls GC.
pub(super) fn sweep(node: &State, cache: &Path) -> Result<(), Error> {
    let is_gone = |pod: &State| match pod.namespace() {
        Ok(Some(known)) => matches!(open_if_there(&known.path), Ok(None)),
        Ok(None) | Err(_) => false,
    };
    for pod in some_pods(node)? {
        let attachments = pod.attachments()?;
        for Attachment { key, .. } in
            attachments.readable.iter().filter(|attachment| ended::has_ended(attachment, cache))
        {
            log::warn!("{} ({}) has ended without a DEL", key.container, key.ifname);
            pod.detach(key)?;
        }
        State::sweep(&attachments.unreadable)?;
        if has_ended(&pod) && is_gone(&pod) {
            leave(node, &pod, None)?;
        }
    }
    Ok(())
}

/// Whether the pod has no attachment left.
fn has_ended(pod: &State) -> bool {
    pod.is_idle().unwrap_or(false)
}

/// Whether the pod has no state left except its folder.
fn is_over(pod: &State) -> bool {
    has_ended(pod) && matches!(pod.namespace(), Ok(None))
}

/// Brings the pod's namespace to the state for the remaining attachments. Without any, removes the pod's state.
fn leave(node: &State, pod: &State, leaving: Option<String>) -> Result<(), Error> {
    let lock = pod.lock(IMPATIENCE)?;
    let left = match pod.namespace()? {
        Some(known) => match open_if_there(&known.path)? {
            Some(netns) => leave_namespace(pod, &lock, &known, &netns, leaving)?,
            None => false,
        },
        None => false,
    };
    // If the namespace has gone, only files are left.
    if !left && pod.is_idle()? {
        pod.clear()?;
    }
    if is_over(pod) {
        node.remove_pod(pod);
    }
    Ok(())
}

/// Does the part of [`leave`] in the pod's namespace. False if the path leads to another namespace than the
/// pod's.
fn leave_namespace(
    pod: &State,
    lock: &Lock,
    known: &Namespace,
    netns: &Netns,
    leaving: Option<String>,
) -> Result<bool, Error> {
    inside(&known.path, netns, || {
        let mut of_pod = Node::of_pod(pod.clone(), leaving)?;
        of_pod.kernel.iptables = Programs::patient(IMPATIENCE, Some(pod.record_file()));
        if of_pod.identity(netns)? != known.identity {
            return Ok(false);
        }
        if of_pod.tear_down_if_idle(lock)? {
            return Ok(true);
        }
        if let Some(record) = pod.record()? {
            of_pod.reconcile(lock, &record.network, &record.settings)?;
        }
        Ok(true)
    })
}

/// Proves that the pod's replies leave by the right interface, for the interfaces of an attachment and these
/// settings.
pub(crate) fn prove(
    node: &State,
    attachment: &Attachment,
    settings: &Settings,
) -> Result<Result<(), Surprise>, Error> {
    let path = &attachment.netns;
    let netns = open_living(path)?;
    let pod = node.of_pod(&attachment.key.container);
    let (interface, others) = (&attachment.key.ifname, attachment.gateways.keys());
    let forms = settings.for_pod().fingerprints();
    inside(path, &netns, || {
        let Node { state, mut kernel, .. } = Node::of_pod(pod, None)?;
        Ok(proof::prove_of_pod(&state, &mut kernel, &forms, interface, others.map(String::as_str)))
    })
}

/// Enters a pod's namespace for the rest of the process, and returns the pod as a node.
pub(crate) fn enter(node: &State, path: &str) -> Result<Node, Error> {
    let netns = open_living(path)?;
    netns.enter().map_err(Error::namespace(path))?;
    let of_pod = Node::of_pod(node.of_pod(""), None)?;
    let identity = of_pod.identity(&netns)?;
    for pod in node.pods()? {
        if pod.namespace()?.is_some_and(|known| known.identity == identity) {
            return Node::of_pod(pod, None);
        }
    }
    Ok(of_pod)
}

/// Opens the namespace of a running pod.
/// Error: it has gone, or the path leads to the node's own namespace.
fn open_living(path: &str) -> Result<Netns, Error> {
    open(path)?.ok_or_else(|| Error::NotAPod(path.into()))
}

/// Opens the namespace of a pod that ends; none if it has gone or the path leads to the node's own namespace.
fn open_if_there(path: &str) -> Result<Option<Netns>, Error> {
    match open(path) {
        Err(Error::NotAPod(_)) => Ok(None),
        opened => opened,
    }
}

/// Opens the namespace of a pod; none if it has gone.
/// Error: the path leads to the node's own namespace.
fn open(path: &str) -> Result<Option<Netns>, Error> {
    let failed = Error::namespace(path);
    let Some(netns) = Netns::open(path).map_err(&failed)? else { return Ok(None) };
    if netns.is_own().map_err(&failed)? {
        return Err(Error::NotAPod(path.into()));
    }
    Ok(Some(netns))
}

fn inside<T>(
    path: &str,
    netns: &Netns,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    // A hostile pod must not keep the plugin or a program of iptables busy for ever.
    let _limit = CpuLimit::of(names::CPU_OF_POD);
    netns.inside(work).map_err(Error::namespace(path))?
}

impl Node {
    /// Values that distinguish the namespace of this thread from all others.
    fn identity(&self, netns: &Netns) -> Result<Identity, Error> {
        let (device, inode) = netns.numbers().map_err(Error::namespace("of the pod"))?;
        Ok(Identity { device, inode, cookie: self.kernel.rtnetlink.namespace_cookie() })
    }
}
