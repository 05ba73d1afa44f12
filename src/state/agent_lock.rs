//! The lock of the one agent on a node: two agents would undo each other's settings.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Error, State, is_there};
use crate::flock::{self, Held};
use crate::plain_file;

/// File that the running agent has locked; holds its process id.
const FILE: &str = "agent";
/// How long a killed agent may keep the lock. Closing its netfilter sockets waits for RCU: 60 ms
/// were measured on busy processors.
const DYING: Duration = Duration::from_secs(1);

/// The running agent holds this.
#[derive(Debug)]
pub(crate) struct AgentLock {
    path: PathBuf,
    _held: Held,
}

impl AgentLock {
    /// Makes this process the one agent. If another agent runs, returns its process id, if that is
    /// known. Waits a moment for an agent that was just killed, because a manager restarts a killed
    /// agent at once.
    pub(crate) fn acquire(state: &State) -> Result<Result<Self, Option<u32>>, Error> {
        Self::acquire_within(state, DYING)
    }

    /// Whether an agent runs. Changes nothing.
    pub(crate) fn is_held(state: &State) -> bool {
        flock::holder(&state.path(&[FILE])).is_some()
    }

    /// Waits for the end of an agent that was just killed. Does nothing to an agent that runs on.
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
                // A process that cleaned up has removed the file.
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

    /// Removes the file, then releases the lock.
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

/// Opens or creates the file, which only its owner may open. Replaces anything that is not a plain
/// file.
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
