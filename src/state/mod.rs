//! State of this boot under `/run/symroute`: which attachments there are, what node state was
//! made, who holds it.
//!
//! ```text
//! pods/KEY   one file per attachment
//! .own-KEY   an attachment that has settings of its own
//! hold/NAME  what keeps node state beyond the last pod ("up", "agent")
//! node.json  settings in force, the network that brought them, sysctls to put back
//! .ready     what an ADD has to prove
//! .next      where the next look at some attachments begins
//! agent      locked by the agent that runs; its process id
//! marking    symbolic link to "nftables" or "iptables": what marks
//! ```
//! The directory itself is the lock. Each file is written to a temporary name and renamed, so
//! that a kill leaves the old or the new one.

mod agent_lock;
mod attachment;
mod folder;
mod lock;
mod ready;
mod record;

use std::fmt;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::absent_is_none;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

pub(crate) use agent_lock::AgentLock;
pub(crate) use attachment::{Attachment, Key, Written};
pub(crate) use lock::Lock;
pub(crate) use ready::{Ordinary, Ready};
pub(crate) use record::Record;

/// A file of the state could not be read or written.
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

    pub(crate) fn kind(&self) -> io::ErrorKind {
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

    /// Writes a file so that a reader sees all of it or none.
    fn write(&self, folder: &str, name: &str, content: &str) -> Result<(), Error> {
        self.place(folder, name, |temporary, path| {
            fs::write(temporary, content)?;
            fs::rename(temporary, path)
        })
    }

    /// The same; what stood in the file before, if there was one.
    fn replace(&self, folder: &str, name: &str, content: &str) -> Result<Option<String>, Error> {
        self.place(folder, name, |temporary, path| {
            fs::write(temporary, content)?;
            match renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => Ok(None),
                // Some file systems can't tell.
                Err(Errno::EEXIST | Errno::EINVAL) => {
                    // What can't be read is no attachment.
                    let before = fs::read_to_string(path).unwrap_or_default();
                    fs::rename(temporary, path).map(|()| Some(before))
                }
                Err(errno) => Err(errno.into()),
            }
        })
    }

    /// Puts what `make` makes under a temporary name into its place. The folder is made on demand.
    fn place<T>(
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
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = self.path(&[folder]);
                fs::create_dir_all(&folder).map_err(Error::at("make", &folder))?;
                attempt().map_err(Error::at("write", &path))
            }
            other => other.map_err(Error::at("write", &path)),
        }
    }

    /// Reads a file; none where there is none.
    fn read(path: &Path) -> Result<Option<String>, Error> {
        absent_is_none(fs::read_to_string(path)).map_err(Error::at("read", path))
    }

    /// Removes a file: whether it was there.
    fn remove(path: &Path) -> Result<bool, Error> {
        let removed = absent_is_none(fs::remove_file(path)).map_err(Error::at("remove", path))?;
        Ok(removed.is_some())
    }

    /// Names of the files in a folder, hidden ones left out.
    fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let names = self.names(folder)?.into_iter();
        Ok(names.filter(|name| !name.starts_with('.')).collect())
    }

    /// Names of all files in a folder.
    fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let path = self.path(&[folder]);
        let entries = absent_is_none(fs::read_dir(&path)).map_err(Error::at("list", &path))?;
        let name = |entry: io::Result<DirEntry>| entry.ok()?.file_name().into_string().ok();
        Ok(entries.into_iter().flatten().filter_map(name).collect())
    }

    /// Whether a folder has no file but temporary ones. Reads no more than the first few names,
    /// however many there are.
    fn is_empty(&self, folder: &str) -> Result<bool, Error> {
        let path = self.path(&[folder]);
        let found = absent_is_none(folder::has_visible(&path)).map_err(Error::at("list", &path))?;
        Ok(!found.unwrap_or(false))
    }

    /// Makes `name` a holder of the node state, in the name of `network`.
    pub(crate) fn hold(&self, name: &str, network: &str) -> Result<(), Error> {
        self.write("hold", name, network)
    }

    /// Ends the hold of `name`.
    pub(crate) fn release(&self, name: &str) -> Result<(), Error> {
        Self::remove(&self.path(&["hold", name])).map(drop)
    }

    /// Who holds the node state, with the network in whose name.
    pub(crate) fn holders(&self) -> Result<Vec<(String, String)>, Error> {
        let names = self.list("hold")?;
        let with_network = names.into_iter().map(|name| {
            let network = Self::read(&self.path(&["hold", &name]))?.unwrap_or_default();
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

    /// Removes what is left when the node state has gone: the record, temporary files of calls
    /// that were killed, and empty folders. A writer that loses its temporary file writes again.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        self.migrate()?;
        for file in [ready::FILE, record::FILE, record::MARKING] {
            Self::remove(&self.path(&[file]))?;
        }
        AgentLock::remove_if_stale(self)?;
        for folder in ["", attachment::PODS, "hold"] {
            // A pod that is left out keeps its file until its own end.
            let is_temporary = |name: &String| {
                name.starts_with('.') && !name.starts_with(attachment::OWN_SETTINGS)
            };
            for name in self.names(folder)?.into_iter().filter(is_temporary) {
                Self::remove(&self.path(&[folder, &name]))?;
            }
            if !folder.is_empty() {
                // One that another process has just put a file into stays.
                let _ = fs::remove_dir(self.path(&[folder]));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
