//! One agent to a node: two would undo each other's settings.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::lock::PAUSE;
use super::{Error, State};

/// The file that the agent which runs has locked, with its process id.
const FILE: &str = "agent";
/// How long an agent that was killed may still have it locked: closing its netfilter sockets waits
/// for RCU, and 60 ms were seen where the processors were busy.
const DYING: Duration = Duration::from_secs(1);

/// Held by the agent that runs. The kernel releases it when the process dies.
#[derive(Debug)]
pub(crate) struct Alone {
    _held: Flock<File>,
}

impl State {
    /// Makes this process the one agent; the process id of the other one, if it can be known,
    /// where there is one already. Waits a moment for one that was just killed: whoever sees to it
    /// that an agent runs starts the next one at once.
    pub(crate) fn be_the_agent(&self) -> Result<Result<Alone, Option<u32>>, Error> {
        self.be_the_agent_within(DYING)
    }

    /// Waits for the end of an agent that was just killed. One that goes on is let be.
    pub(crate) fn let_a_killed_agent_end(&self) -> Result<(), Error> {
        if self.path(&[FILE]).exists() {
            // The lock is not kept.
            let _ = self.be_the_agent()?;
        }
        Ok(())
    }

    fn be_the_agent_within(&self, patience: Duration) -> Result<Result<Alone, Option<u32>>, Error> {
        let path = self.path(&[FILE]);
        let deadline = Instant::now() + patience;
        fs::create_dir_all(&self.dir).map_err(Error::at("make", &self.dir))?;
        loop {
            let opened =
                File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = opened.map_err(Error::at("open", &path))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Somebody who cleaned up took the file away.
                Ok(held) if !is_at(&held, &path) => {}
                Ok(mut held) => {
                    let pid = std::process::id().to_string();
                    let written = held.set_len(0).and_then(|()| held.write_all(pid.as_bytes()));
                    written.map_err(Error::at("write", &path))?;
                    return Ok(Ok(Alone { _held: held }));
                }
                Err((_, Errno::EINTR)) => {}
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => thread::sleep(PAUSE),
                Err((mut other, Errno::EWOULDBLOCK)) => {
                    let mut pid = String::new();
                    let read = other.read_to_string(&mut pid);
                    return Ok(Err(read.ok().and_then(|_| pid.trim().parse().ok())));
                }
                Err((_, errno)) => return Err(Error::at("lock", &path)(errno.into())),
            }
        }
    }

    /// Removes the file of the agent that this process is.
    pub(crate) fn forget_agent(&self, _alone: &Alone) -> Result<(), Error> {
        Self::remove(&self.path(&[FILE])).map(drop)
    }

    /// Removes the file, unless an agent runs.
    pub(super) fn forget_the_agent(&self) -> Result<(), Error> {
        if !self.path(&[FILE]).exists() {
            return Ok(());
        }
        // The lock is held until the file has gone.
        match self.be_the_agent_within(Duration::ZERO)? {
            Ok(alone) => self.forget_agent(&alone),
            Err(_) => Ok(()),
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let of = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let open = file.metadata().map(of);
    open.is_ok_and(|open| fs::metadata(path).map(of).is_ok_and(|there| there == open))
}
