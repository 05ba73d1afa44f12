//! Pods that have a data plane of their own: the one reconcile, in the pod's network namespace.
//!
//! Each has a state of its own below the node's ([`State::of_pod`]), so pods neither wait for each other nor for
//! the node. Every ADD reconciles, as each brings another interface. A pod's namespace is entered for the work
//! alone, and everything in it may be prepared by a hostile pod.

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

/// So many pods are looked at in one call.
const SOME: usize = 16;

/// Attaches an interface of a pod: whether it was attached before. A failure leaves nothing of an attachment that
/// was not there before.
pub(crate) fn attach(
    node: &State,
    settings: &Settings,
    attachment: &Attachment,
) -> Result<bool, Error> {
    let path = &attachment.netns;
    let netns = open_living(path)?;
    let pod = node.of_pod(&attachment.key.container);
    // Waits in the node's namespace, and before the pod's deadline begins to run.
    let lock = pod.lock(PATIENCE)?;
    let attached =
        inside(path, &netns, || attach_inside(&pod, &lock, &netns, settings, attachment));
    if attached.is_err() && is_over(&pod) {
        node.remove_pod(&pod);
    }
    attached
}

/// The part of it that is done in the pod's namespace.
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
        // The container id is in use again: what is known is about a namespace that has gone.
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

/// Takes back an attachment that could not be served.
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
    // The time may have run out in the middle of an answer.
    Node::of_pod(of_pod.state.clone(), None)?.tear_down_if_idle(lock).map(drop)
}

/// Detaches an interface of a pod, and takes the pod's state away with the last one. The interface counts as gone,
/// whether or not another plugin removes it next. Goes on after a failure; a namespace that has gone has taken all of
/// ours along.
pub(crate) fn detach(node: &State, key: &Key) -> Vec<Error> {
    let pod = node.of_pod(&key.container);
    if !pod.exists() {
        // A call that was killed may have left the folder of all.
        node.remove_pods();
        return Vec::new();
    }
    let mut failures = Vec::new();
    failures.extend(pod.detach(key).err().map(Error::from));
    failures.extend(leave(node, &pod, Some(key.ifname.clone())).err());
    // What other pods have left behind is none of this one's failures.
    if let Err(error) = sweep(node, Path::new(names::CACHE_DIR)) {
        log::warn!("{error}");
    }
    failures
}

/// Detaches what a runtime does not know any more: what could not be done.
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

/// Ends the data planes of all pods: what could not be done. A pod whose namespace can't be seen from here keeps its
/// files.
pub(crate) fn end_all(node: &State) -> Result<Vec<Error>, crate::state::Error> {
    Ok(node.pods()?.iter().filter_map(|pod| end(node, pod).err()).collect())
}

fn end(node: &State, pod: &State) -> Result<(), Error> {
    if let Some(known) = pod.namespace()?.filter(|known| is_out_of_sight(&known.path)) {
        return Err(Error::OutOfSight(known.path));
    }
    let attachments = pod.attachments()?;
    for attachment in attachments.readable {
        pod.detach(&attachment.key)?;
    }
    State::sweep(&attachments.unreadable)?;
    leave(node, pod, None)
}

/// Whether a path says nothing: in a container, folders of the node may be missing.
fn is_out_of_sight(path: &str) -> bool {
    let path = Path::new(path);
    !path.starts_with("/proc") && !path.parent().is_some_and(Path::is_dir)
}

/// Ends what calls before have left behind: a DEL that was killed, or that a pod has held up.
pub(crate) fn settle_rest(node: &State) -> Vec<Error> {
    let settled = |pod: State| match leave(node, &pod, None) {
        // The one that has the lock does so.
        Ok(()) | Err(Error::Busy { .. }) => None,
        Err(error) => Some(error),
    };
    match node.pods() {
        Ok(pods) => pods.into_iter().filter(has_ended).filter_map(settled).collect(),
        Err(error) => vec![error.into()],
    }
}

/// Some of the pods, from a place that differs from call to call: to look at all takes longer the more there are.
fn some_pods(node: &State) -> Result<Vec<State>, crate::state::Error> {
    let pods = node.pods()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let begin = usize::try_from(now.as_nanos() % 1_000_003).unwrap_or(0) % pods.len().max(1);
    Ok(pods.iter().cycle().skip(begin).take(pods.len().min(SOME)).cloned().collect())
}

/// Removes what is left of some pods: of those that ended without a DEL, and of those that have held up their DEL
/// until their namespaces were gone. Not every runtime calls GC.
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

/// Whether no attachment of a pod is left.
fn has_ended(pod: &State) -> bool {
    pod.is_idle().unwrap_or(false)
}

/// Whether nothing of a pod's state is left but its folder.
fn is_over(pod: &State) -> bool {
    has_ended(pod) && matches!(pod.namespace(), Ok(None))
}

/// Brings the pod's namespace to what the attachments that are left say.
fn leave(node: &State, pod: &State, leaving: Option<String>) -> Result<(), Error> {
    let lock = pod.lock(IMPATIENCE)?;
    let left = match pod.namespace()? {
        Some(known) => match open_if_there(&known.path)? {
            Some(netns) => leave_namespace(pod, &lock, &known, &netns, leaving)?,
            None => false,
        },
        None => false,
    };
    // Of a namespace that has gone nothing is left but files.
    if !left && pod.is_idle()? {
        pod.clear()?;
    }
    if is_over(pod) {
        node.remove_pod(pod);
    }
    Ok(())
}

/// False where the namespace is another one than the pod's.
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

/// Proves that the pod answers by the interfaces of an attachment, by these settings.
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

/// Enters a pod's namespace for the rest of the process, and gives the pod as a node.
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

/// Opens the namespace of a pod that lives.
fn open_living(path: &str) -> Result<Netns, Error> {
    open(path)?.ok_or_else(|| Error::NoPod(path.into()))
}

/// Opens the namespace of a pod that ends; none where something else is in its place by now.
fn open_if_there(path: &str) -> Result<Option<Netns>, Error> {
    match open(path) {
        Err(Error::NoPod(_)) => Ok(None),
        opened => opened,
    }
}

/// Opens the namespace of a pod; none where it has gone. The node's own is none.
fn open(path: &str) -> Result<Option<Netns>, Error> {
    let failed = Error::namespace(path);
    let Some(netns) = Netns::open(path).map_err(&failed)? else { return Ok(None) };
    if netns.is_own().map_err(&failed)? {
        return Err(Error::NoPod(path.into()));
    }
    Ok(Some(netns))
}

fn inside<T>(
    path: &str,
    netns: &Netns,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    // No pod can make the plugin, or a program of iptables, work without an end.
    let _limit = CpuLimit::of(names::CPU_OF_POD);
    netns.inside(work).map_err(Error::namespace(path))?
}

impl Node {
    /// What distinguishes the namespace, which this thread is in, from all others.
    fn identity(&self, netns: &Netns) -> Result<Identity, Error> {
        let (device, inode) = netns.numbers().map_err(Error::namespace("of the pod"))?;
        Ok(Identity { device, inode, cookie: self.kernel.rtnetlink.namespace_cookie() })
    }
}
