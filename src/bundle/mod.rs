//! Builds the archive for a problem report.
//!
//! ```text
//! kernel     links, addresses, routes, rules, neighbours, netfilter, through netlink
//! files      sysctls, counters, the state, conflists, the log
//! harmless   the parts of a conflist that may leave the node (pure)
//! pseudonym  replaces addresses and names                    (pure)
//! tar        writes the archive                              (pure)
//! ```
//! The tool never adds payloads, keys, tokens, environment variables or the content of kubeconfig files.

pub(crate) mod files;
mod harmless;
pub(crate) mod kernel;
pub(crate) mod pseudonym;
mod tar;

use std::time::SystemTime;

use serde_json::Value;

use pseudonym::Pseudonyms;

/// The folder in the archive that holds all files.
const FOLDER: &str = "symroute-bundle";
/// The file that lists what could not be read.
const MISSING: &str = "missing.txt";

/// The content of a file in the bundle.
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

    /// Records that a file, or a part of it, is missing.
    pub(crate) fn miss(&mut self, name: &str, why: impl Into<String>) {
        self.missing.push((name.into(), why.into()));
    }

    /// The number of files, and the number of missing items.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.parts.len(), self.missing.len())
    }

    /// The archive as bytes. `pseudonyms` replace addresses and names, if given.
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
