//! Things of ours on the node's disk that others rewrite or remove: the entry in the conflist,
//! the plugin's binary.

use std::ffi::OsString;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Instant;

use super::cause::Cause;
use super::events::files::Folder;
use super::pace::Rewrites;

/// Something that is to be in place.
pub(crate) trait Thing: Debug + Send {
    /// Its name in metrics and messages.
    fn name(&self) -> &'static str;

    /// What a change of its folder is.
    fn cause(&self) -> Cause;

    /// The folder to watch.
    fn folder(&self) -> PathBuf;

    /// The entries of the folder that count; none for all of them.
    fn names(&self) -> Option<Vec<OsString>>;

    /// Whether it is in place. Cheap: called at each event and each resync.
    ///
    /// # Errors
    /// It can't be told, or has to be waited for; nothing is put in place then.
    fn is_in_place(&mut self) -> Result<bool, String>;

    /// Puts it in place.
    ///
    /// # Errors
    /// It could not be done; the text says what to do.
    fn put(&mut self) -> Result<(), String>;

    /// Who else may have changed it, as far as it can be told.
    fn others(&self) -> String;
}

/// A thing with what became of it.
#[derive(Debug)]
pub(crate) struct Kept {
    thing: Box<dyn Thing>,
    rewrites: Rewrites,
    /// How often it was put in place.
    pub(crate) puts: u64,
}

impl Kept {
    /// Keeps this thing from now on.
    pub(crate) fn new(thing: Box<dyn Thing>) -> Self {
        Self { thing, rewrites: Rewrites::default(), puts: 0 }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.thing.name()
    }

    /// What a change of its folder is.
    pub(crate) fn cause(&self) -> Cause {
        self.thing.cause()
    }

    /// What to watch.
    pub(crate) fn folder(&self) -> Folder {
        let (path, cause) = (self.thing.folder(), self.thing.cause());
        Folder { path, cause, names: self.thing.names() }
    }

    /// Puts it in place unless it is there. Somebody who takes it away again and again has a
    /// reason: then that is told, and it is left.
    ///
    /// # Errors
    /// It is not in place.
    pub(crate) fn keep(&mut self, now: Instant) -> Result<(), String> {
        if self.thing.is_in_place()? {
            return Ok(());
        }
        if !self.rewrites.allow(now) {
            return Err(format!(
                "the {} is rewritten by somebody else again and again, so it is left as it is; {}",
                self.name(),
                self.thing.others()
            ));
        }
        self.thing.put()?;
        self.puts += 1;
        log::warn!("the {} was put in place", self.name());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Contested;

    impl Thing for Contested {
        fn name(&self) -> &'static str {
            "conflist"
        }
        fn cause(&self) -> Cause {
            Cause::Conflist
        }
        fn folder(&self) -> PathBuf {
            PathBuf::new()
        }
        fn names(&self) -> Option<Vec<OsString>> {
            None
        }
        fn is_in_place(&mut self) -> Result<bool, String> {
            Ok(false)
        }
        fn put(&mut self) -> Result<(), String> {
            Ok(())
        }
        fn others(&self) -> String {
            "somebody".into()
        }
    }

    #[test]
    fn a_quarrel_ends() {
        let (mut kept, now) = (Kept::new(Box::new(Contested)), Instant::now());
        let puts = (0..50).filter(|_| kept.keep(now).is_ok()).count();
        assert_eq!((puts, kept.puts), (5, 5));
        assert!(kept.keep(now).unwrap_err().contains("somebody"));
    }
}
