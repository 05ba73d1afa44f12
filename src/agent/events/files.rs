//! Events of directories (inotify): settings, conflists and plugins.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::agent::cause::Cause;

/// Time without an event after which missing watches are tried again.
const REARM_INTERVAL: Duration = Duration::from_secs(30);

/// A directory to watch, and the cause that a change in it gives.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// Path of the directory. It need not exist yet.
    pub(crate) path: PathBuf,
    pub(crate) cause: Cause,
    /// Names of the entries that count; `None` for all.
    pub(crate) names: Option<Vec<OsString>>,
}

impl Folder {
    /// Whether a change of this entry counts. Hidden entries are temporary files of libcni or
    /// symroute and do not count.
    fn concerns(&self, entry: Option<&OsStr>) -> bool {
        let Some(entry) = entry else { return true };
        let named = |names: &Vec<OsString>| names.iter().any(|name| name == entry);
        !entry.as_encoded_bytes().starts_with(b".") && self.names.as_ref().is_none_or(named)
    }
}

#[derive(Debug)]
struct Watched {
    folder: Folder,
    /// Watch on the directory. `None` if the directory does not exist.
    watch: Option<WatchDescriptor>,
    /// Watch on the parent of a directory that does not exist.
    parent: Option<WatchDescriptor>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches on directories. The kernel records events from [`Watches::on`] onwards, so a caller that
/// reads the directories after it misses no change.
pub(crate) struct Watches {
    inotify: AsyncFd<Descriptor>,
    folders: Vec<Watched>,
}

impl Watches {
    /// Arms a watch on each directory, or on the parent of one that does not exist.
    /// Error: the kernel has no inotify instance left.
    pub(crate) fn on(folders: Vec<Folder>) -> Result<Self, String> {
        let fail = |error: io::Error| format!("watch folders: {error}");
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| fail(errno.into()))?;
        // SAFETY: the instance owns its open descriptor, which stays the same until it is dropped.
        let inotify =
            unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) }
                .map_err(|error| fail(error.into()))?;
        let folders =
            folders.into_iter().map(|folder| Watched { folder, watch: None, parent: None });
        let mut watches = Self { inotify, folders: folders.collect() };
        watches.arm();
        Ok(watches)
    }

    /// Arms the watches that are missing. Returns the causes of the directories that have a watch
    /// from now on.
    fn arm(&mut self) -> Vec<Cause> {
        // IN_MASK_ADD: two watches may be on one directory, and the second must not end the first.
        let add = AddWatchFlags::from_bits_retain(libc::IN_MASK_ADD);
        let content = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR
            | add;
        let entries =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR | add;
        let inotify = &self.inotify.get_ref().0;
        let mut armed = Vec::new();
        for watched in self.folders.iter_mut().filter(|watched| watched.watch.is_none()) {
            watched.watch = inotify.add_watch(&watched.folder.path, content).ok();
            watched.parent = match (&watched.watch, watched.folder.path.parent()) {
                (None, Some(parent)) => inotify.add_watch(parent, entries).ok(),
                _ => None,
            };
            armed.extend(watched.watch.map(|_| watched.folder.cause));
        }
        armed
    }

    /// Passes the causes to `take` until a read fails.
    /// Error: the failed read.
    pub(crate) async fn watch(mut self, mut take: impl FnMut(Cause)) -> Result<(), String> {
        loop {
            let read = self.inotify.async_io(Interest::READABLE, |fd| Ok(fd.0.read_events()?));
            // If a directory and its parent do not exist, no watch reports when they are created.
            let Ok(read) = tokio::time::timeout(REARM_INTERVAL, read).await else {
                self.arm().into_iter().for_each(&mut take);
                continue;
            };
            let events = read.map_err(|error| format!("watch folders: {error}"))?;
            let mut anew = false;
            for event in &events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    self.folders.iter().for_each(|watched| take(watched.folder.cause));
                }
                let over = AddWatchFlags::IN_IGNORED
                    | AddWatchFlags::IN_DELETE_SELF
                    | AddWatchFlags::IN_MOVE_SELF;
                for watched in &mut self.folders {
                    if watched.watch == Some(event.wd) {
                        if event.mask.intersects(over) {
                            (watched.watch, anew) = (None, true);
                        }
                        if watched.folder.concerns(event.name.as_deref()) {
                            take(watched.folder.cause);
                        }
                    } else if watched.parent == Some(event.wd)
                        && watched.folder.path.file_name() == event.name.as_deref()
                    {
                        anew = true;
                        take(watched.folder.cause);
                    }
                }
            }
            if anew {
                self.arm().into_iter().for_each(&mut take);
            }
        }
    }
}
