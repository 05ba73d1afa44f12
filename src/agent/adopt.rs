//! Pods that were there before us. Their ADD did not call us and their DEL will not: they are
//! enrolled from the runtime's cache of results, and taken out when their entry goes.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::cni::cached::{self, Cached};
use crate::cni::enroll::enroll;
use crate::config::Settings;
use crate::error::Error;
use crate::node::Node;
use crate::state::Attachment;

/// Entries are some kilobytes; what is larger is none.
const LARGEST: u64 = 1024 * 1024;

/// What one look at the cache did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Pods that were enrolled.
    pub enrolled: u64,
    /// Adopted pods that were taken out.
    pub taken_out: u64,
}

/// The runtime's cache, and what is known of it.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    /// Entries that need no other look while they stay as they are.
    seen: HashMap<String, SystemTime>,
    /// Entries of adopted pods, once they are known.
    adopted: Option<HashSet<String>>,
}

impl Cache {
    /// The cache in this folder.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, seen: HashMap::new(), adopted: None }
    }

    /// How many pods are adopted.
    #[must_use]
    pub fn adopted(&self) -> usize {
        self.adopted.as_ref().map_or(0, HashSet::len)
    }

    /// Forgets what is known: the node state was made anew.
    pub fn forget(&mut self) {
        self.seen.clear();
        self.adopted = None;
    }

    /// Enrolls pods of the network that are not, and takes out adopted ones that are no more.
    ///
    /// # Errors
    /// The cache can't be listed, or a pod could not be enrolled; the others are.
    pub fn adopt(
        &mut self,
        node: &mut Node,
        network: &str,
        settings: &Settings,
    ) -> Result<Done, String> {
        let names = match self.names(network) {
            Ok(names) => names,
            // Without a cache there is nothing to go by: nobody is taken out.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Done::default()),
            Err(error) => return Err(format!("list {}: {error}", self.folder.display())),
        };
        let mut done = Done::default();
        let mut failures = self.take_out(node, &mut done);
        self.seen.retain(|name, _| names.contains(name));
        for name in &names {
            match self.enroll(node, name, network, settings) {
                Ok(enrolled) => done.enrolled += u64::from(enrolled),
                Err(error) => failures.push(format!("adopt {name}: {error}")),
            }
        }
        failures.into_iter().next().map_or(Ok(done), Err)
    }

    /// Names of the network's entries.
    fn names(&self, network: &str) -> io::Result<HashSet<String>> {
        let of_network =
            |name: &str| name.strip_prefix(network).is_some_and(|rest| rest.starts_with('-'));
        let entries = fs::read_dir(&self.folder)?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter(|name| of_network(name)).collect())
    }

    /// Takes out adopted pods whose entry has gone, also of a network that was wanted before.
    fn take_out(&mut self, node: &mut Node, done: &mut Done) -> Vec<String> {
        let folder = self.folder.clone();
        // What can't be told counts as there.
        let gone = |name: &String| !folder.join(name).try_exists().unwrap_or(true);
        if self.adopted.as_ref().is_some_and(|adopted| !adopted.iter().any(gone)) {
            return Vec::new();
        }
        let (attachments, _) = match node.state.attachments() {
            Ok(found) => found,
            Err(error) => return vec![error.to_string()],
        };
        let (mut adopted, mut failures) = (HashSet::new(), Vec::new());
        let ours = attachments.into_iter().filter(|a| a.adopted);
        for attachment in ours {
            let name = cached::file_name(&attachment.key);
            if !gone(&name) {
                adopted.insert(name);
                continue;
            }
            log::info!("{name} has gone from the cache: taken out");
            failures.extend(node.remove(&attachment.key).iter().map(ToString::to_string));
            done.taken_out += 1;
        }
        self.adopted = Some(adopted);
        failures
    }

    /// Enrolls the pod of one entry if it is to be. An entry that can't be read yet is looked at
    /// again when it changes.
    fn enroll(
        &mut self,
        node: &mut Node,
        name: &str,
        network: &str,
        settings: &Settings,
    ) -> Result<bool, Error> {
        let path = self.folder.join(name);
        let Ok(meta) = fs::metadata(&path) else { return Ok(false) };
        let changed = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if self.seen.get(name) == Some(&changed) || !meta.is_file() || meta.len() > LARGEST {
            return Ok(false);
        }
        let Some(entry) = fs::read_to_string(&path).ok().and_then(|text| cached::read(&text))
        else {
            return Ok(false);
        };
        // An agent that was killed may have left it without an owner of its addresses, and a late
        // DEL of a pod that had them before would take them away.
        let whole =
            |had: &Attachment| had.addresses.iter().all(|&ip| node.state.owner(ip).is_some());
        let enrolled = match entry {
            Cached::Ours => false,
            Cached::LeftOut(why) => {
                log::info!("{name} is not adopted: {why}");
                false
            }
            // A network whose name begins like ours, or a file under another's name.
            Cached::Before(pod)
                if pod.key.network != network || cached::file_name(&pod.key) != name =>
            {
                false
            }
            Cached::Before(pod) if node.state.attachment(&pod.key)?.as_ref().is_some_and(whole) => {
                false
            }
            Cached::Before(pod) => {
                if let Err(error) = enroll(node, settings, &pod) {
                    for error in node.remove(&pod.key) {
                        log::error!("{name}: {error}");
                    }
                    return Err(error);
                }
                log::info!("{name} was there before us: adopted");
                self.adopted.get_or_insert_default().insert(name.to_string());
                true
            }
        };
        self.seen.insert(name.to_string(), changed);
        Ok(enrolled)
    }
}
