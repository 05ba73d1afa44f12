//! Pods that have a data plane of their own: the one reconcile, in the pod's network namespace.
//!
//! Each has a state of its own below the node's ([`State::of_pod`]), so pods neither wait for each other nor for
//! the node. Every ADD reconciles, as each brings another interface. A pod's namespace is entered for the work
//! alone, and everything in it may be prepared by a hostile pod.

use super::proof::{self, Surprise};
use super::{IMPATIENCE, Node};
use crate::config::Settings;
use crate::error::Error;
use crate::netns::Netns;
use crate::state::{Attachment, Identity, Key, Namespace, State};

/// Attaches an interface of a pod: whether it was attached before. A failure leaves nothing of an attachment that
/// was not there before.
pub(crate) fn attach(
    node: &State,
    settings: &Settings,
    attachment: &Attachment,
) -> Result<bool, Error> {
    let path = &attachment.netns;
    let Some(netns) = open(path)? else { return Err(Error::NoPod(path.clone())) };
    let (pod, key) = (node.of_pod(&attachment.key.container), &attachment.key);
    let attached = inside(path, &netns, || {
        let mut of_pod = Node::of_pod(pod.clone(), None)?;
        let lock = of_pod.lock()?;
        let namespace = Namespace { path: path.clone(), identity: of_pod.identity(&netns)? };
        let known = pod.namespace()?;
        if known.as_ref().is_some_and(|known| known.identity != namespace.identity) {
            // The container id is in use again: what is known is about a namespace that has gone.
            pod.forget()?;
        }
        if known.as_ref() != Some(&namespace) {
            pod.set_namespace(&namespace)?;
        }
        let before = pod.attach(attachment)?.before;
        let done = of_pod.reconcile(&lock, &key.network, &settings.for_pod());
        for note in done.iter().flat_map(|plan| &plan.notes) {
            log::warn!("{}: {note}", key.container);
        }
        if let Err(error) = done {
            match &before {
                Some(before) => drop(pod.attach(before)?),
                None => {
                    pod.detach(key)?;
                    of_pod.tear_down_if_idle(&lock)?;
                }
            }
            return Err(error);
        }
        Ok(before.is_some())
    });
    if attached.is_err() && is_over(&pod) {
        node.remove_pod(&pod);
    }
    attached
}

/// Detaches an interface of a pod, and takes the pod's state away with the last one. Goes on after a failure; a
/// namespace that has gone has taken all of ours along.
pub(crate) fn detach(node: &State, key: &Key) -> Vec<Error> {
    let pod = node.of_pod(&key.container);
    if !pod.exists() {
        return Vec::new();
    }
    let mut failures = Vec::new();
    failures.extend(pod.detach(key).err().map(Error::from));
    failures.extend(leave(&pod, Some(key)).err());
    if is_over(&pod) {
        node.remove_pod(&pod);
    }
    failures
}

/// Detaches all interfaces of all pods: what could not be done.
pub(crate) fn detach_all(node: &State) -> Result<Vec<Error>, crate::state::Error> {
    let mut failures = Vec::new();
    for pod in node.pods()? {
        for attachment in pod.attachments()?.readable {
            failures.extend(detach(node, &attachment.key));
        }
        // A call that was killed may have left no attachment, and files that can't be read none.
        if pod.exists() {
            failures.extend(leave(&pod, None).err());
            pod.forget()?;
            node.remove_pod(&pod);
        }
    }
    Ok(failures)
}

/// Whether nothing of a pod's state is left but its folder.
fn is_over(pod: &State) -> bool {
    pod.is_idle().unwrap_or(false) && matches!(pod.namespace(), Ok(None))
}

/// Brings the pod's namespace to what the attachments that are left say.
fn leave(pod: &State, key: Option<&Key>) -> Result<(), Error> {
    let namespace = pod.namespace()?;
    let netns = namespace.as_ref().map(|known| open(&known.path)).transpose()?.flatten();
    let left = match (&namespace, &netns) {
        (Some(known), Some(netns)) => inside(&known.path, netns, || {
            let mut of_pod = Node::of_pod(pod.clone(), key.map(|key| key.ifname.clone()))?;
            if of_pod.identity(netns)? != known.identity {
                return Ok(false);
            }
            let lock = of_pod.lock_within(IMPATIENCE)?;
            if of_pod.tear_down_if_idle(&lock)? {
                return Ok(true);
            }
            if let Some(record) = pod.record()? {
                of_pod.reconcile(&lock, &record.network, &record.settings)?;
            }
            Ok(true)
        })?,
        _ => false,
    };
    // Of a namespace that has gone nothing is left but files.
    if !left && pod.is_idle()? {
        pod.clear()?;
    }
    Ok(())
}

/// Proves that the pod answers by the interfaces of an attachment, by these settings.
pub(crate) fn prove(
    node: &State,
    attachment: &Attachment,
    settings: &Settings,
) -> Result<Result<(), Surprise>, Error> {
    let path = &attachment.netns;
    let Some(netns) = open(path)? else { return Err(Error::NoPod(path.clone())) };
    let pod = node.of_pod(&attachment.key.container);
    let mut interfaces = vec![attachment.key.ifname.as_str()];
    interfaces.extend(attachment.gateways.keys().map(String::as_str));
    let forms = settings.for_pod().fingerprints();
    inside(path, &netns, || {
        let Node { state, mut kernel, .. } = Node::of_pod(pod, None)?;
        Ok(proof::prove_of_pod(&state, &mut kernel, &forms, &interfaces))
    })
}

/// Enters a pod's namespace for the rest of the process, and gives the pod as a node.
pub(crate) fn enter(node: &State, path: &str) -> Result<Node, Error> {
    let Some(netns) = open(path)? else { return Err(Error::NoPod(path.into())) };
    let failed = |source| Error::Namespace { path: path.into(), source };
    netns.enter().map_err(failed)?;
    let of_pod = Node::of_pod(node.of_pod(""), None)?;
    let identity = of_pod.identity(&netns)?;
    for pod in node.pods()? {
        if pod.namespace()?.is_some_and(|known| known.identity == identity) {
            return Node::of_pod(pod, None);
        }
    }
    Ok(of_pod)
}

/// Opens the namespace of a pod; none where it has gone. The node's own is none.
fn open(path: &str) -> Result<Option<Netns>, Error> {
    let failed = |source| Error::Namespace { path: path.into(), source };
    let Some(netns) = Netns::open(path).map_err(failed)? else { return Ok(None) };
    if netns.is_own().map_err(failed)? {
        return Err(Error::NoPod(path.into()));
    }
    Ok(Some(netns))
}

fn inside<T>(
    path: &str,
    netns: &Netns,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let failed = |source| Error::Namespace { path: path.into(), source };
    netns.inside(work).map_err(failed)?
}

impl Node {
    /// What tells the namespace, which this thread is in, from all others.
    fn identity(&self, netns: &Netns) -> Result<Identity, Error> {
        let failed = |source| Error::Namespace { path: "of the pod".into(), source };
        let (device, inode) = netns.numbers().map_err(failed)?;
        Ok(Identity { device, inode, cookie: self.kernel.rtnetlink.namespace_cookie() })
    }
}
