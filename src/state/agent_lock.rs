//! One agent to a node: two would undo each other's settings.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Error, State, is_there};
use crate::flock::{self, Held};
use crate::plain_file;

/// The file that the agent which runs has locked, with its process id.
const FILE: &str = "agent";
/// How long an agent that was killed may still have it locked: closing its netfilter sockets waits
/// for RCU, and 60 ms were seen where the processors were busy.
const DYING: Duration = Duration::from_secs(1);

/// Held by the agent that runs.
#[derive(Debug)]
pub(crate) struct AgentLock {
    path: PathBuf,
    _held: Held,
}

impl AgentLock {
    /// Makes this process the one agent; the process id of the other one, if it can be known,
    /// where there is one already. Waits a moment for one that was just killed: a manager that
    /// restarts a killed agent does so at once.
    pub(crate) fn acquire(state: &State) -> Result<Result<Self, Option<u32>>, Error> {
        Self::acquire_within(state, DYING)
    }

    /// Whether an agent runs. Changes nothing.
    pub(crate) fn is_held(state: &State) -> bool {
        flock::holder(&state.path(&[FILE])).is_some()
    }

    /// Waits for the end of an agent that was just killed. One that goes on is let be.
    pub(crate) fn wait_for_dying(state: &State) -> Result<(), Error> {
        if is_there(&state.path(&[FILE])) {
            // The lock is not kept.
            let _ = Self::acquire(state)?;
        }
        Ok(())
    }

    fn acquire_within(
        state: &State,
        patience: Duration,
    ) -> Result<Result<Self, Option<u32>>, Error> {
        let path = state.path(&[FILE]);
        let deadline = Instant::now() + patience;
        state.make_folder("")?;
        loop {
            let file = open(&path).map_err(Error::at("open", &path))?;
            match flock::lock(file, deadline).map_err(Error::at("lock", &path))? {
                // A process that cleaned up took the file away.
                Some(held) if !flock::is_at(&held, &path) => {}
                Some(mut held) => {
                    let pid = std::process::id().to_string();
                    let written = held.set_len(0).and_then(|()| held.write_all(pid.as_bytes()));
                    written.map_err(Error::at("write", &path))?;
                    return Ok(Ok(Self { path, _held: held }));
                }
                None => {
                    let pid = State::read(&path)?;
                    return Ok(Err(pid.and_then(|pid| pid.trim().parse().ok())));
                }
            }
        }
    }

    /// Removes the file, and releases the lock then.
    pub(crate) fn remove(self) -> Result<(), Error> {
        State::remove(&self.path).map(drop)
    }

    /// Removes the file, unless an agent runs.
    pub(super) fn remove_if_stale(state: &State) -> Result<(), Error> {
        if !is_there(&state.path(&[FILE])) {
            return Ok(());
        }
        Self::acquire_within(state, Duration::ZERO)?.map_or(Ok(()), Self::remove)
    }
}

/// Opens the file, or makes it. Only its owner may open it; anything but a file makes room.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(plain_file::MODE);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let opened = options.open(path).and_then(|file| Ok((file.metadata()?, file)));
    match opened {
        Ok((found, file)) if found.is_file() => {
            plain_file::restrict(&file, plain_file::MODE)?;
            return Ok(file);
        }
        Err(error) if !plain_file::is_damaged(&error) => return Err(error),
        _ => {}
    }
    plain_file::remove(path)?;
    options.open(path)
}
