//! Findings as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Finding;

impl Finding {
    /// Text for a person.
    pub(crate) fn to_text(&self) -> String {
        let mut out = format!("{}: {} [{}]\n", self.severity.name(), self.what, self.id);
        for line in &self.evidence {
            let _ = writeln!(out, "    {line}");
        }
        let _ = writeln!(out, "    remedy: {}", self.remedy);
        out
    }

    /// JSON for programs.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "severity": self.severity.name(),
            "what": self.what,
            "evidence": self.evidence,
            "remedy": self.remedy,
        })
    }
}
