//! How a pod is enrolled, by its ADD or by the agent.

use crate::config::Settings;
use crate::error::Error;
use crate::fast::{self, Enrolled};
use crate::gather::has_ipvs;
use crate::node::Node;
use crate::state::{Attachment, Lock};

/// Enrolls a pod: by the fast path where the node is ready for it, else by a reconcile.
pub(crate) fn enroll(
    node: &mut Node,
    settings: &Settings,
    attachment: &Attachment,
) -> Result<(), Error> {
    if quickly(node, settings, attachment)? {
        return Ok(());
    }
    let lock = node.lock()?;
    // Of many pods that start on a new node, the first has done the work for the others.
    if quickly(node, settings, attachment)? {
        return Ok(());
    }
    slowly(node, settings, attachment, &lock)
}

/// The fast path; false where it does not do.
fn quickly(node: &mut Node, settings: &Settings, attachment: &Attachment) -> Result<bool, Error> {
    let Some(marking) = node.state.marking().filter(|_| node.state.last_look().is_some()) else {
        return Ok(false);
    };
    // The file comes first: a DEL that is about to take the table away looks for files last.
    node.state.enroll(attachment)?;
    let in_force = [settings.fingerprint(has_ipvs())];
    match fast::prove(&mut node.kernel, marking, settings, &in_force, &attachment.addresses) {
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
    settings: &Settings,
    attachment: &Attachment,
    lock: &Lock,
) -> Result<(), Error> {
    node.state.enroll(attachment)?;
    let plan = node.reconcile(lock, &attachment.key.network, settings)?;
    for note in &plan.notes {
        log::warn!("{note}");
    }
    let marking = node.marking();
    let in_force = [settings.fingerprint(has_ipvs())];
    let proof = fast::prove(&mut node.kernel, marking, settings, &in_force, &attachment.addresses);
    if let Err(fast::Surprise(why)) = proof {
        log::warn!("the node is reconciled, but {why}; see \"symroute status\"");
    }
    Ok(())
}
