//! Network namespaces of pods: opens them by path, and enters them for a while.
//!
//! A hostile pod may have prepared everything in its namespace. Only the network changes: files, programs and
//! everything else stay the node's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// The network namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
}

/// Takes the thread back to this namespace when dropped.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(errno) = setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET) {
            // Going on in a pod's namespace could only do harm.
            log::error!("return to the node's network namespace: {}", errno.desc());
            std::process::abort();
        }
    }
}

impl Netns {
    /// Opens the namespace at a path; none if the path has nothing, or something other than a network
    /// namespace.
    pub(crate) fn open(path: &str) -> io::Result<Option<Self>> {
        // Opening a device or a FIFO has effects. `O_PATH` has none.
        let found = match OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) {
            Ok(found) => found,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if fstatfs(&found)?.filesystem_type() != NSFS_MAGIC {
            return Ok(None);
        }
        let file = match File::open(format!("/proc/thread-self/fd/{}", found.as_raw_fd())) {
            Ok(file) => file,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // SAFETY: the descriptor is open, and there is no argument.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
        // Kernels before 4.11 do not report the kind of a namespace.
        Ok((kind == libc::CLONE_NEWNET || kind == -1).then_some(Self { file }))
    }

    /// Device and inode of the namespace.
    pub(crate) fn numbers(&self) -> io::Result<(u64, u64)> {
        let found = self.file.metadata()?;
        Ok((found.dev(), found.ino()))
    }

    /// Whether this is the namespace of the calling thread.
    pub(crate) fn is_own(&self) -> io::Result<bool> {
        Ok(Self { file: File::open(OWN)? }.numbers()? == self.numbers()?)
    }

    /// Calls `work` in the namespace, and returns to the thread's own in any case.
    /// Error: the thread can't enter the namespace; then `work` was not called.
    pub(crate) fn inside<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let own = File::open(OWN)?;
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let _back = Back(own);
        Ok(work())
    }

    /// Enters the namespace for the rest of the process, for a command that only reads.
    pub(crate) fn enter(&self) -> io::Result<()> {
        Ok(setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }
}

/// Whether the error means that the path has nothing, or that the namespace's process has gone.
fn is_gone(error: &io::Error) -> bool {
    let gone =
        [libc::ENOENT, libc::ESRCH, libc::ENOTDIR, libc::ENXIO, libc::ELOOP, libc::ENAMETOOLONG];
    error.raw_os_error().is_some_and(|number| gone.contains(&number))
}
