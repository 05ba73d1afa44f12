//! The lock that serialises reconciles: `flock` on the state directory, with a deadline.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Error, State};

/// Pause between two tries: `flock` has no deadline of its own.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// Held until it is dropped. The kernel releases it when the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: Flock<File>,
}

impl State {
    /// Takes the lock, or gives the holder's process id, if it can be known, after `patience`.
    pub(crate) fn lock(&self, patience: Duration) -> Result<Lock, crate::error::Error> {
        fs::create_dir_all(&self.dir).map_err(Error::at("make", &self.dir))?;
        let deadline = Instant::now() + patience;
        let mut file = File::open(&self.dir).map_err(Error::at("open", &self.dir))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => return Ok(Lock { _held: held }),
                Err((returned, Errno::EWOULDBLOCK | Errno::EINTR)) => file = returned,
                Err((_, errno)) => return Err(Error::at("lock", &self.dir)(errno.into()).into()),
            }
            if Instant::now() >= deadline {
                let (holder, seconds) = (holder(&self.dir), patience.as_secs());
                return Err(crate::error::Error::Busy { holder, seconds });
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The process that has locked a file or directory, by `/proc/locks`:
/// "1: FLOCK  ADVISORY  WRITE PID MAJ:MIN:INODE …".
pub(crate) fn holder(dir: &Path) -> Option<u32> {
    let inode = format!(":{}", fs::metadata(dir).ok()?.ino());
    fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let flock = words.next()? == "FLOCK";
        let pid = words.nth(2)?;
        (flock && words.next()?.ends_with(&inode)).then(|| pid.parse().ok())?
    })
}
