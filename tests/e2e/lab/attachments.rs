//! The attachments on a node, as their files describe them. symroute stores nothing else about a
//! pod.

use std::fs;

use serde_json::Value;

use super::node::Node;

impl Node {
    /// Content of all attachment files, except those of pods that are left out.
    pub(crate) fn attachments(&self) -> Vec<Value> {
        let files = fs::read_dir(self.dir.join("run/pods")).into_iter().flatten().flatten();
        // An ADD or DEL may remove a file meanwhile.
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.filter_map(|text| serde_json::from_str(&text).ok()).collect()
    }

    /// Whether an attachment has this address.
    pub(crate) fn is_attached(&self, address: &str) -> bool {
        let has =
            |value: &Value| value.as_array().is_some_and(|all| all.iter().any(|a| a == address));
        self.attachments().iter().any(|attachment| has(&attachment["addresses"]))
    }
}
