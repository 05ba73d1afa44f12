//! A node's file system in a temporary folder, and the tool that runs on it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_symroutectl");
pub(crate) const PRIMARY: &str = "10-flannel.conflist";
pub(crate) const FLANNEL: &str = include_str!("cases/flannel/before/10-flannel.conflist");

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A node's file system. Dropping it deletes the folder.
pub(crate) struct Node {
    pub(crate) root: PathBuf,
}

/// Output and exit code of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

/// Contents of files by path; those of links are "-> target".
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

impl Node {
    /// A node with an empty conf dir.
    pub(crate) fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("symroute-conflist-{}-{n}", std::process::id());
        let node = Self { root: std::env::temp_dir().join(name) };
        fs::create_dir_all(node.conf_dir()).expect("make the conf dir");
        node
    }

    /// A node with flannel's conflist.
    pub(crate) fn with_flannel() -> Self {
        let node = Self::new();
        node.write(FLANNEL);
        node
    }

    pub(crate) fn conf_dir(&self) -> PathBuf {
        self.root.join("etc/cni/net.d")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root.join("var/lib/symroute/conflist")
    }

    pub(crate) fn primary(&self) -> PathBuf {
        self.conf_dir().join(PRIMARY)
    }

    /// Writes flannel's conflist in place, as flannel does.
    pub(crate) fn write(&self, text: &str) {
        fs::write(self.primary(), text).expect("write the primary's conflist");
    }

    pub(crate) fn files(&self) -> Files {
        files(&self.conf_dir())
    }

    /// Runs `symroutectl conflist WORDS`.
    pub(crate) fn run(&self, words: &str) -> Ran {
        ran(&self.command(&[PROGRAM], words).output().expect("run the program"))
    }

    /// A command `ARGV conflist WORDS`, where `argv` ends with the program and may begin with strace.
    pub(crate) fn command(&self, argv: &[&str], words: &str) -> Command {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).arg("conflist").args(words.split_whitespace());
        command.arg("--root").arg(&self.root).env_remove("CNI_COMMAND");
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Ran {
    pub(crate) fn assert_code(&self, code: i32, what: &str) {
        assert_eq!(self.code, Some(code), "{what}: {}", self.said);
    }
}

pub(crate) fn ran(output: &Output) -> Ran {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), said: text(&output.stdout) + &text(&output.stderr) }
}

/// Reads all files below a folder.
pub(crate) fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(folder).expect("below").to_string_lossy().into_owned();
            if path.is_symlink() {
                let target = fs::read_link(&path).expect("a target");
                found.insert(name, format!("-> {}", target.display()).into_bytes());
            } else if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(name, fs::read(&path).expect("read"));
            }
        }
    }
    found
}

/// Copies all files below a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    for (name, content) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("make a folder");
        match content.strip_prefix(b"-> ") {
            Some(target) => {
                symlink(String::from_utf8_lossy(target).as_ref(), &path).expect("make a link");
            }
            None => fs::write(&path, &content).expect("write a file"),
        }
    }
}
