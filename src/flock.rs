//! Locks on files: `flock` with a deadline.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(5);

/// Holds the lock until it is dropped. The kernel releases it when the process dies.
pub(crate) type Held = Flock<File>;

/// Locks a file; none if another process holds the lock until the deadline.
pub(crate) fn lock(mut file: File, deadline: Instant) -> io::Result<Option<Held>> {
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(Some(held)),
            Err((returned, Errno::EWOULDBLOCK | Errno::EINTR)) => file = returned,
            Err((_, errno)) => return Err(errno.into()),
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

/// Whether the path still leads to this file.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    let of = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let open = file.metadata().map(of);
    open.is_ok_and(|open| fs::metadata(path).map(of).is_ok_and(|at_path| at_path == open))
}

/// Process id of the holder of a file's or directory's lock, from `/proc/locks`: "1: FLOCK
/// ADVISORY  WRITE PID MAJ:MIN:INODE …".
pub(crate) fn holder(path: &Path) -> Option<u32> {
    let inode = format!(":{}", fs::metadata(path).ok()?.ino());
    fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let flock = words.next()? == "FLOCK";
        let pid = words.nth(2)?;
        (flock && words.next()?.ends_with(&inode)).then(|| pid.parse().ok())?
    })
}
