//! Attachments of pods that ended without a DEL: the conflist did not name symroute at that moment,
//! and containerd calls the plugins that it names then. Nothing in the kernel is about them, but
//! they hold the node state.

use std::path::Path;

use super::{pods, teardown};
use crate::error::Error;
use crate::state::{Attachment, State};

/// Removes some of them, and some files that can't be read as an attachment. Which ones differs
/// from call to call.
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

/// Whether the network namespace is gone from a folder that can be seen, and the runtime's cache
/// knows nothing of the pod.
pub(super) fn has_ended(attachment: &Attachment, cache: &Path) -> bool {
    let netns = Path::new(&attachment.netns);
    let is_visible = netns.is_absolute() && netns.parent().is_some_and(Path::is_dir);
    let key = &attachment.key;
    let entry = format!("{}-{}-{}", key.network, key.container, key.ifname);
    // Multus keeps the results of what it calls for the runtime.
    let caches = [cache.to_path_buf(), cache.with_file_name("multus").join("results")];
    is_visible
        && is_absent(netns)
        && cache.is_dir()
        && caches.iter().all(|cache| is_absent(&cache.join(&entry)))
}

/// False where it can't be told.
fn is_absent(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}
