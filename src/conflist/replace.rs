//! Replaces a file of the conf dir as a whole or not at all.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use nix::libc;

use super::Error;
use crate::error::absent_is_none;
use crate::names;
use crate::plain_file::{self, Links};

/// Extended attribute with a file's SELinux label.
const LABEL: &CStr = c"security.selinux";
/// Maximum length of a label in bytes.
const LABEL_MAX: usize = 4096;

/// Result of a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The file has the new text.
    Replaced,
    /// Another program has written the file meanwhile, and its text stays.
    Outrun,
}

/// Reads a file. A pipe or a device is an error, so that the call does not wait.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    plain_file::read(path, plain_file::LONGEST, Links::Followed)
}

/// Replaces the text of a file if the file still has the `old` text (`None`: does not exist). The new file
/// gets mode, owner and security label of the file `like`.
pub(super) fn replace(
    dir: &Path,
    file: &str,
    old: Option<&[u8]>,
    text: &[u8],
    like: &str,
) -> Result<Done, Error> {
    let (path, temporary) = (dir.join(file), dir.join(names::CONFLIST_TEMPORARY));
    clean(dir)?;
    let model = dir.join(like);
    let opened = absent_is_none(plain_file::open(&model, Links::Followed));
    let opened = opened.map_err(Error::at("open", &model))?;
    let Some(model) = opened else { return Ok(Done::Outrun) };
    let done = write(&temporary, text, &model).and_then(|()| {
        let unchanged = match (read(&path), old) {
            (Ok(now), Some(old)) => now == old,
            (Err(error), None) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        };
        if !unchanged {
            return Ok(Done::Outrun);
        }
        fs::rename(&temporary, &path).map_err(Error::at("replace", &path))?;
        sync(dir)?;
        let now = read(&path).map_err(Error::at("read", &path))?;
        Ok(if now == text { Done::Replaced } else { Done::Outrun })
    });
    if !matches!(done, Ok(Done::Replaced)) {
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// Removes a file, if it exists.
pub(super) fn delete(dir: &Path, file: &str) -> Result<(), Error> {
    let path = dir.join(file);
    match absent_is_none(fs::remove_file(&path)).map_err(Error::at("remove", &path))? {
        Some(()) => sync(dir),
        None => Ok(()),
    }
}

/// Removes the temporary file that a killed call may have left.
pub(super) fn clean(dir: &Path) -> Result<(), Error> {
    let path = dir.join(names::CONFLIST_TEMPORARY);
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    plain_file::remove(&path).map_err(Error::at("remove", &path))
}

fn sync(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::at("sync", dir))
}

fn write(path: &Path, text: &[u8], model: &File) -> Result<(), Error> {
    let opened = plain_file::create(path);
    let mut file = opened.map_err(Error::at("write", path))?;
    file.write_all(text).map_err(Error::at("write", path))?;
    let is = |file: &File| file.metadata().map_err(Error::at("read", path));
    let (model_is, new_is) = (is(model)?, is(&file)?);
    if (model_is.uid(), model_is.gid()) != (new_is.uid(), new_is.gid()) {
        fchown(&file, Some(model_is.uid()), Some(model_is.gid()))
            .map_err(Error::at("give the owner of the old file to", path))?;
    }
    let mode = fs::Permissions::from_mode(model_is.mode() & 0o7777);
    file.set_permissions(mode).map_err(Error::at("give the mode of the old file to", path))?;
    match (label(model), label(&file)) {
        (Some(wanted), found) if found.as_ref() != Some(&wanted) => set_label(&file, &wanted)
            .map_err(Error::at("give the security label of the old file to", path))?,
        _ => {}
    }
    file.sync_all().map_err(Error::at("sync", path))
}

/// The SELinux label of a file, if it has one.
fn label(file: &File) -> Option<Vec<u8>> {
    let mut value = vec![0; LABEL_MAX];
    // SAFETY: the name ends in zero, and the kernel writes no more than the given length.
    // JUSTIFICATION: neither std nor nix has a call for extended attributes.
    let length = unsafe {
        libc::fgetxattr(file.as_raw_fd(), LABEL.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

fn set_label(file: &File, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name ends in zero, and the kernel reads no more than the given length.
    // JUSTIFICATION: neither std nor nix has a call for extended attributes.
    let result = unsafe {
        libc::fsetxattr(file.as_raw_fd(), LABEL.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    #[test]
    #[expect(clippy::print_stderr, reason = "says what could not be tested")]
    fn the_label_stays() {
        let dir = TempDir::new();
        let wanted = b"system_u:object_r:etc_t:s0\0";
        fs::write(dir.join("file"), "old").unwrap();
        match set_label(&File::open(dir.join("file")).unwrap(), wanted) {
            Ok(()) => {
                let done = replace(&dir, "file", Some(b"old"), b"new", "file").unwrap();
                assert_eq!(done, Done::Replaced);
                let label = label(&File::open(dir.join("file")).unwrap());
                assert_eq!(label.as_deref(), Some(&wanted[..]));
            }
            Err(error) => eprintln!("NOT RUN the_label_stays: {error}"),
        }
    }

    #[test]
    fn a_file_that_changed_meanwhile_stays() {
        let dir = TempDir::new();
        fs::write(dir.join("file"), "newer").unwrap();
        for old in [Some(&b"old"[..]), None] {
            assert_eq!(replace(&dir, "file", old, b"new", "file").unwrap(), Done::Outrun);
        }
        assert_eq!(replace(&dir, "gone", Some(b"old"), b"new", "gone").unwrap(), Done::Outrun);
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"newer");
        assert_eq!(fs::read_dir(&*dir).unwrap().count(), 1);
    }
}
