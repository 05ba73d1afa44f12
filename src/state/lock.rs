//! The lock that serialises reconciles: `flock` on the state directory.

use std::time::{Duration, Instant};

use super::{Error, State};
use crate::flock::{self, Held};
use crate::plain_file;

#[derive(Debug)]
pub(crate) struct Lock {
    _held: Held,
}

impl State {
    /// Takes the lock, or gives the holder's process id, if it can be known, after `patience`.
    pub(crate) fn lock(&self, patience: Duration) -> Result<Lock, crate::error::Error> {
        self.make_folder("")?;
        let file = plain_file::folder_of_owner(&self.dir).map_err(Error::at("open", &self.dir))?;
        let locked = flock::lock(file, Instant::now() + patience);
        match locked.map_err(Error::at("lock", &self.dir))? {
            Some(held) => Ok(Lock { _held: held }),
            None => Err(crate::error::Error::Busy {
                holder: flock::holder(&self.dir),
                seconds: patience.as_secs(),
            }),
        }
    }
}
