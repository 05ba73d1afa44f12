//! Derives the state of our entry and the edits that correct it from the folder and the wish.

use std::fmt;

use serde_json::{Map, Value};

use super::folder::{Content, Folder, is_own, is_read};
use super::network::Network;
use super::{Mode, Wanted, splice};
use crate::names;

/// A fault and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason {
    /// The fault, with the file's path.
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl Reason {
    pub(super) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// State of our entry in the conf dir.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// The entry exists once, behind the primary plugin, with the wanted settings.
    Ready,
    /// The file has no entry of ours.
    Missing,
    /// The file has more than one entry of ours.
    Duplicate,
    /// Our entry is in front of the primary plugin.
    Misplaced,
    /// Our entry has other settings than wanted.
    Differs,
    /// Our own file is not a copy of the primary's current file.
    Stale,
    /// The file of the other mode has an entry, too.
    OtherMode,
    /// The primary plugin has not written its file yet; check again after the next change.
    WaitingForPrimary(Reason),
    /// Adding the entry would be useless or harmful; the operator has to decide.
    Refused(Reason),
}

impl State {
    /// The state in one word, as the JSON report has it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Missing => "missing",
            Self::Duplicate => "duplicate",
            Self::Misplaced => "misplaced",
            Self::Differs => "differs",
            Self::Stale => "stale",
            Self::OtherMode => "other-mode",
            Self::WaitingForPrimary(_) => "waiting",
            Self::Refused(_) => "refused",
        }
    }

    /// Whether `add` refuses to change anything, and not just waits.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// The reason of a state in which `add` can do nothing.
    pub(crate) fn reason(&self) -> Option<&Reason> {
        match self {
            Self::WaitingForPrimary(reason) | Self::Refused(reason) => Some(reason),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    Write {
        /// Name of the file; for a symbolic link inside the conf dir, that of its target.
        file: String,
        text: String,
        /// File from which the new file gets mode, owner and security label.
        like: String,
    },
    Delete {
        file: String,
    },
}

impl Edit {
    pub(crate) fn file(&self) -> &str {
        match self {
            Self::Write { file, .. } | Self::Delete { file } => file,
        }
    }
}

/// State and place of our entry, and the edits that correct it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) state: State,
    /// The wanted mode.
    pub(crate) mode: Mode,
    /// Name of the primary's file, once known.
    pub(crate) file: Option<String>,
    /// Name of our own file, used with [`Mode::OwnFile`].
    pub(crate) own: &'static str,
    pub(crate) is_cilium: bool,
    /// Further facts that the operator should know.
    pub(crate) notes: Vec<String>,
    /// Edits that `add` applies. Empty if the state is ready, waiting or refused, except that `add` deletes
    /// an own file whose original no longer exists.
    pub(crate) edits: Vec<Edit>,
}

impl View {
    /// Sets the state to refused and drops the edits.
    pub(super) fn refuse(&mut self, reason: Reason) {
        self.state = State::Refused(reason);
        self.edits.clear();
    }
}

/// Derives the state of our entry and the edits that correct it.
pub(crate) fn decide(folder: &Folder, wanted: &Wanted) -> View {
    let in_use = folder.own().next().map(|_| Mode::OwnFile).or(folder.last_wanted.mode);
    let mode = wanted.mode.or(in_use).unwrap_or_default();
    let file = wanted.file.clone();
    let file =
        file.or_else(|| folder.last_wanted.file.clone().filter(|f| folder.files.contains_key(f)));
    let wanted = &Wanted { mode: Some(mode), entry: wanted.entry.clone(), file };
    let mut view = View {
        state: State::Ready,
        mode,
        file: None,
        own: names::OWN_CONFLIST,
        is_cilium: false,
        notes: vec![],
        edits: vec![],
    };
    let (file, network) = match primary(folder, wanted) {
        Ok(found) => found,
        Err(state) => {
            let spare = |file: &str| folder.network(file).is_ok_and(|n| n.is_no_primary());
            let gone = match &wanted.file {
                Some(file) => !folder.files.contains_key(file),
                None => folder.others().all(spare),
            };
            if mode == Mode::OwnFile && gone {
                // A copy must not outlive its original: the runtime would use a network without its primary.
                view.edits.extend(folder.own().map(|(own, _)| delete(own)));
            }
            return View { state, ..view };
        }
    };
    view.file = Some(file.into());
    view.is_cilium = network.is_cilium();
    if network.is_cilium() && !folder.set_aside.is_empty() {
        view.notes.push(format!(
            "Cilium has set files aside in {} ({}): where our entry does not stay, set \
             cni.exclusive=false in Cilium's Helm values",
            folder.path.display(),
            folder.set_aside.join(", ")
        ));
    }
    let taken = folder.taken_by_runtime().filter(|taken| *taken != file && !is_own(taken));
    if let Some(taken) = taken {
        // Multus calls the primary's file itself.
        if folder.network(taken).is_ok_and(|network| !network.is_multus()) {
            view.notes.push(format!("the runtime takes {taken}, which comes before {file}"));
        }
    }
    view.notes.extend(folder.unknown_keys().map(|reason| reason.to_string()));
    match mode {
        Mode::InPlace => in_place(folder, wanted, file, &network, &mut view),
        Mode::OwnFile => own_file(folder, wanted, file, &network, &mut view),
    }
    view
}

/// Finds the primary's file. Error: the state if no file is known or usable.
fn primary<'a>(folder: &'a Folder, wanted: &'a Wanted) -> Result<(&'a str, Network<'a>), State> {
    let path = |file: &str| folder.path.join(file).display().to_string();
    if !folder.exists {
        return Err(State::WaitingForPrimary(Reason::new(
            format!("{}: no such directory", folder.path.display()),
            "if the runtime reads another one, name it with --conf-dir",
        )));
    }
    if let Some(file) = &wanted.file {
        if !is_read(file) || file.contains('/') || is_own(file) {
            return Err(State::Refused(Reason::new(
                format!("{}: not a name of a primary's file", path(file)),
                "give --file the name, without a path, of a .conflist, .conf or .json",
            )));
        }
        return usable(folder, file).map(|network| (file.as_str(), network));
    }
    for file in folder.others() {
        let is_other = |name: &String| folder.network(file).is_ok_and(|n| n.name != *name);
        if folder.network.as_ref().is_some_and(is_other) || names_ours(folder, file) {
            continue;
        }
        let network = match usable(folder, file) {
            Ok(network) if network.is_no_primary() => continue,
            other => other?,
        };
        if folder.network.as_ref() == Some(&network.name) {
            return Ok((file, network));
        }
        if let Some((config, setting)) = &folder.not_first {
            let rivals = folder.others().filter(|other| *other > file);
            let mut rivals =
                rivals.filter(|rival| folder.network(rival).is_ok_and(|n| !n.is_no_primary()));
            if let Some(rival) = rivals.next() {
                return Err(State::Refused(Reason::new(
                    format!(
                        "{} and {}: {} has {setting}, so the first is not the only one taken",
                        path(file),
                        path(rival),
                        config.display()
                    ),
                    format!("say which is the primary's: --file {file} or --file {rival}"),
                )));
            }
        }
        return Ok((file, network));
    }
    Err(State::WaitingForPrimary(Reason::new(
        format!("{}: no network is configured yet", folder.path.display()),
        "install the primary CNI plugin; if the runtime reads another directory, name it with \
         --conf-dir",
    )))
}

/// The network of a file, if the file itself allows our entry. Error: the state if it does not.
fn usable<'a>(folder: &'a Folder, file: &str) -> Result<Network<'a>, State> {
    let path = folder.path.join(file).display().to_string();
    if let Some(Content::Elsewhere(target, _)) = folder.files.get(file) {
        return Err(State::Refused(Reason::new(
            format!("{path}: a link to {}, outside of the directory", target.display()),
            "edit it where it is made, or put a file in the link's place",
        )));
    }
    let network = folder.network(file).map_err(|why| {
        State::WaitingForPrimary(Reason::new(
            format!("{path}: {why}"),
            "another program may be writing it; if it stays so, repair or remove it, or name the \
             primary's file with --file",
        ))
    })?;
    if network.is_multus() {
        let behind = folder.others().filter(|other| *other != file);
        let delegate = behind.into_iter().find(|other| {
            folder.network(other).is_ok_and(|n| n.is_list && !n.is_multus() && !n.is_no_primary())
        });
        return Err(State::Refused(Reason::new(
            format!("{path}: belongs to Multus, which calls the primary's list itself"),
            format!(
                "chain into that one: --file {}",
                delegate.unwrap_or("NAME, the primary's conflist")
            ),
        )));
    }
    if network.is_ours_alone() {
        return Err(State::WaitingForPrimary(Reason::new(
            format!("{path}: names no plugin but {}", names::PLUGIN_TYPE),
            "install the primary CNI plugin",
        )));
    }
    Ok(network)
}

fn in_place(folder: &Folder, wanted: &Wanted, file: &str, network: &Network<'_>, view: &mut View) {
    if !network.is_list {
        view.state = State::Refused(Reason::new(
            format!("{}: a single plugin, no list", folder.path.join(file).display()),
            "use --mode own-file, which makes a list of it, or have the primary write a .conflist",
        ));
        return;
    }
    let (state, text) =
        corrected_list(network, file, wanted.entry.as_ref(), folder.last_wanted.entry.as_ref());
    if let Some(text) = text {
        view.edits.push(write(folder, file, text));
    }
    view.state = state;
    for (own, _) in folder.own() {
        if let Some(multus) = folder.multus_that_names(own) {
            view.edits.clear();
            view.state = State::Refused(Reason::new(
                format!(
                    "{}: Multus names {own}, which this would delete",
                    folder.path.join(multus).display()
                ),
                format!("have it name {file} first (clusterNetwork), or leave --mode in-place out"),
            ));
            return;
        }
        view.edits.push(delete(own));
        if view.state == State::Ready {
            view.state = State::OtherMode;
        }
    }
    if view.state == State::Ready {
        view.state = state_with_multus(folder, file, network);
    }
}

/// State of our entry in a list, and the text that corrects it.
fn corrected_list(
    network: &Network<'_>,
    file: &str,
    entry: Option<&Map<String, Value>>,
    last: Option<&Map<String, Value>>,
) -> (State, Option<String>) {
    let ours = network.ours();
    let behind = ours.iter().copied().find(|place| *place > 0);
    let new = || {
        let present = || ours.first().map(|at| network.settings(*at));
        let entry = entry.cloned().or_else(present).or_else(|| last.cloned());
        entry.unwrap_or_else(Wanted::plain)
    };
    match (ours.as_slice(), behind) {
        ([], _) => (State::Missing, Some(splice::insert(network, &new()))),
        ([_], Some(at)) if entry.is_some_and(|entry| *entry != network.settings(at)) => {
            (State::Differs, Some(splice::replace(network, at, &new())))
        }
        ([_], Some(_)) => (State::Ready, None),
        (many, _) => {
            let state = if many.len() > 1 { State::Duplicate } else { State::Misplaced };
            let bare = splice::without(file, network.text);
            let text = Network::parse(file, bare.as_bytes()).map(|n| splice::insert(&n, &new()));
            (state, text.ok())
        }
    }
}

/// Ready, or waiting if a Multus file that comes first has an older copy of this list without our entry.
fn state_with_multus(folder: &Folder, file: &str, network: &Network<'_>) -> State {
    let stale = folder.taken_by_runtime().filter(|first| *first != file).filter(|first| {
        folder
            .network(first)
            .is_ok_and(|first| first.is_multus() && first.delegates_without_us(&network.name))
    });
    stale.map_or(State::Ready, |first| {
        State::WaitingForPrimary(Reason::new(
            format!(
                "{}: has a copy of \"{}\" without our entry",
                folder.path.join(first).display(),
                network.name
            ),
            "Multus makes it anew when it sees the change; if not, restart its pod on this node",
        ))
    })
}

fn own_file(folder: &Folder, wanted: &Wanted, file: &str, network: &Network<'_>, view: &mut View) {
    // Only a single plugin needs a copy that comes before it; a list with such a name can have our entry itself.
    let is_before = !network.is_list && file < names::OWN_CONFLIST;
    let own = if is_before { names::OWN_CONFLIST_FIRST } else { names::OWN_CONFLIST };
    view.own = own;
    if let Some(reason) = own_file_refusal(folder, own, network) {
        view.state = State::Refused(reason);
        return;
    }
    let present = match folder.files.get(own) {
        Some(Content::Bytes(bytes, _)) => Some(bytes.as_slice()),
        _ => None,
    };
    let list = if network.is_list { network.text.to_string() } else { splice::list_of(network) };
    let settings = |name: &str, text: &[u8]| {
        let network = Network::parse(name, text).ok()?;
        network.ours().first().map(|at| network.settings(*at))
    };
    let entry = wanted.entry.clone();
    let of_old = || {
        folder.own().find_map(|(name, content)| match content {
            Content::Bytes(bytes, _) => settings(name, bytes),
            _ => None,
        })
    };
    let entry = entry.or_else(of_old);
    let entry = entry.or_else(|| settings(file, network.text.as_bytes()));
    let entry = entry.or_else(|| folder.last_wanted.entry.clone());
    let bare = splice::without(own, &list);
    let entry = entry.unwrap_or_else(Wanted::plain);
    let Ok(text) = Network::parse(own, bare.as_bytes()).map(|n| splice::insert(&n, &entry)) else {
        return;
    };
    view.state = match folder.files.get(own) {
        None => State::Missing,
        _ if present == Some(text.as_bytes()) => State::Ready,
        _ => State::Stale,
    };
    if view.state != State::Ready {
        view.edits.push(Edit::Write { file: own.into(), text, like: target(folder, file).into() });
    }
    if network.is_list && !network.ours().is_empty() {
        if view.state == State::Ready {
            view.state = State::OtherMode;
        }
        view.edits.push(write(folder, file, splice::without(file, network.text)));
    }
    // The primary's file had another name before.
    for (old, _) in folder.own().filter(|(name, _)| *name != own) {
        if view.state == State::Ready {
            view.state = State::OtherMode;
        }
        view.edits.push(delete(old));
    }
}

/// Whether this is Multus's file and names our own file. Such a file may come first.
fn names_ours(folder: &Folder, file: &str) -> bool {
    folder.own().any(|(own, _)| folder.multus_that_names(own) == Some(file))
}

fn delete(file: &str) -> Edit {
    Edit::Delete { file: file.into() }
}

/// Why the runtime would not use our own file with this name.
fn own_file_refusal(folder: &Folder, own: &str, network: &Network<'_>) -> Option<Reason> {
    let path = folder.path.join(own);
    let path = path.display();
    if folder.files.get(own).is_some_and(|own| !matches!(own, Content::Bytes(_, None))) {
        let what = format!("{path}: a link, or can't be read");
        return Some(Reason::new(what, "remove it, then add again"));
    }
    // A runtime whose configuration names a network takes the first file with that name.
    let is_named = folder.network.as_ref() == Some(&network.name);
    if let Some((config, setting)) = folder.not_first.as_ref().filter(|_| !is_named) {
        return Some(Reason::new(
            format!(
                "{path}: would not be taken alone, {} has {setting}: each pod might be attached \
                 twice or not by it",
                config.display()
            ),
            "use --mode in-place, or take that setting out",
        ));
    }
    let has_name = |other: &str| folder.network(other).is_ok_and(|n| n.name == network.name);
    let counts = |other: &str| !names_ours(folder, other) && (!is_named || has_name(other));
    let is_before = |other: &&str| *other < own && counts(other);
    if let Some(first) = folder.others().find(is_before) {
        return Some(Reason::new(
            format!("{path}: would not be taken, {first} comes before it"),
            "use --mode in-place",
        ));
    }
    let aside = folder.own_set_aside().find(|aside| aside.starts_with(own));
    aside.filter(|_| !folder.files.contains_key(own)).map(|aside| {
        Reason::new(
            format!("{path}: Cilium has set it aside as {aside}"),
            "set cni.exclusive=false in Cilium's Helm values, then: symroutectl conflist remove, and \
             add again",
        )
    })
}

/// Resolves a name that is a symbolic link inside the conf dir to its target.
pub(super) fn target<'a>(folder: &'a Folder, file: &'a str) -> &'a str {
    match folder.files.get(file) {
        Some(Content::Bytes(_, Some(target))) => target,
        _ => file,
    }
}

pub(super) fn write(folder: &Folder, file: &str, text: String) -> Edit {
    let target = target(folder, file);
    Edit::Write { file: target.into(), text, like: target.into() }
}
