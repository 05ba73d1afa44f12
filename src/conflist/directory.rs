//! The conf dir itself: reading it, and carrying edits out.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::decide::{Edit, Reason, State, View, decide};
use super::folder::{Content, Folder, is_own, is_read, is_set_aside};
use super::program::{goes_where_the_runtime_looks, is_in_place};
use super::removal::{Removal, removal};
use super::replace::{self, Done};
use super::store::{self, Store};
use super::{Error, Gate, Network, Wanted};
use crate::config::source::NetworkConfig;
use crate::config::{self, Config};
use crate::error::absent_is_none;
use crate::names;
use crate::runtimes::{self, places::below};

/// How often a change is tried while somebody else writes.
const TRIES: usize = 5;
/// That many times within [`WINDOW`] our entry may have to be put back; one more is a fight.
const ADDITIONS: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);

/// The directories that are worked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) conf_dir: PathBuf,
    /// Where copies and the journal are kept.
    pub(crate) state_dir: PathBuf,
    /// Where the node's file system begins; the runtime's own configuration is looked for there.
    pub(crate) root: PathBuf,
    /// Where the agent puts the plugin, as it sees that directory.
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
    /// The same places below another root.
    pub(crate) fn under(self, root: &Path) -> Self {
        Self {
            conf_dir: below(root, &self.conf_dir),
            state_dir: below(root, &self.state_dir),
            root: root.to_path_buf(),
            plugins: self.plugins,
        }
    }
}

/// What `add` or `remove` did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How it stood before; none for `remove`.
    pub(crate) found: Option<View>,
    /// How it stands now; none for `remove`.
    pub(crate) now: Option<View>,
    /// The changes, none where nothing had to be or could be done.
    pub(crate) changes: Vec<Edit>,
    /// What `remove` had to leave.
    pub(crate) left: Vec<Reason>,
    /// What a person should know of a removal besides.
    pub(crate) notes: Vec<String>,
}

/// The conf dir. All calls of it serialise on the state dir.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    places: Places,
    store: Store,
}

impl Directory {
    /// A conf dir, copies and journal in the default place. Nothing is touched yet.
    pub(crate) fn open(conf_dir: impl Into<PathBuf>) -> Self {
        Self::at(Places { conf_dir: conf_dir.into(), ..Places::default() })
    }

    /// A conf dir at these places. Nothing is touched yet.
    pub(crate) fn at(places: Places) -> Self {
        let store = Store::new(&places.state_dir);
        Self { places, store }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.places.conf_dir
    }

    pub(crate) fn read(&self) -> Result<Folder, Error> {
        let path = &self.places.conf_dir;
        let mut folder = Folder { path: path.clone(), ..Folder::default() };
        let entries = absent_is_none(fs::read_dir(path)).map_err(Error::at("read", path))?;
        let Some(entries) = entries else { return Ok(folder) };
        folder.exists = true;
        folder.last = self.store.wanted();
        let runtimes = runtimes::read(&self.places.root);
        folder.network = runtimes.iter().find_map(|runtime| runtime.network.clone());
        folder.not_first = runtimes.into_iter().find_map(|runtime| runtime.not_first);
        let home = path.canonicalize().map_err(Error::at("read", path))?;
        for entry in entries {
            let entry = entry.map_err(Error::at("read", path))?;
            // Runtimes take such a name too, but none of their plugins' writers makes one.
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

    /// The settings of the entry that is to come; those of an entry without settings where nothing says
    /// more. None where no ADD would take them.
    pub(crate) fn settings_to_come(&self, wanted: &Wanted) -> Option<Config> {
        let entry = wanted.or(&self.store.wanted()).entry.unwrap_or_default();
        config::parse(&entry).ok().filter(|config| config.scope.host)
    }

    /// How it stands with our entry. Changes nothing.
    pub(crate) fn examine(&self, wanted: &Wanted) -> Result<View, Error> {
        Ok(decide(&self.read()?, wanted))
    }

    /// How it would be if our entry were put in or right now. Changes nothing.
    pub(crate) fn try_out(
        &self,
        wanted: &Wanted,
        gate: Option<&mut (dyn Gate + '_)>,
    ) -> Result<View, Error> {
        let mut view = self.examine(wanted)?;
        self.check(&mut view, goes_where_the_runtime_looks);
        pass(&mut view, self.path(), gate, |gate, network| gate.fits(network));
        Ok(view)
    }

    /// Puts our entry in, or right. Where the state is waiting or refused the conf dir stays as
    /// it is, and the outcome says why. What the gate does not let through is refused.
    pub(crate) fn add(
        &self,
        wanted: &Wanted,
        mut gate: Option<&mut (dyn Gate + '_)>,
    ) -> Result<Outcome, Error> {
        // Without anything to do there is nothing to lock, and no state directory to make.
        let folder = self.read()?;
        let (found, last) = (decide(&folder, wanted), folder.last);
        let is_known = wanted.or(&last) == last || found.state.reason().is_some();
        if found.edits.is_empty() && is_known && !self.has_litter() {
            let now = Some(found.clone());
            return Ok(Outcome { found: Some(found), now, ..Outcome::default() });
        }
        let _lock = self.store.lock()?;
        let folder = self.read()?;
        let mut found = decide(&folder, wanted);
        if let Some(refusal) = self.fight(&found) {
            found.refuse(refusal);
        }
        replace::clean(self.path())?;
        self.check(&mut found, goes_where_the_runtime_looks);
        self.check(&mut found, is_in_place);
        pass(&mut found, self.path(), gate.as_deref_mut(), |gate, network| gate.open(network));
        if found.state.reason().is_none() && wanted.or(&folder.last) != folder.last {
            self.store.remember(&wanted.or(&folder.last))?;
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

    /// What [`Self::remove`] would do. Changes nothing.
    pub(crate) fn examine_removal(&self, only: Option<&str>) -> Result<Outcome, Error> {
        let removal = removal(&self.read()?, only, &self.store.originals());
        let Removal { edits: changes, left, notes } = removal;
        Ok(Outcome { changes, left, notes, ..Outcome::default() })
    }

    /// Takes our entries out of all files, or out of one, and deletes our own file.
    pub(crate) fn remove(&self, only: Option<&str>) -> Result<Outcome, Error> {
        let found = self.examine_removal(only)?;
        let remembers = only.is_none() && self.store.remembers();
        if found.changes.is_empty() && !remembers && !self.has_litter() {
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

    /// Refuses what a check of the programs has a reason against.
    fn check(&self, view: &mut View, check: fn(&Places, &View) -> Result<(), Reason>) {
        if let Err(reason) = check(&self.places, view) {
            view.refuse(reason);
        }
    }

    fn has_litter(&self) -> bool {
        self.path().join(names::CONFLIST_TEMPORARY).symlink_metadata().is_ok()
    }

    /// Carries edits out until there are none left to do; tells which those were, and how the
    /// directory is then. `why` goes to the journal: "remove", or the state that was found.
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
                self.store.keep(file, old)?;
            }
        }
        // Before the change, so that none is missing; what failed is told after.
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
                self.store.note(store::OUTRUN, &path, "somebody else wrote it", None)?;
            }
            Err(error) => self.store.note(store::FAILED, &path, &error.to_string(), None)?,
        }
        done
    }

    /// Whether our entry was put back too often of late.
    fn fight(&self, view: &View) -> Option<Reason> {
        let [Edit::Write { file, .. }, ..] = view.edits.as_slice() else { return None };
        let path = self.path().join(file);
        let missing = view.state == State::Missing;
        let times = self.store.recent_additions(&path, WINDOW);
        (missing && times >= ADDITIONS).then(|| {
            let way_out = if view.is_cilium || is_own(file) {
                "set cni.exclusive=false in Cilium's Helm values, or have whoever else writes it \
                 keep other plugins"
            } else {
                "have whoever else writes it keep other plugins"
            };
            Reason {
                what: format!(
                    "{}: our entry went missing {times} times within a minute",
                    path.display()
                ),
                way_out: format!("{way_out}; after a minute it is tried again"),
            }
        })
    }
}

/// Asks the gate, if there is one, and takes over what it says.
fn pass(
    view: &mut View,
    dir: &Path,
    gate: Option<&mut (dyn Gate + '_)>,
    ask: impl FnOnce(&mut dyn Gate, &NetworkConfig) -> Result<(), Reason>,
) {
    let Some(gate) = gate else { return };
    let said = match view.promises(dir) {
        Ok(Some(network)) => ask(gate, &network),
        Ok(None) => Ok(()),
        Err(reason) => Err(reason),
    };
    if let Err(reason) = said {
        view.refuse(reason);
    }
}

/// The bytes of a file as they were read, by its name or by that of a link to it.
fn bytes_of<'a>(folder: &'a Folder, file: &str) -> Option<&'a [u8]> {
    let files: &BTreeMap<String, Content> = &folder.files;
    files.iter().find_map(|(name, content)| match content {
        Content::Bytes(bytes, target) if target.as_deref().unwrap_or(name) == file => {
            Some(bytes.as_slice())
        }
        _ => None,
    })
}

/// What is in the file at `path`, which lies in the directory `home`.
fn content(home: &Path, path: &Path) -> Result<Content, Error> {
    let unreadable = |error: io::Error| match error.kind() {
        // Nothing that waiting mends.
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
