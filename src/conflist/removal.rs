//! Derives the edits that remove our entry from the folder as found.

use std::collections::BTreeMap;

use super::decide::{Edit, Reason, target, write};
use super::folder::{Content, Folder, is_own};
use super::network::Network;
use super::splice;
use crate::names;

/// Plan of `remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) edits: Vec<Edit>,
    /// Files with an entry of ours, or perhaps with one, that `remove` can't edit.
    pub(crate) left: Vec<Reason>,
    /// Further facts that the operator should know.
    pub(crate) notes: Vec<String>,
}

/// Plans the removal of our entry from the file `only`, or from all files. `originals` has the texts from
/// before the first entry. An original replaces the text without our entry if both differ only in white
/// space.
pub(crate) fn removal(
    folder: &Folder,
    only: Option<&str>,
    originals: &BTreeMap<String, String>,
) -> Removal {
    let mut removal = Removal::default();
    if let Some(only) = only {
        if !folder.files.contains_key(only) && !folder.set_aside.iter().any(|name| name == only) {
            let what = format!("{}: not there", folder.path.join(only).display());
            removal.left.push(Reason::new(what, "give --file the name, without a path"));
        }
    }
    for (file, content) in &folder.files {
        if only.is_some_and(|only| only != file) {
            continue;
        }
        if is_own(file) {
            remove_own(folder, file, &mut removal);
            continue;
        }
        let path = folder.path.join(file).display().to_string();
        let bytes = match content {
            Content::Bytes(bytes, _) => bytes,
            Content::Elsewhere(target, true) => {
                let target = target.display();
                removal.left.push(Reason::new(
                    format!("{path}: a link to {target}, and {} is in it", names::PLUGIN_TYPE),
                    "take the entry out where that file is made",
                ));
                continue;
            }
            _ => continue,
        };
        match Network::parse(file, bytes) {
            Ok(network) if network.ours().is_empty() => {}
            Ok(network) if network.is_ours_alone() => removal.left.push(Reason::new(
                format!("{path}: names no plugin but {}", names::PLUGIN_TYPE),
                "remove the file if no program needs it",
            )),
            Ok(network) => {
                let bare = splice::without(file, network.text);
                let original = originals.get(target(folder, file));
                let original = original.filter(|text| splice::same_meaning(text, &bare)).cloned();
                let edit = write(folder, file, original.unwrap_or(bare));
                // A file and a link to it make the same edit.
                if !removal.edits.iter().any(|other| other.file() == edit.file()) {
                    removal.edits.push(edit);
                }
            }
            Err(why) if String::from_utf8_lossy(bytes).contains(names::PLUGIN_TYPE) => {
                removal.left.push(Reason::new(
                    format!("{path}: {why}, but {} is in it", names::PLUGIN_TYPE),
                    "repair it and remove again, or take the entry out by hand",
                ));
            }
            Err(_) => {}
        }
    }
    let aside = folder.own_set_aside().filter(|aside| only.is_none_or(|only| only == aside));
    removal.edits.extend(aside.map(|file| Edit::Delete { file }));
    removal
}

/// Plans the removal of our own file. If Multus names the file, Multus would start no pod without it, so the
/// file stays as a copy of the primary's file without our entry.
fn remove_own(folder: &Folder, file: &str, removal: &mut Removal) {
    let delete = || Edit::Delete { file: file.into() };
    let Some(multus) = folder.multus_that_names(file) else {
        removal.edits.push(delete());
        return;
    };
    match folder.network(file) {
        Ok(network) if network.is_ours_alone() => removal.edits.push(delete()),
        Ok(network) if network.ours().is_empty() => {}
        Ok(network) => {
            removal.edits.push(write(folder, file, splice::without(file, network.text)));
        }
        Err(_) => {}
    }
    removal.notes.push(format!(
        "{} stays without our entry, since Multus names it ({multus}): have that name the primary's file \
         (clusterNetwork), then remove again",
        folder.path.join(file).display()
    ));
}
