//! The operating system refuses an operation: the error names the file and the remedy, and nothing
//! changes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};

use crate::node::{FLANNEL, Node, PROGRAM, Ran, ran};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod");
}

/// Runs the tool as a user other than root.
fn as_nobody(node: &Node, words: &str) -> Ran {
    // Other users may have no access to the program's directory.
    let copy = node.root.join("symroute");
    if !copy.exists() {
        // Copied by another process: a fork of this process could inherit the descriptor open for writing.
        let done = Command::new("cp").arg(PROGRAM).arg(&copy).status();
        assert!(done.expect("run cp").success(), "copy the program");
    }
    let mut command = node.command(&[copy.to_str().expect("UTF-8")], words);
    if geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    ran(&command.output().expect("run the program"))
}

#[test]
fn a_directory_that_is_read_only() {
    let node = Node::with_flannel();
    let state = node.root.join("state");
    fs::create_dir(&state).expect("a state dir");
    chmod(&state, 0o777);
    chmod(&node.conf_dir(), 0o555);
    let ran = as_nobody(&node, "add --state-dir /state");
    ran.assert_code(1, "add");
    assert!(ran.said.contains("/etc/cni/net.d/.symroute.new: Permission denied"), "{}", ran.said);
    assert!(ran.said.contains("run as root"), "{}", ran.said);
    assert_eq!(fs::read_to_string(node.primary()).expect("read"), FLANNEL);
    chmod(&node.conf_dir(), 0o755);
}

#[test]
fn a_state_directory_that_is_read_only() {
    let node = Node::with_flannel();
    let state = node.root.join("state");
    fs::create_dir(&state).expect("a state dir");
    chmod(&state, 0o555);
    let ran = as_nobody(&node, "add --state-dir /state");
    ran.assert_code(1, "add");
    assert!(ran.said.contains("/state/conflist: Permission denied"), "{}", ran.said);
    assert_eq!(fs::read_to_string(node.primary()).expect("read"), FLANNEL);
    // A check writes nothing, so it does not need the state directory.
    as_nobody(&node, "check --state-dir /state").assert_code(3, "check");
}

#[test]
fn a_file_that_only_root_may_read() {
    let node = Node::with_flannel();
    chmod(&node.primary(), 0);
    let ran = as_nobody(&node, "check");
    ran.assert_code(1, "check");
    assert!(ran.said.contains("10-flannel.conflist: Permission denied"), "{}", ran.said);
    assert!(ran.said.contains("run as root"), "{}", ran.said);
}

#[test]
fn a_directory_that_is_a_file() {
    let node = Node::with_flannel();
    let ran = node.run("add --conf-dir /etc/cni/net.d/10-flannel.conflist");
    ran.assert_code(1, "add");
    assert!(ran.said.contains("10-flannel.conflist: Not a directory"), "{}", ran.said);
}

/// The conflist is a pipe that no process writes to.
#[test]
fn a_file_that_is_none() {
    let node = Node::new();
    mkfifo(&node.primary(), Mode::S_IRWXU).expect("a pipe");
    let ran = node.run("add");
    ran.assert_code(3, "add");
    assert!(ran.said.contains("10-flannel.conflist: not a plain file"), "{}", ran.said);
}

#[test]
fn an_own_file_that_is_a_link() {
    let node = Node::with_flannel();
    let own = node.conf_dir().join("05-symroute.conflist");
    for target in ["10-flannel.conflist", "/dev/null", "nowhere"] {
        symlink(target, &own).expect("a link");
        let ran = node.run("add --mode own-file");
        ran.assert_code(1, target);
        assert!(ran.said.contains("05-symroute.conflist: a link"), "{}", ran.said);
        assert_eq!(fs::read_to_string(node.primary()).expect("read"), FLANNEL);
        node.run("remove").assert_code(0, "remove");
        assert_eq!(node.files().len(), 1);
    }
}

#[test]
fn wrong_words() {
    let node = Node::with_flannel();
    for words in ["", "fly", "add --mode both", "remove --config x", "add 10-flannel.conflist"] {
        let ran = node.run(words);
        ran.assert_code(2, words);
        assert!(ran.said.contains("--help"), "{}", ran.said);
    }
    node.run("remove --file 1-x.conflist").assert_code(1, "a file that is not there");
    node.run("--help").assert_code(0, "--help");
    let ran = node.run("add --config /nowhere.json");
    ran.assert_code(1, "add");
    assert!(ran.said.contains("/nowhere.json: No such file"), "{}", ran.said);
}

/// A runtime that does not find a program starts no pod, so `add` refuses.
#[test]
fn a_program_that_the_runtime_would_not_find() {
    let node = Node::with_flannel();
    let place = |dir: &str, name: &str| {
        let dir = node.root.join(dir);
        fs::create_dir_all(&dir).expect("make a folder");
        fs::write(dir.join(name), "a program").expect("write a program");
        chmod(&dir.join(name), 0o755);
    };
    let refused = |words: [&str; 2]| {
        let ran = node.run("add");
        ran.assert_code(1, "add");
        assert!(words.iter().all(|word| ran.said.contains(word)), "{}", ran.said);
        assert_eq!(fs::read_to_string(node.primary()).expect("read"), FLANNEL);
        assert_eq!(node.files().len(), 1, "nothing beside it");
    };
    place("opt/cni/bin", "flannel");
    refused(["/opt/cni/bin/symroute: is not there", "install.sh install"]);
    node.run("add --dry-run").assert_code(0, "install.sh asks before it puts the program there");
    place("opt/cni/bin", "symroute");
    chmod(&node.root.join("opt/cni/bin/symroute"), 0o644);
    refused(["/opt/cni/bin/symroute: is not there, or can't be run", "no pod could start"]);
    chmod(&node.root.join("opt/cni/bin/symroute"), 0o755);
    // The runtime looks elsewhere, and does not find the primary there.
    fs::create_dir_all(node.root.join("etc/containerd")).expect("make a folder");
    let text =
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n";
    fs::write(node.root.join("etc/containerd/config.toml"), text).expect("configure containerd");
    refused(["program flannel is in /opt/cni/bin", "bin_dir of /etc/containerd/config.toml"]);
    node.run("add --dry-run").assert_code(1, "a dry run says it, too");
    // The runtime looks elsewhere and finds the primary: symroute's program has to be there, too.
    place("usr/lib/cni", "flannel");
    refused(["/usr/lib/cni/symroute: is not there", "install.sh install"]);
    place("usr/lib/cni", "symroute");
    node.run("add").assert_code(0, "both are where the runtime looks");
    node.run("check").assert_code(0, "check");
}

/// The program may be in any directory of the runtime. With two runtimes, only the operator knows which one counts.
#[test]
fn a_program_in_another_directory_of_the_runtime() {
    let node = Node::with_flannel();
    let write = |file: &str, text: &str| {
        let file = node.root.join(file);
        fs::create_dir_all(file.parent().expect("a folder")).expect("make a folder");
        fs::write(&file, text).expect("write a file");
        chmod(&file, 0o755);
    };
    let both = "[crio.network]\nplugin_dirs = [\"/opt/cni/bin\", \"/usr/libexec/cni\"]\n";
    write("etc/crio/crio.conf", both);
    write("usr/libexec/cni/flannel", "");
    write("opt/cni/bin/symroute", "");
    node.run("add").assert_code(0, "CRI-O finds both");
    node.run("remove").assert_code(0, "remove");
    // The node also has containerd, which looks elsewhere.
    write("usr/lib/cni/bridge", "");
    let table = "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n";
    write("etc/containerd/config.toml", &format!("version = 2\n{table}"));
    node.run("add").assert_code(0, "nothing says which of the two it is");
    node.run("remove").assert_code(0, "remove");
    // install.sh notes the operator's directories in this file.
    write("var/lib/symroute/places", "bin|/usr/lib/cni\nconf|/etc/cni/net.d\n");
    let ran = node.run("add");
    ran.assert_code(1, "add");
    assert!(ran.said.contains("/usr/lib/cni/symroute: is not there"), "{}", ran.said);
    write("usr/lib/cni/symroute", "");
    node.run("add").assert_code(0, "it is where the operator said");
}
