//! Targets for conflists and the directory that holds them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::conflist::decide::{Edit, State, View, decide};
use crate::conflist::folder::{Content, Folder};
use crate::conflist::removal::removal;
use crate::conflist::{Mode, Network, Wanted, insert, same_meaning, without};
use crate::names;

const LIST: &str = "10-any.conflist";
const SINGLE: &str = "10-any.conf";

fn entries() -> [Map<String, Value>; 2] {
    let of = |value: Value| value.as_object().cloned().unwrap_or_default();
    let settings = json!({"type": names::PLUGIN_TYPE, "uplinks": ["eth*", "!eth2"],
        "gateways": {"eth1": ["10.0.1.1"]}, "log": {"level": "info"}});
    [of(json!({"type": names::PLUGIN_TYPE})), of(settings)]
}

/// One file of the conf dir.
pub(super) fn text(bytes: &[u8]) {
    for file in [LIST, SINGLE] {
        let Ok(network) = Network::parse(file, bytes) else { continue };
        let Ok(text) = std::str::from_utf8(bytes) else { unreachable!("it was read as text") };
        assert!(!network.plugins.is_empty() && same_meaning(text, text));
        for (at, plugin) in network.plugins.iter().enumerate() {
            let own: Value = match serde_json::from_str(&text[plugin.place.clone()]) {
                Ok(own) => own,
                // A number that serde_json can't represent.
                Err(_) => continue,
            };
            assert_eq!(own["type"], plugin.kind);
            assert_eq!(Value::Object(network.settings(at)), own);
        }
        if network.is_list {
            is_inverse(&network, text);
            all_of_ours_go(&network, text);
        }
    }
}

/// Asserts that adding symroute's entry and removing it again restores the bytes.
fn is_inverse(network: &Network<'_>, text: &str) {
    if !network.ours().is_empty() {
        return;
    }
    for entry in entries() {
        let added = insert(network, &entry);
        let with_us = match Network::parse(LIST, added.as_bytes()) {
            Ok(with_us) => with_us,
            Err(why) => panic!("with our entry it is no network: {why}: {added}"),
        };
        let last = network.plugins.len();
        assert_eq!((with_us.ours(), with_us.settings(last)), (vec![last], entry), "{added}");
        let others = network.plugins.iter().zip(&with_us.plugins);
        assert!(others.into_iter().all(|(a, b)| text[a.place.clone()] == added[b.place.clone()]));
        assert!(!same_meaning(text, &added));
        assert_eq!(without(LIST, &added), text);
    }
}

/// Asserts that a removal takes all of symroute's entries out and changes no other plugin.
fn all_of_ours_go(network: &Network<'_>, text: &str) {
    let bare = without(LIST, text);
    match Network::parse(LIST, bare.as_bytes()) {
        Ok(left) if left.is_ours_alone() => {}
        Ok(left) => {
            assert!(left.ours().is_empty(), "{bare}");
            let others = network.plugins.iter().filter(|plugin| plugin.kind != names::PLUGIN_TYPE);
            let others = others.map(|plugin| &text[plugin.place.clone()]);
            let left = left.plugins.iter().map(|plugin| &bare[plugin.place.clone()]);
            assert!(others.eq(left), "{bare}");
        }
        Err(why) => panic!("without our entry it is no network: {why}: {bare}"),
    }
}

/// Names of the files in the directory: one before symroute's own file, that file, and three after it.
const FILES: [&str; 5] =
    ["00-multus.conf", names::OWN_CONFLIST, "10-any.conflist", "20-any.conf", "30-any.conflist"];

/// A directory of conflists. The first byte chooses the wanted entry; NUL bytes separate the files.
pub(super) fn folder(bytes: &[u8]) {
    let Some((wish, rest)) = bytes.split_first() else { return };
    let mode = [None, Some(Mode::InPlace), Some(Mode::OwnFile)][usize::from(wish % 3)];
    let mut folder =
        Folder { path: PathBuf::from("/etc/cni/net.d"), exists: true, ..Folder::default() };
    for (name, bytes) in
        FILES.iter().zip(rest.split(|&byte| byte == 0)).filter(|(_, b)| !b.is_empty())
    {
        folder.files.insert((*name).into(), Content::Bytes(bytes.to_vec(), None));
    }
    let entry = (wish & 4 != 0).then(|| entries()[1].clone());
    let wanted = Wanted { mode, entry, file: None };
    let view = decide(&folder, &wanted);
    is_consistent(&view);
    let mut changed = folder.clone();
    apply(&mut changed, &view.edits);
    if !view.edits.is_empty() && view.file.is_some() {
        is_settled(&changed, &wanted);
    }
    is_taken_out(&folder, changed);
}

fn is_consistent(view: &View) {
    let is_stuck = view.state.reason().is_some();
    assert!(!is_stuck || view.edits.iter().all(|edit| matches!(edit, Edit::Delete { .. })));
    assert!(view.state != State::Ready || view.edits.is_empty(), "{view:?}");
    assert!(!view.state.name().is_empty());
}

fn apply(folder: &mut Folder, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Write { file, text, .. } => {
                let content = Content::Bytes(text.clone().into_bytes(), None);
                folder.files.insert(file.clone(), content);
            }
            Edit::Delete { file } => drop(folder.files.remove(file)),
        }
    }
}

/// Asserts that symroute's edits leave no further edit. The primary's conflist may still be missing.
fn is_settled(folder: &Folder, wanted: &Wanted) {
    let view = decide(folder, wanted);
    let is_settled = matches!(view.state, State::Ready | State::WaitingForPrimary(_));
    assert!(is_settled && view.edits.is_empty(), "{view:?}");
}

/// Asserts that a removal leaves only the entries that it names. Without entries before, it restores every file.
fn is_taken_out(before: &Folder, mut changed: Folder) {
    let removal = removal(&changed, None, &BTreeMap::new());
    apply(&mut changed, &removal.edits);
    let has_ours = |folder: &Folder, file: &str| {
        folder.network(file).is_ok_and(|network| !network.ours().is_empty())
    };
    let left = changed.files.keys().filter(|file| has_ours(&changed, file)).count();
    assert!(left <= removal.left.len(), "{changed:?}: {removal:?}");
    let was_there = before.files.keys().any(|file| has_ours(before, file));
    if !was_there && !before.files.contains_key(names::OWN_CONFLIST) {
        changed.files.remove(names::OWN_CONFLIST);
        changed.files.remove(names::OWN_CONFLIST_FIRST);
        assert_eq!(changed.files, before.files);
    }
}
