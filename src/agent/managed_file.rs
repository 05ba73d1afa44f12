//! Files on the node that the agent keeps in place, because other programs rewrite or remove them:
//! the conflist with symroute's entry, and the plugin's binary.

use std::fmt::Debug;
use std::time::Instant;

use super::cause::Cause;
use super::events::files::Folder;
use super::pace::Rewrites;
use crate::config::Config;

pub(crate) trait ManagedFile: Debug + Send {
    /// The directory to watch. The name of its cause names the file in metrics and messages.
    fn folder(&self) -> Folder;

    /// Whether the file is in place. Must be cheap: every turn calls it.
    /// Error: the agent can't find out, or has to wait; it then does not put the file in place.
    fn is_in_place(&mut self) -> Result<bool, String>;

    /// Puts the file in place.
    /// Error: the failure, with its remedy.
    fn put(&mut self) -> Result<(), String>;

    /// Settings to use while neither the agent's source nor the node state has settings. `None` if
    /// the file has no settings, or the agent refuses them.
    fn settings(&self) -> Option<Config> {
        None
    }

    /// Advice for a message: how to find the program that rewrites the file.
    fn others(&self) -> String;
}

/// Keeps one file in place.
#[derive(Debug)]
pub(crate) struct Keeper {
    file: Box<dyn ManagedFile>,
    rewrites: Rewrites,
    /// How often the agent put the file in place.
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

    /// Puts the file in place unless it is. Stops for a while if another program rewrites the file
    /// again and again.
    /// Error: why the file is not in place.
    pub(crate) fn keep(&mut self, now: Instant) -> Result<(), String> {
        if self.file.is_in_place()? {
            return Ok(());
        }
        if !self.rewrites.allow(now) {
            return Err(format!(
                "another program rewrites the {} again and again, so the agent leaves it alone; {}",
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
            "find the program".into()
        }
    }

    #[test]
    fn a_quarrel_ends() {
        let (mut keeper, now) = (Keeper::new(Contested), Instant::now());
        let puts = (0..50).filter(|_| keeper.keep(now).is_ok()).count();
        assert_eq!((puts, keeper.puts), (5, 5));
        assert!(keeper.keep(now).unwrap_err().contains("find the program"));
    }
}
