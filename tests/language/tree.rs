//! The files of the tree that hold text for people.

use std::fs;
use std::path::Path;
use std::process::Command;

/// How the text for people is marked in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Markdown,
    Rust,
    /// Comments begin with `#`: scripts, TOML, YAML, systemd units.
    Hash,
    /// Nothing that this check reads; only something that may be referred to.
    Other,
}

/// A file of the tree.
#[derive(Debug, Clone)]
pub(crate) struct File {
    /// From the root of the tree.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    /// Empty where it is no UTF-8.
    pub(crate) text: String,
}

/// Every file that git keeps or would keep.
pub(crate) fn files() -> Vec<File> {
    // Cargo runs tests in the root of the package.
    let root = Path::new(".");
    let list = Command::new("git")
        // The tree of one user may be tested by root.
        .args([
            "-c",
            "safe.directory=*",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .expect("run git");
    assert!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
    let paths = String::from_utf8(list.stdout).expect("paths in UTF-8");
    let paths = paths.split_terminator('\0').filter(|path| root.join(path).is_file());
    let read = |path: &str| fs::read(root.join(path)).expect("read a file of the tree");
    paths
        .map(|path| {
            let text = String::from_utf8(read(path)).unwrap_or_default();
            File { path: path.to_owned(), kind: kind(path, &text), text }
        })
        .collect()
}

fn kind(path: &str, text: &str) -> Kind {
    let name = path.rsplit('/').next().unwrap_or(path);
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    match ending {
        Some("md") => Kind::Markdown,
        Some("rs") => Kind::Rust,
        Some("sh" | "toml" | "yaml" | "yml" | "service" | "timer" | "path" | "conf" | "config") => {
            Kind::Hash
        }
        _ if text.starts_with("#!") => Kind::Hash,
        _ => Kind::Other,
    }
}
