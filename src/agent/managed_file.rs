//! Files on the node that the agent keeps in place, since others rewrite or remove them: the
//! conflist with our entry, the plugin's binary.

use std::fmt::Debug;
use std::time::Instant;

use super::cause::Cause;
use super::events::files::Folder;
use super::pace::Rewrites;
use crate::config::Config;

pub(crate) trait ManagedFile: Debug + Send {
    /// The folder to watch. The cause that a change in it is names the file in metrics and messages.
    fn folder(&self) -> Folder;

    /// Whether it is in place. Cheap: called at each event and each resync.
    /// Error: it can't be told, or has to be waited for; nothing is put in place then.
    fn is_in_place(&mut self) -> Result<bool, String>;

    /// Puts it in place.
    /// Error: it could not be done; the text says what to do.
    fn put(&mut self) -> Result<(), String>;

    /// The settings that are to be in force as long as nothing names others; none where this file is not
    /// about settings, or refuses those that it has.
    fn settings(&self) -> Option<Config> {
        None
    }

    /// Who else may have changed it, as far as it can be told.
    fn others(&self) -> String;
}

/// Keeps a file in place.
#[derive(Debug)]
pub(crate) struct Keeper {
    file: Box<dyn ManagedFile>,
    rewrites: Rewrites,
    /// How often the file was put in place.
    pub(crate) puts: u64,
}

impl Keeper {
    pub(crate) fn new(file: impl ManagedFile + 'static) -> Self {
        Self { file: Box::new(file), rewrites: Rewrites::default(), puts: 0 }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.cause().name()
    }

    pub(crate) fn cause(&self) -> Cause {
        self.folder().cause
    }

    pub(crate) fn folder(&self) -> Folder {
        self.file.folder()
    }

    /// See [`ManagedFile::settings`].
    pub(crate) fn settings(&self) -> Option<Config> {
        self.file.settings()
    }

    /// Puts it in place unless it is there. A program that takes it away again and again has a
    /// reason: then the error says so, and the file is left.
    /// Error: it is not in place.
    pub(crate) fn keep(&mut self, now: Instant) -> Result<(), String> {
        if self.file.is_in_place()? {
            return Ok(());
        }
        if !self.rewrites.allow(now) {
            return Err(format!(
                "the {} is rewritten by somebody else again and again, so it is left as it is; {}",
                self.name(),
                self.file.others()
            ));
        }
        self.file.put()?;
        self.rewrites.made(now);
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

    impl ManagedFile for Contested {
        fn folder(&self) -> Folder {
            Folder { path: "".into(), cause: Cause::Conflist, names: None }
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
        let (mut keeper, now) = (Keeper::new(Contested), Instant::now());
        let puts = (0..50).filter(|_| keeper.keep(now).is_ok()).count();
        assert_eq!((puts, keeper.puts), (5, 5));
        assert!(keeper.keep(now).unwrap_err().contains("somebody"));
    }
}
