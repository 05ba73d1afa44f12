//! Damages the files in the state directory in many ways: the tool still works, and no call hangs.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::node::{FLANNEL, Files, Node, PRIMARY};

const KINDS: [&str; 6] =
    ["bytes", "a folder", "a link to itself", "zeros", "a pipe", "a long file"];

/// Replaces a file or folder by something of this kind.
fn put(kind: &str, path: &Path) {
    if path.is_dir() {
        fs::remove_dir_all(path).expect("remove the folder");
    } else if path.symlink_metadata().is_ok() {
        fs::remove_file(path).expect("remove the file");
    }
    let made = match kind {
        "bytes" => fs::write(path, b"{\xff\xfe"),
        "a folder" => fs::create_dir(path).and_then(|()| fs::write(path.join("a"), "b")),
        "a link to itself" => symlink(path, path),
        "zeros" => symlink("/dev/zero", path),
        "a pipe" => mkfifo(path, Mode::S_IRWXU).map_err(Into::into),
        _ => File::create(path).and_then(|file| file.set_len(300 << 20)),
    };
    made.expect(kind);
}

#[test]
fn what_the_tool_remembers_is_damaged() {
    let before = Files::from([(PRIMARY.to_string(), FLANNEL.into())]);
    for kind in KINDS {
        for name in ["journal", "wanted.json", "originals", &format!("originals/{PRIMARY}")] {
            let node = Node::with_flannel();
            node.run("add").assert_code(0, "add");
            put(kind, &node.state_dir().join(name));
            let what = format!("{name} is {kind}");
            node.run("check").assert_code(0, &what);
            node.run("add --mode own-file").assert_code(0, &what);
            put(kind, &node.state_dir().join(name));
            node.run("remove").assert_code(0, &what);
            assert_eq!(node.files(), before, "{what}");
        }
    }
}
