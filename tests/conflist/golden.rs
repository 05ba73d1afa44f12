//! Conf dirs before and after a command, as files: one folder per case below `cases/`.
//!
//! ```text
//! case         the arguments of "symroutectl"; "exit CODE"; "says TEXT" for parts of the output
//! before/      the conf dir; absent if the conf dir does not exist
//! after/       the conf dir afterwards; absent if it does not change
//! root/        other files of the node
//! entry.json   the file that @entry in the arguments stands for
//! ```
//! With `SYMROUTE_BLESS=1`, the test writes `after/` again, for a review and a commit.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::node::{Node, copy, files};

struct Case {
    folder: PathBuf,
    words: String,
    code: i32,
    says: Vec<String>,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conflist/cases");
    let entries = fs::read_dir(folder).expect("the cases");
    let mut cases: Vec<Case> = entries.map(|e| Case::read(e.expect("a case").path())).collect();
    cases.sort_by(|one, other| one.folder.cmp(&other.folder));
    cases
}

impl Case {
    fn read(folder: PathBuf) -> Self {
        let text = fs::read_to_string(folder.join("case")).expect("a file \"case\"");
        let mut lines = text.lines();
        let words = lines.next().and_then(|line| line.strip_prefix("conflist "));
        let code = lines.next().and_then(|line| line.strip_prefix("exit "));
        let says = lines.map(|line| line.strip_prefix("says ").expect("says").to_string());
        Self {
            words: words
                .expect("words")
                .replace("@entry", &folder.join("entry.json").to_string_lossy()),
            code: code.and_then(|code| code.parse().ok()).expect("a code"),
            says: says.collect(),
            folder,
        }
    }

    fn name(&self) -> String {
        self.folder.file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// The deviations from the expected result.
    fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let node = Node::new();
        let (before, after) = (self.folder.join("before"), self.folder.join("after"));
        if before.is_dir() {
            copy(&before, &node.conf_dir());
        } else {
            fs::remove_dir(node.conf_dir()).expect("remove the conf dir");
        }
        copy(&self.folder.join("root"), &node.root);
        let ran = node.run(&self.words);
        if ran.code != Some(self.code) {
            findings.push(format!("exit code {:?}: {}", ran.code, ran.said));
        }
        for says in self.says.iter().filter(|says| !ran.said.contains(*says)) {
            findings.push(format!("does not say \"{says}\" but: {}", ran.said));
        }
        let now = node.files();
        if env::var_os("SYMROUTE_BLESS").is_some() {
            let _ = fs::remove_dir_all(&after);
            if now != files(&before) {
                copy(&node.conf_dir(), &after);
            }
        }
        let wanted = files(if after.is_dir() { &after } else { &before });
        for name in wanted.keys().chain(now.keys()) {
            if wanted.get(name) != now.get(name) {
                let text = now.get(name).map(|text| String::from_utf8_lossy(text));
                findings.push(format!("{name} is now: {}", text.as_deref().unwrap_or("gone")));
            }
        }
        if self.words.starts_with("add") && self.code == 0 && !self.words.contains("--dry-run") {
            self.again_and_back(&node, &mut findings);
        }
        findings
    }

    /// Checks that the added entry is healthy, that another `add` changes nothing, and that `remove` restores
    /// the bytes.
    fn again_and_back(&self, node: &Node, findings: &mut Vec<String>) {
        let now = files(&node.root);
        for words in [self.words.replacen("add", "check", 1), self.words.clone()] {
            let ran = node.run(&words);
            if ran.code != Some(0) || files(&node.root) != now {
                findings.push(format!("{words} afterwards: {:?} {}", ran.code, ran.said));
            }
        }
        let before = files(&self.folder.join("before"));
        let had_ours = |text: &Vec<u8>| String::from_utf8_lossy(text).contains("\"symroute\"");
        let ran = node.run("remove");
        if ran.code != Some(0) || (!before.values().any(had_ours) && node.files() != before) {
            findings.push(format!("remove does not give back what was: {}", ran.said));
        }
        let left = files(&node.state_dir());
        if left.keys().any(|name| name != "journal") {
            findings.push(format!("remove leaves {:?}", left.keys()));
        }
    }
}

#[test]
fn every_case() {
    let cases = cases();
    assert!(cases.len() > 50, "the cases are there");
    let mut failed = Vec::new();
    for case in &cases {
        let findings = case.findings();
        if !findings.is_empty() {
            failed.push(format!("{}:\n  {}", case.name(), findings.join("\n  ")));
        }
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}
