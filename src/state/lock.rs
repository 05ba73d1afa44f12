//! The lock that serialises reconciles: `flock` on the state directory.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::{Error, State};
use crate::flock::{self, Held};
use crate::plain_file;

#[derive(Debug)]
pub(crate) struct Lock {
    _held: Held,
}

impl State {
    /// Takes the lock, and waits up to `patience` for it.
    /// Error: `Busy`, with the holder's process id if that is known.
    pub(crate) fn lock(&self, patience: Duration) -> Result<Lock, crate::error::Error> {
        let deadline = Instant::now() + patience;
        loop {
            // The end of another pod may remove the common folder.
            match self.make_folder("") {
                Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < deadline => {
                    continue;
                }
                made => made?,
            }
            let opened = plain_file::folder_of_owner(&self.dir);
            let is_missing = |error: &io::Error| error.kind() == ErrorKind::NotFound;
            if opened.as_ref().is_err_and(is_missing) && Instant::now() < deadline {
                continue;
            }
            let file = opened.map_err(Error::at("open", &self.dir))?;
            match flock::lock(file, deadline).map_err(Error::at("lock", &self.dir))? {
                // The end of a pod removes its folder.
                Some(held) if !flock::is_at(&held, &self.dir) && Instant::now() < deadline => {}
                Some(held) => return Ok(Lock { _held: held }),
                None => {
                    let holder = flock::holder(&self.dir);
                    return Err(crate::error::Error::Busy { holder, seconds: patience.as_secs() });
                }
            }
        }
    }
}
