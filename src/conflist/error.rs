//! Errors of work on the conf dir. Each text names the operation, the file and the remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

/// Why the conf dir could not be read or changed. Each of its files is the old or the new one, whole.
#[derive(Debug)]
pub(crate) enum Error {
    /// A file can't be read or written.
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// Another process of symroute changes the directory and does not end.
    Busy {
        path: PathBuf,
        /// Time spent waiting.
        seconds: u64,
    },
    /// Another program keeps undoing the change.
    Contended { path: PathBuf },
}

impl Error {
    /// Error constructor for `map_err`.
    pub(super) fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { operation, path, source }
    }

    /// The remedy.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => "run as root",
                Some(libc::EROFS) => {
                    "name a writable directory that the runtime reads with --conf-dir, or one for \
                     our copies with --state-dir"
                }
                Some(libc::ENOSPC | libc::EDQUOT) => "make room on that file system",
                _ => "is that the right path?",
            },
            Self::Busy { .. } => "try again; if it stays so, look for a symroute that hangs",
            Self::Contended { .. } => {
                "find that program and set it up to keep other plugins, or try again later"
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { operation, path, source } => {
                write!(f, "{operation} {}: {source}", path.display())
            }
            Self::Busy { path, seconds } => {
                write!(f, "lock {}: taken for more than {seconds} s", path.display())
            }
            Self::Contended { path } => {
                write!(f, "{}: a change does not stay, another program writes it", path.display())
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Busy { .. } | Self::Contended { .. } => None,
        }
    }
}
