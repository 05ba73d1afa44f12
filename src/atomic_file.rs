//! Replaces a whole file: even after a power failure, the file has the old or the new content.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Replaces `path` with the file that `make` creates at `temporary`, in the same folder.
pub(crate) fn replace(
    path: &Path,
    temporary: &Path,
    make: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let replace = || {
        make(temporary)?;
        File::open(temporary)?.sync_all()?;
        fs::rename(temporary, path)?;
        sync_folder_of(path)
    };
    replace().inspect_err(|_| drop(fs::remove_file(temporary)))
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
