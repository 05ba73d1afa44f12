//! Reads the conf dir and applies edits to it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::decide::{Edit, Reason, State, View, decide};
use super::folder::{Content, Folder, is_own, is_read, is_set_aside};
use super::program::{check_plugin_directory, is_in_place};
use super::removal::{Removal, removal};
use super::replace::{self, Done};
use super::store::{self, Store};
use super::{Error, Gate, Network, Wanted};
use crate::config::source::NetworkConfig;
use crate::config::{self, Config};
use crate::error::absent_is_none;
use crate::names;
use crate::runtimes::{self, places::below};

/// Maximum number of attempts at a change while another program writes the file.
const TRIES: usize = 5;
/// Maximum number of times within [`WINDOW`] that `add` restores our entry. After that it refuses, because
/// another program keeps removing the entry.
const ADDITIONS: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);

/// Directories that the conflist commands use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) conf_dir: PathBuf,
    /// Directory of the original files and the journal.
    pub(crate) state_dir: PathBuf,
    /// Root of the node's file system, which has the runtime's configuration.
    pub(crate) root: PathBuf,
    /// Directory into which the agent installs the plugin, as a path in the agent's container.
    pub(crate) plugins: Option<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            conf_dir: names::CONF_DIR.into(),
            state_dir: names::LASTING_DIR.into(),
            root: "/".into(),
            plugins: None,
        }
    }
}

impl Places {
    /// Moves the directories below another root.
    pub(crate) fn under(self, root: &Path) -> Self {
        Self {
            conf_dir: below(root, &self.conf_dir),
            state_dir: below(root, &self.state_dir),
            root: root.to_path_buf(),
            plugins: self.plugins,
        }
    }
}

/// Result of `add` or `remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// State before; `None` for `remove`.
    pub(crate) found: Option<View>,
    /// State after; `None` for `remove`.
    pub(crate) now: Option<View>,
    /// The applied edits.
    pub(crate) changes: Vec<Edit>,
    /// Entries that `remove` could not remove.
    pub(crate) left: Vec<Reason>,
    /// Further facts about a removal that the operator should know.
    pub(crate) notes: Vec<String>,
}

/// The conf dir. Changes take a lock on the state dir.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    places: Places,
    store: Store,
}

impl Directory {
    /// A conf dir with the default state dir. Reads and writes nothing yet.
    pub(crate) fn open(conf_dir: impl Into<PathBuf>) -> Self {
        Self::at(Places { conf_dir: conf_dir.into(), ..Places::default() })
    }

    /// A conf dir at these places. Reads and writes nothing yet.
    pub(crate) fn at(places: Places) -> Self {
        let store = Store::new(&places.state_dir);
        Self { places, store }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.places.conf_dir
    }

    pub(crate) fn read(&self) -> Result<Folder, Error> {
        let path = &self.places.conf_dir;
        let last_wanted = self.store.wanted();
        let mut folder = Folder { path: path.clone(), last_wanted, ..Folder::default() };
        let entries = absent_is_none(fs::read_dir(path)).map_err(Error::at("read", path))?;
        let Some(entries) = entries else { return Ok(folder) };
        folder.exists = true;
        let runtimes = runtimes::read(&self.places.root);
        folder.network = runtimes.iter().find_map(|runtime| runtime.network.clone());
        folder.not_first = runtimes.into_iter().find_map(|runtime| runtime.not_first);
        let home = path.canonicalize().map_err(Error::at("read", path))?;
        for entry in entries {
            let entry = entry.map_err(Error::at("read", path))?;
            // Runtimes also read names that are not UTF-8, but no primary plugin writes one.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_set_aside(&name) {
                folder.set_aside.push(name);
            } else if is_read(&name) && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folder.files.insert(name, content(&home, &entry.path())?);
            }
        }
        folder.set_aside.sort();
        Ok(folder)
    }

    /// The settings of the entry that `add` would write; the defaults if no wish names settings. `None` if an
    /// ADD would refuse them, or if they serve only pods.
    pub(crate) fn settings_to_come(&self, wanted: &Wanted) -> Option<Config> {
        let entry = wanted.or(&self.store.wanted()).entry.unwrap_or_default();
        config::parse(&entry).ok().filter(|config| config.scope.host)
    }

    /// The state of our entry. Changes nothing.
    pub(crate) fn examine(&self, wanted: &Wanted) -> Result<View, Error> {
        Ok(decide(&self.read()?, wanted))
    }

    /// The state and the edits that [`Self::add`] would find now. Changes nothing.
    pub(crate) fn try_out(
        &self,
        wanted: &Wanted,
        gate: Option<&mut (dyn Gate + '_)>,
    ) -> Result<View, Error> {
        let mut view = self.examine(wanted)?;
        self.check(&mut view, check_plugin_directory);
        ask_gate(&mut view, self.path(), gate, |gate, network| gate.fits(network));
        Ok(view)
    }

    /// Adds our entry or corrects it. If the state is waiting or refused, the conf dir stays as it is, and
    /// the outcome has the reason. Refuses settings that the gate refuses.
    pub(crate) fn add(
        &self,
        wanted: &Wanted,
        mut gate: Option<&mut (dyn Gate + '_)>,
    ) -> Result<Outcome, Error> {
        // Without changes, neither a lock nor a state directory is needed.
        let folder = self.read()?;
        let (found, last) = (decide(&folder, wanted), folder.last_wanted);
        let is_known = wanted.or(&last) == last || found.state.is_refused();
        if found.edits.is_empty() && is_known && !self.has_temporary_file() {
            let now = Some(found.clone());
            return Ok(Outcome { found: Some(found), now, ..Outcome::default() });
        }
        let _lock = self.store.lock()?;
        let folder = self.read()?;
        let mut found = decide(&folder, wanted);
        if let Some(refusal) = self.refusal_after_losses(&found) {
            found.refuse(refusal);
        }
        replace::clean(self.path())?;
        self.check(&mut found, check_plugin_directory);
        self.check(&mut found, is_in_place);
        ask_gate(&mut found, self.path(), gate.as_deref_mut(), |gate, network| gate.open(network));
        let to_remember = wanted.or(&folder.last_wanted);
        if !found.state.is_refused() && to_remember != folder.last_wanted {
            // Also while the primary's file is missing: a later add finishes the work, without the options.
            self.store.remember(&to_remember)?;
        }
        let plan = |folder: &Folder| decide(folder, wanted).edits;
        let (edits, why) = (found.edits.clone(), found.state.name());
        let (changes, now) = if edits.is_empty() {
            (vec![], found.clone())
        } else {
            let done = self.carry_out(folder, edits, plan, why);
            if let (Err(_), Some(gate)) = (&done, gate) {
                gate.close();
            }
            let (changes, folder) = done?;
            (changes, decide(&folder, wanted))
        };
        Ok(Outcome { found: Some(found), now: Some(now), changes, ..Outcome::default() })
    }

    /// The edits that [`Self::remove`] would apply. Changes nothing.
    pub(crate) fn examine_removal(&self, only: Option<&str>) -> Result<Outcome, Error> {
        let removal = removal(&self.read()?, only, &self.store.originals());
        let Removal { edits: changes, left, notes } = removal;
        Ok(Outcome { changes, left, notes, ..Outcome::default() })
    }

    /// Removes our entries from all files, or only from the file `only`, and deletes our own file.
    pub(crate) fn remove(&self, only: Option<&str>) -> Result<Outcome, Error> {
        let found = self.examine_removal(only)?;
        let remembers = only.is_none() && self.store.remembers();
        if found.changes.is_empty() && !remembers && !self.has_temporary_file() {
            return Ok(found);
        }
        let _lock = self.store.lock()?;
        let originals = self.store.originals();
        let plan = |folder: &Folder| removal(folder, only, &originals).edits;
        let folder = self.read()?;
        let edits = plan(&folder);
        replace::clean(self.path())?;
        let (changes, _) = self.carry_out(folder, edits, plan, "remove")?;
        if only.is_none() && found.left.is_empty() {
            self.store.forget()?;
        }
        Ok(Outcome { changes, left: found.left, notes: found.notes, ..Outcome::default() })
    }

    /// Sets the state to refused if a check of the programs fails.
    fn check(&self, view: &mut View, check: fn(&Places, &View) -> Result<(), Reason>) {
        if let Err(reason) = check(&self.places, view) {
            view.refuse(reason);
        }
    }

    fn has_temporary_file(&self) -> bool {
        self.path().join(names::CONFLIST_TEMPORARY).symlink_metadata().is_ok()
    }

    /// Applies edits and plans again until no edit is left. Returns the applied edits and the directory after
    /// them. `why` is for the journal: `"remove"`, or the state found before.
    fn carry_out(
        &self,
        mut folder: Folder,
        mut edits: Vec<Edit>,
        plan: impl Fn(&Folder) -> Vec<Edit>,
        why: &str,
    ) -> Result<(Vec<Edit>, Folder), Error> {
        let mut changes: Vec<Edit> = Vec::new();
        for _ in 0..TRIES {
            for edit in &edits {
                if self.change(&folder, edit, why)? == Done::Outrun {
                    break;
                }
                changes.retain(|earlier| earlier.file() != edit.file());
                changes.push(edit.clone());
            }
            folder = self.read()?;
            edits = plan(&folder);
            if edits.is_empty() {
                return Ok((changes, folder));
            }
        }
        let path = edits.first().map_or_else(|| self.path().into(), |e| self.path().join(e.file()));
        Err(Error::Contended { path })
    }

    fn change(&self, folder: &Folder, edit: &Edit, why: &str) -> Result<Done, Error> {
        let dir = self.path();
        let path = dir.join(edit.file());
        let is_ours = |text: &[u8]| {
            Network::parse(".conflist", text).is_ok_and(|network| !network.ours().is_empty())
        };
        let action = match edit {
            Edit::Write { text, .. } if is_ours(text.as_bytes()) => store::PUT_IN,
            Edit::Write { .. } => "take out",
            Edit::Delete { .. } => "delete",
        };
        let old = bytes_of(folder, edit.file());
        if let (Some(old), Edit::Write { file, .. }) = (old, edit) {
            if action == store::PUT_IN && !is_ours(old) {
                self.store.keep_original(file, old)?;
            }
        }
        // Written before the change, so that the journal has every change. A failure gets a second line.
        let source = match edit {
            Edit::Write { file, like, .. } => Some(like.as_str()).filter(|like| like != file),
            Edit::Delete { .. } => None,
        };
        self.store.note(action, &path, why, source)?;
        let done = match edit {
            Edit::Write { file, text, like } => {
                replace::replace(dir, file, old, text.as_bytes(), like)
            }
            Edit::Delete { file } => replace::delete(dir, file).map(|()| Done::Replaced),
        };
        match &done {
            Ok(Done::Replaced) => {}
            Ok(Done::Outrun) => {
                self.store.note(store::OUTRUN, &path, "another program wrote it", None)?;
            }
            Err(error) => self.store.note(store::FAILED, &path, &error.to_string(), None)?,
        }
        done
    }

    /// The refusal if `add` has restored our entry too often of late.
    fn refusal_after_losses(&self, view: &View) -> Option<Reason> {
        let [Edit::Write { file, .. }, ..] = view.edits.as_slice() else { return None };
        let path = self.path().join(file);
        let missing = view.state == State::Missing;
        let times = self.store.recent_additions(&path, WINDOW);
        (missing && times >= ADDITIONS).then(|| {
            let remedy = if view.is_cilium || is_own(file) {
                "set cni.exclusive=false in Cilium's Helm values, or set up the program that \
                 writes it to keep other plugins"
            } else {
                "set up the program that writes it to keep other plugins"
            };
            Reason {
                what: format!(
                    "{}: our entry went missing {times} times within a minute",
                    path.display()
                ),
                remedy: format!("{remedy}; after a minute it is tried again"),
            }
        })
    }
}

/// Asks the gate, if one is given, and refuses what it refuses.
fn ask_gate(
    view: &mut View,
    dir: &Path,
    gate: Option<&mut (dyn Gate + '_)>,
    ask: impl FnOnce(&mut dyn Gate, &NetworkConfig) -> Result<(), Reason>,
) {
    let Some(gate) = gate else { return };
    let said = match view.added_settings(dir) {
        Ok(Some(network)) => ask(gate, &network),
        Ok(None) => Ok(()),
        Err(reason) => Err(reason),
    };
    if let Err(reason) = said {
        view.refuse(reason);
    }
}

/// The bytes of `file` as read, under its own name or through a symbolic link to it.
fn bytes_of<'a>(folder: &'a Folder, file: &str) -> Option<&'a [u8]> {
    let files: &BTreeMap<String, Content> = &folder.files;
    files.iter().find_map(|(name, content)| match content {
        Content::Bytes(bytes, target) if target.as_deref().unwrap_or(name) == file => {
            Some(bytes.as_slice())
        }
        _ => None,
    })
}

/// Reads the file at `path`, whose directory has the canonical path `home`.
fn content(home: &Path, path: &Path) -> Result<Content, Error> {
    let unreadable = |error: io::Error| match error.kind() {
        // Waiting does not correct missing permissions.
        io::ErrorKind::PermissionDenied => Err(Error::at("read", path)(error)),
        io::ErrorKind::NotFound if !path.is_symlink() => Ok(Content::Unreadable("gone".into())),
        _ => Ok(Content::Unreadable(error.to_string())),
    };
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) => return unreadable(error),
    };
    if real.parent() != Some(home) {
        let text = replace::read(&real).unwrap_or_default();
        let has_us = String::from_utf8_lossy(&text).contains(names::PLUGIN_TYPE);
        return Ok(Content::Elsewhere(real, has_us));
    }
    let target = path.is_symlink().then(|| real.file_name()).flatten();
    match replace::read(&real) {
        Ok(bytes) => {
            Ok(Content::Bytes(bytes, target.map(|name| name.to_string_lossy().into_owned())))
        }
        Err(error) => unreadable(error),
    }
}
