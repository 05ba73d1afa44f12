//! What a report of a problem needs, in one tar: gathered here, written by [`tar`].
//!
//! ```text
//! kernel     links, addresses, routes, rules, neighbours, netfilter by netlink
//! files      sysctls, counters, the state, conflists, the log
//! harmless   what of a conflist may leave the node      (pure)
//! pseudonym  other addresses and names in their place    (pure)
//! tar        the archive                                 (pure)
//! ```
//! Payloads, keys, tokens, environment variables and the content of kubeconfig files are never read.

pub(crate) mod files;
mod harmless;
pub(crate) mod kernel;
pub(crate) mod pseudonym;
mod tar;

use std::time::SystemTime;

use serde_json::Value;

use pseudonym::Pseudonyms;

/// The folder that all files of the archive are in.
const FOLDER: &str = "symroute-bundle";
/// The file that names what could not be read.
const MISSING: &str = "missing.txt";

/// What a file of the bundle holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Json(Value),
    Text(String),
}

/// The files so far, and what could not be read.
#[derive(Debug, Default)]
pub(crate) struct Bundle {
    parts: Vec<(String, Content)>,
    missing: Vec<(String, String)>,
}

impl Bundle {
    /// Adds a file, or the reason why it is missing.
    pub(crate) fn add(&mut self, name: &str, read: Result<Content, String>) {
        match read {
            Ok(content) => self.parts.push((name.into(), content)),
            Err(why) => self.miss(name, why),
        }
    }

    /// Notes that a file, or a part of it, is missing.
    pub(crate) fn miss(&mut self, name: &str, why: impl Into<String>) {
        self.missing.push((name.into(), why.into()));
    }

    /// How many files there are, and how many things are missing.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.parts.len(), self.missing.len())
    }

    /// The archive.
    pub(crate) fn to_tar(&self, pseudonyms: Option<&Pseudonyms>, time: SystemTime) -> Vec<u8> {
        let line = |(name, why): &(String, String)| format!("{name}: {}\n", why.trim());
        let missing = Content::Text(self.missing.iter().map(line).collect());
        let mut archive = tar::Archive::at(time);
        let last = (MISSING.to_owned(), missing);
        for (name, content) in self.parts.iter().chain([&last]) {
            let text = match (content, pseudonyms) {
                (Content::Json(value), None) => format!("{value:#}\n"),
                (Content::Json(value), Some(other)) => format!("{:#}\n", other.value(value)),
                (Content::Text(text), None) => text.clone(),
                (Content::Text(text), Some(other)) => other.text(text),
            };
            archive.add(&format!("{FOLDER}/{name}"), text.as_bytes());
        }
        archive.end()
    }
}
