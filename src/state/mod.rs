//! State of this boot under `/run/symroute`: attachments, the record of the node state, and its holders.
//!
//! ```text
//! pods/KEY   one file per attachment
//! .own-KEY   an attachment that has settings of its own
//! hold/NAME  a holder that keeps node state without pods ("up", "agent")
//! node.json  settings in force, the network that brought them, sysctls to set back
//! .ready     what an ADD has to prove
//! .next      where the next check of some attachments begins
//! .unsettled the kernel may have settings of a pod that has gone
//! agent      locked by the running agent; its process id
//! marking    symbolic link to "nftables" or "iptables", the backend that marks
//! netns/KEY  a folder with these files for each pod that has a data plane of its own
//! namespace  only in such a folder: the pod's network namespace
//! ```
//! The directory itself is the lock: only root may open it. A writer renames a temporary file, so that a kill
//! leaves the old or the new content. Something else in the place of a plain text file counts as empty, and the
//! next write replaces it.

mod agent_lock;
mod attachment;
mod folder;
mod lock;
mod namespace;
mod ready;
mod record;

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::error::absent_is_none;
use crate::plain_file::{self, Links};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

pub(crate) use agent_lock::AgentLock;
pub(crate) use attachment::{Attachment, Key, Written};
pub(crate) use lock::Lock;
pub(crate) use namespace::{Identity, Namespace};
pub(crate) use ready::{Ordinary, Ready};
pub(crate) use record::Record;

/// Maximum length of a state file in bytes.
const FILE_MOST: u64 = 4 << 20;

/// A failed operation on a file of the state.
#[derive(Debug)]
pub(crate) struct Error {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { operation, path, source }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.source.kind()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.operation, self.path.display(), self.source)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    dir: PathBuf,
}

impl State {
    /// The state in this directory, which need not exist yet.
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn path(&self, parts: &[&str]) -> PathBuf {
        let mut path = self.dir.clone();
        path.extend(parts);
        path
    }

    /// Writes a file so that a reader sees all of it or nothing.
    fn write(&self, folder: &str, name: &str, content: &str) -> Result<(), Error> {
        self.rename_into_place(folder, name, |temporary, path| {
            plain_file::write_new(temporary, content.as_bytes())?;
            plain_file::put(temporary, path)
        })
    }

    /// Writes a file like [`Self::write`], and returns the previous content if there was a file.
    fn replace(&self, folder: &str, name: &str, content: &str) -> Result<Option<String>, Error> {
        self.rename_into_place(folder, name, |temporary, path| {
            plain_file::write_new(temporary, content.as_bytes())?;
            match renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => Ok(None),
                // Some file systems do not support `RENAME_NOREPLACE`.
                Err(Errno::EEXIST | Errno::EINVAL) => {
                    // An unreadable file was no attachment.
                    let before = plain_file::read_text(path, FILE_MOST, Links::Refused);
                    plain_file::put(temporary, path)?;
                    Ok(Some(before.unwrap_or_default()))
                }
                Err(errno) => Err(errno.into()),
            }
        })
    }

    /// Calls `make` with a temporary path and the final path, which it should rename to. Creates the folder on
    /// demand.
    fn rename_into_place<T>(
        &self,
        folder: &str,
        name: &str,
        make: impl Fn(&Path, &Path) -> io::Result<T>,
    ) -> Result<T, Error> {
        let path = self.path(&[folder, name]);
        let temporary = self.path(&[folder, &format!(".{name}")]);
        let attempt = || {
            let done = make(&temporary, &path);
            if done.is_err() {
                let _ = fs::remove_file(&temporary);
            }
            done
        };
        match attempt() {
            Err(error) if error.kind() == ErrorKind::NotFound || plain_file::is_damaged(&error) => {
                self.make_folder(folder)?;
                attempt().map_err(Error::at("write", &path))
            }
            other => other.map_err(Error::at("write", &path)),
        }
    }

    /// Creates a folder of the state, which only root may open. Replaces another kind of file.
    fn make_folder(&self, folder: &str) -> Result<(), Error> {
        let builder = || {
            let mut builder = DirBuilder::new();
            builder.mode(plain_file::FOLDER_MODE);
            builder
        };
        // An operator may have linked the directory to another place.
        if !self.dir.is_dir() {
            let make = |path: &Path| builder().recursive(true).create(path);
            plain_file::with_room(&self.dir, make).map_err(Error::at("make", &self.dir))?;
        }
        let path = self.path(&[folder]);
        if folder.is_empty() || is_folder(&path) {
            return Ok(());
        }
        let make = |path: &Path| match builder().create(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && is_folder(path) => Ok(()),
            made => made,
        };
        plain_file::with_room(&path, make).map_err(Error::at("make", &path))
    }

    /// Reads a file; none if it does not exist. A damaged one counts as empty.
    fn read(path: &Path) -> Result<Option<String>, Error> {
        match plain_file::read_text(path, FILE_MOST, Links::Refused) {
            // If the folder is not a folder, it has no files.
            Err(error) if plain_file::is_damaged(&error) && !is_there(path) => Ok(None),
            Err(error) if plain_file::is_damaged(&error) => Ok(Some(String::new())),
            read => absent_is_none(read).map_err(Error::at("read", path)),
        }
    }

    /// Removes a file, or whatever has its name. Returns whether anything existed.
    fn remove(path: &Path) -> Result<bool, Error> {
        match plain_file::remove(path) {
            Err(error) if plain_file::is_damaged(&error) => Ok(false),
            removed => Ok(absent_is_none(removed).map_err(Error::at("remove", path))?.is_some()),
        }
    }

    /// Files in a folder, except hidden ones.
    fn list(&self, folder: &str) -> Result<Vec<PathBuf>, Error> {
        let mut files = self.files(folder)?;
        files.retain(|path| !has_prefix(path, "."));
        Ok(files)
    }

    /// All files in a folder.
    fn files(&self, folder: &str) -> Result<Vec<PathBuf>, Error> {
        let path = self.path(&[folder]);
        // A link may lead to files of another program.
        if !folder.is_empty() && !is_folder(&path) {
            return Ok(Vec::new());
        }
        let entries = absent_is_none(fs::read_dir(&path)).map_err(Error::at("list", &path))?;
        Ok(entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect())
    }

    /// Whether a folder has only hidden files. Reads the first few names, however many there are.
    fn is_empty(&self, folder: &str) -> Result<bool, Error> {
        let path = self.path(&[folder]);
        let found = no_folder_is_none(folder::has_visible(&path));
        let found = found.map_err(Error::at("list", &path))?;
        Ok(!found.unwrap_or(false))
    }

    /// Makes `name` a holder of the node state, on behalf of `network`.
    pub(crate) fn hold(&self, name: &str, network: &str) -> Result<(), Error> {
        self.write("hold", name, network)
    }

    /// Ends the hold of `name`.
    pub(crate) fn release(&self, name: &str) -> Result<(), Error> {
        Self::remove(&self.path(&["hold", name])).map(drop)
    }

    /// Ends all holds, including damaged ones.
    pub(crate) fn release_all(&self) -> Result<(), Error> {
        self.list("hold")?.iter().try_for_each(|path| Self::remove(path).map(drop))
    }

    /// Holders of the node state: name, and the network on whose behalf.
    pub(crate) fn holders(&self) -> Result<Vec<(String, String)>, Error> {
        let with_network = self.list("hold")?.into_iter().map(|path| {
            let network = Self::read(&path)?.unwrap_or_default();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, network))
        });
        with_network.collect()
    }

    pub(crate) fn exists(&self) -> bool {
        self.dir.is_dir()
    }

    /// Whether neither a pod nor a holder needs the node state.
    pub(crate) fn is_idle(&self) -> Result<bool, Error> {
        Ok(self.is_empty(attachment::PODS)? && self.is_empty("hold")?)
    }

    /// Removes the directory itself, if it is empty.
    pub(crate) fn remove_folder(&self) {
        let _ = fs::remove_dir(&self.dir);
    }

    /// Removes what remains after the node state: the record, temporary files of killed calls, and empty
    /// folders. A writer that loses its temporary file writes again.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        self.migrate()?;
        for file in [ready::FILE, record::FILE, record::MARKING, namespace::FILE] {
            Self::remove(&self.path(&[file]))?;
        }
        AgentLock::remove_if_stale(self)?;
        for folder in ["", attachment::PODS, "hold"] {
            // A pod that is left out keeps its file until its own DEL.
            let is_temporary = |path: &&PathBuf| {
                has_prefix(path, ".") && !has_prefix(path, attachment::OWN_SETTINGS)
            };
            for path in self.files(folder)?.iter().filter(is_temporary) {
                Self::remove(path)?;
            }
            if !folder.is_empty() {
                // The folder stays if another process has just written a file.
                let path = self.path(&[folder]);
                if is_folder(&path) {
                    let _ = fs::remove_dir(&path);
                } else {
                    Self::remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the error means that a file or a link has the name of a folder.
fn is_no_folder(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotADirectory || error.raw_os_error() == Some(libc::ELOOP)
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// Whether the file name begins with `prefix`.
fn has_prefix(path: &Path, prefix: &str) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(prefix.as_bytes())
}

/// None for a folder that does not exist or is not a folder.
fn no_folder_is_none<T>(listed: io::Result<T>) -> io::Result<Option<T>> {
    match listed {
        Err(error) if is_no_folder(&error) => Ok(None),
        listed => absent_is_none(listed),
    }
}

#[cfg(test)]
mod tests;
