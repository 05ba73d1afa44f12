//! Files in the state directory about the conf dir.
//!
//! ```text
//! conflist/originals/FILE   the file from before our entry was added
//! conflist/wanted.json      the last wish, if it is not the default
//! conflist/journal          one JSON object per line: time, action, file, reason
//! ```
//! Calls that change the conf dir hold a lock on the directory `conflist`.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::{Error, State, Wanted};
use crate::atomic_file;
use crate::error::absent_is_none;
use crate::flock::{self, Held};
use crate::plain_file::{self, Links};

/// Action in the journal: our entry is added to a file.
pub(super) const PUT_IN: &str = "put in";
/// Action in the journal: a change failed.
pub(super) const FAILED: &str = "failed";
/// Action in the journal: a change was dropped, because another program wrote the file.
pub(super) const OUTRUN: &str = "outrun";

const FOLDER: &str = "conflist";
const JOURNAL: &str = "journal";
const WANTED: &str = "wanted.json";
const ORIGINALS: &str = "originals";
/// Temporary file name. No copy of a conflist has this name, because it begins with a dot.
const TEMPORARY: &str = ".new";
/// Size in bytes above which the older half of the journal is dropped.
const JOURNAL_LIMIT: usize = 128 * 1024;
/// Time to wait for the lock of another call.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a file of the store, which may be as long as a conflist.
fn read(path: &Path) -> io::Result<String> {
    plain_file::read_text(path, plain_file::LONGEST, Links::Refused)
}

/// The directory `conflist` in the state directory.
#[derive(Debug, Clone)]
pub(super) struct Store {
    dir: PathBuf,
}

impl Store {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join(FOLDER) }
    }

    /// Creates the directory if necessary and locks it until the guard is dropped.
    pub(super) fn lock(&self) -> Result<Held, Error> {
        let originals = self.dir.join(ORIGINALS);
        // A conflist may hold tokens.
        let make = |path: &Path| {
            DirBuilder::new().recursive(true).mode(plain_file::FOLDER_MODE).create(path)
        };
        for path in [&self.dir, &originals] {
            plain_file::with_room(path, make).map_err(Error::at("make", path))?;
        }
        let file = plain_file::folder_of_owner(&self.dir).map_err(Error::at("open", &self.dir))?;
        let locked = flock::lock(file, Instant::now() + PATIENCE);
        locked
            .map_err(Error::at("lock", &self.dir))?
            .ok_or_else(|| Error::Busy { path: self.dir.clone(), seconds: PATIENCE.as_secs() })
    }

    pub(super) fn keep_original(&self, file: &str, bytes: &[u8]) -> Result<(), Error> {
        let originals = self.dir.join(ORIGINALS);
        Self::write(&originals, file, bytes)
    }

    /// Whether [`Self::forget`] has anything to remove.
    pub(super) fn remembers(&self) -> bool {
        self.dir.join(WANTED).exists() || !self.originals().is_empty()
    }

    /// The original texts by file name.
    pub(super) fn originals(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.dir.join(ORIGINALS)).into_iter().flatten().flatten();
        let copies = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| name != TEMPORARY)?;
            Some((name, read(&entry.path()).ok()?))
        });
        copies.collect()
    }

    pub(super) fn wanted(&self) -> Wanted {
        let text = read(&self.dir.join(WANTED)).unwrap_or_default();
        let value = serde_json::from_str(&text).ok();
        value.and_then(|value| Wanted::from_json(&value)).unwrap_or_default()
    }

    pub(super) fn remember(&self, wanted: &Wanted) -> Result<(), Error> {
        Self::write(&self.dir, WANTED, format!("{}\n", wanted.to_json()).as_bytes())
    }

    /// Removes the originals and the last wish.
    pub(super) fn forget(&self) -> Result<(), Error> {
        let path = self.dir.join(WANTED);
        absent_is_none(plain_file::remove(&path)).map_err(Error::at("remove", &path))?;
        let path = self.dir.join(ORIGINALS);
        absent_is_none(plain_file::remove(&path)).map_err(Error::at("remove", &path)).map(drop)
    }

    fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = folder.join(name);
        // A directory with the name of our file is useless and would keep the rename from working.
        if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            fs::remove_dir_all(&path).map_err(Error::at("remove", &path))?;
        }
        let write = |temporary: &Path| plain_file::write_new(temporary, bytes);
        let written = atomic_file::replace(&path, &folder.join(TEMPORARY), write);
        written.map_err(Error::at("write", &path))
    }

    /// Adds a line to the journal: a change that is about to begin, or its failure, and the reason. `source` is
    /// the file of which `file` is a copy.
    pub(super) fn note(
        &self,
        action: &str,
        file: &Path,
        why: &str,
        source: Option<&str>,
    ) -> Result<(), Error> {
        let path = self.dir.join(JOURNAL);
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let mut line = json!({"time": now, "action": action, "file": file, "why": why});
        if let Some(source) = source {
            line["madeOf"] = json!(source);
        }
        let old = match absent_is_none(read(&path)) {
            Ok(text) => text.unwrap_or_default(),
            // A damaged journal must not prevent a change.
            Err(error) if plain_file::is_damaged(&error) => String::new(),
            Err(error) => return Err(Error::at("read", &path)(error)),
        };
        let lines: Vec<&str> = old.lines().collect();
        let dropped = if old.len() > JOURNAL_LIMIT { lines.len() / 2 } else { 0 };
        let mut text: String = lines[dropped..].iter().flat_map(|line| [line, "\n"]).collect();
        text.extend([&line.to_string(), "\n"]);
        Self::write(&self.dir, JOURNAL, text.as_bytes())
    }

    /// How often within the last `age` our entry was added to this file because it was missing, since symroute
    /// itself last removed it.
    pub(super) fn recent_additions(&self, file: &Path, age: Duration) -> usize {
        let text = read(&self.dir.join(JOURNAL)).unwrap_or_default();
        let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let path = file.to_string_lossy();
        let failed = |line: &Value| line["action"] == FAILED || line["action"] == OUTRUN;
        let lines = lines.filter(|line| line["file"] == *path);
        let recent = lines.take_while(|line| {
            let time = line["time"].as_str().and_then(|t| humantime::parse_rfc3339(t).ok());
            let elapsed = time.and_then(|time| time.elapsed().ok());
            let undone_by_us = line["action"] != PUT_IN && !failed(line);
            !undone_by_us && elapsed.is_some_and(|elapsed| elapsed < age)
        });
        let mut came_to_nothing = false;
        let additions = recent.filter(|line| {
            let counts = !failed(line) && !came_to_nothing && line["why"] == State::Missing.name();
            came_to_nothing = failed(line);
            counts
        });
        additions.count()
    }
}
