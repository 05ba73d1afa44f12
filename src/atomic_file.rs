//! A file that lasts is replaced as a whole: also after the machine loses power, it is the old one
//! or the new one.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Puts the file that `make` makes at `temporary`, in the same folder, in the place of `path`.
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
