//! The attachments on a node, as their files tell: that is all there is of a pod.

use std::fs;

use serde_json::Value;

use super::node::Node;

impl Node {
    /// What the files say, those of pods that are left out aside.
    pub(crate) fn attachments(&self) -> Vec<Value> {
        let files = fs::read_dir(self.dir.join("run/pods")).into_iter().flatten().flatten();
        // One that is removed in between is none.
        let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.filter_map(|text| serde_json::from_str(&text).ok()).collect()
    }

    /// Whether there is an attachment with this address.
    pub(crate) fn is_attached(&self, address: &str) -> bool {
        let has =
            |value: &Value| value.as_array().is_some_and(|all| all.iter().any(|a| a == address));
        self.attachments().iter().any(|attachment| has(&attachment["addresses"]))
    }
}
