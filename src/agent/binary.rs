//! Keeps the plugin's binary in the runtime's directory of plugins, as a copy of a given file.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::cause::Cause;
use super::events::files::Folder;
use super::managed_file::ManagedFile;
use crate::atomic_file;
use crate::names::PROGRAM;
use crate::plain_file::{self, Links};

/// Maximum size of the binary in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Metadata of a file that change when its content changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    inode: u64,
    size: u64,
    /// Time of the last change of content or mode (ctime), in seconds and nanoseconds.
    changed: (i64, i64),
    mode: u32,
}

/// A copy of the file `from` in the directory `folder`.
#[derive(Debug)]
pub(crate) struct Binary {
    from: PathBuf,
    folder: PathBuf,
    /// Metadata of source and copy when the agent last found their content equal.
    same: Option<(Look, Look)>,
}

impl Binary {
    pub(crate) fn new(from: PathBuf, folder: PathBuf) -> Self {
        Self { from, folder, same: None }
    }

    fn to(&self) -> PathBuf {
        self.folder.join(PROGRAM)
    }
}

impl ManagedFile for Binary {
    fn folder(&self) -> Folder {
        let names = Some(vec![PROGRAM.into()]);
        Folder { path: self.folder.clone(), cause: Cause::Binary, names }
    }

    fn is_in_place(&mut self) -> Result<bool, String> {
        let from = look(&self.from).map_err(|error| at("look at", &self.from, &error))?;
        let Ok(to) = look(&self.to()) else { return Ok(false) };
        // Read the content only if the metadata changed.
        if self.same == Some((from, to)) {
            return Ok(true);
        }
        let ours = read(&self.from).map_err(|error| at("read", &self.from, &error))?;
        let theirs = read(&self.to());
        let same = theirs.is_ok_and(|theirs| theirs == ours) && to.mode & 0o111 == 0o111;
        self.same = same.then_some((from, to));
        Ok(same)
    }

    fn put(&mut self) -> Result<(), String> {
        // The kernel refuses writes to a running binary, and the runtime must not start half of
        // one. So a rename in the same directory replaces the file.
        let temporary = self.folder.join(format!(".{PROGRAM}.new"));
        let copy = |temporary: &Path| {
            let mut from = plain_file::open(&self.from, Links::Followed)?.take(MAX_BYTES);
            let mut to = plain_file::create(temporary)?;
            io::copy(&mut from, &mut to)?;
            to.set_permissions(fs::Permissions::from_mode(0o755))
        };
        atomic_file::replace(&self.to(), &temporary, copy).map_err(|error| {
            let hint = "give the runtime's folder of plugins with --bin-dir, mounted writable";
            format!("{}; {hint}", at("install", &self.to(), &error))
        })
    }

    fn others(&self) -> String {
        let to = self.to();
        format!("find the program that writes {} (an installer or another release)", to.display())
    }
}

/// Reads a file of at most [`MAX_BYTES`] bytes.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    plain_file::read(path, MAX_BYTES, Links::Followed)
}

fn look(path: &Path) -> io::Result<Look> {
    let meta = fs::metadata(path)?;
    let changed = (meta.ctime(), meta.ctime_nsec());
    Ok(Look { inode: meta.ino(), size: meta.size(), changed, mode: meta.mode() })
}

fn at(operation: &str, path: &Path, error: &io::Error) -> String {
    format!("{operation} {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    #[test]
    fn a_binary_that_went_or_changed_is_put_back() {
        let folder = TempDir::new();
        let from = folder.join("from");
        fs::write(&from, "one").unwrap();
        let mut binary = Binary::new(from.clone(), folder.to_path_buf());
        assert_eq!(binary.is_in_place(), Ok(false));
        binary.put().unwrap();
        assert_eq!(binary.is_in_place(), Ok(true));
        fs::write(binary.to(), "two").unwrap();
        assert_eq!(binary.is_in_place(), Ok(false));
        binary.put().unwrap();
        fs::set_permissions(binary.to(), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(binary.is_in_place(), Ok(false), "no longer executable");
        fs::remove_file(&from).unwrap();
        assert!(binary.is_in_place().is_err(), "nothing to compare with");
        fs::remove_dir_all(&*folder).unwrap();
        assert!(binary.put().unwrap_err().contains("--bin-dir"));
    }
}
