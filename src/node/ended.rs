//! Removes attachments of pods that ended without a DEL. At the end of a pod, containerd calls the
//! plugins that the conflist then names, which may not include symroute. Such an attachment has
//! nothing in the kernel, but holds the node state.

use std::path::Path;

use super::{pods, teardown};
use crate::error::Error;
use crate::state::{Attachment, State};

/// Checks some attachments, other ones in each call, and removes those of ended pods. Also removes
/// their unreadable files.
pub(crate) fn sweep(state: &State, cache: &Path) -> Result<(), Error> {
    let some = state.some_attachments()?;
    for path in &some.found.unreadable {
        log::warn!("{}: empty or damaged; the attachment is taken as absent", path.display());
    }
    State::sweep(&some.found.unreadable)?;
    for attachment in some.found.readable.iter().filter(|attachment| has_ended(attachment, cache)) {
        let key = &attachment.key;
        log::warn!("{} ({}) has ended without a DEL", key.container, key.ifname);
        for error in teardown::remove(state, key, || {}) {
            log::error!("{}: {error}", key.container);
        }
    }
    state.pass(&some)?;
    pods::sweep(state, cache)
}

/// Whether the pod has ended: its network namespace is gone from an existing folder, and the
/// runtime's cache has no entry for it.
pub(super) fn has_ended(attachment: &Attachment, cache: &Path) -> bool {
    let netns = Path::new(&attachment.netns);
    let is_visible = netns.is_absolute() && netns.parent().is_some_and(Path::is_dir);
    let key = &attachment.key;
    let entry = format!("{}-{}-{}", key.network, key.container, key.ifname);
    // Multus caches the results of the plugins that it calls.
    let caches = [cache.to_path_buf(), cache.with_file_name("multus").join("results")];
    is_visible
        && is_absent(netns)
        && cache.is_dir()
        && caches.iter().all(|cache| is_absent(&cache.join(&entry)))
}

/// Whether the path surely does not exist; false if the check fails.
fn is_absent(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}
