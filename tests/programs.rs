//! Runs the two programs side by side: the plugin that runs the tool, and the tool's help, pages and
//! completions. Needs no root.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test stops at the first thing that is not as expected, or says why it does not run"
)]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PLUGIN: &str = env!("CARGO_BIN_EXE_symroute");
const TOOL: &str = env!("CARGO_BIN_EXE_symroutectl");

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A temporary folder. Dropping it deletes it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!(
            "symroute-programs-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&folder.0).expect("make the folder");
        folder
    }

    /// A folder with a copy of the plugin under this name.
    fn with_plugin(name: &str) -> Self {
        let folder = Self::new();
        fs::copy(PLUGIN, folder.0.join(name)).expect("copy the plugin");
        folder
    }

    /// Writes a tool into the folder that prints its path and its arguments.
    fn put_tool(&self) -> &Self {
        let tool = self.0.join("symroutectl");
        fs::write(&tool, "#!/bin/sh\necho \"$0:$*\"\nexit 7\n").expect("write a tool");
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("make it executable");
        self
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.0.join(program));
        command.env_remove("CNI_COMMAND").env("PATH", "/nowhere").current_dir(&self.0);
        command
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(command: &mut Command) -> Output {
    // A child process of another test inherits a descriptor of a file that this test has just written,
    // for a moment. Meanwhile the kernel refuses to run the file.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match command.output() {
            Err(error)
                if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline =>
            {
                thread::yield_now();
            }
            other => return other.expect("run a program"),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The output of the tool, which has to succeed.
fn printed(words: &[&str]) -> String {
    let output = run(Command::new(TOOL).args(words));
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_plugin_becomes_the_tool_beside_it_and_else_that_of_path() {
    let (node, other) = (Folder::with_plugin("symroute"), Folder::new());
    other.put_tool();
    let ask = || {
        let output = run(node.command("symroute").args(["up", "a b"]).env("PATH", other.path()));
        assert_eq!(output.status.code(), Some(7), "the tool's own code");
        text(&output.stdout)
    };
    assert_eq!(ask(), format!("{}/symroutectl:up a b\n", other.path()));
    node.put_tool();
    assert_eq!(ask(), format!("{}/symroutectl:up a b\n", node.path()));
}

#[test]
fn without_a_tool_the_plugin_says_what_to_do() {
    if Path::new("/usr/local/bin/symroutectl").exists() {
        println!("NOT RUN: a symroutectl is installed on this machine");
        return;
    }
    let (node, here) = (Folder::with_plugin("symroute"), Folder::new());
    here.put_tool();
    // A plugin with the tool's name must not call itself forever.
    let misnamed = Folder::with_plugin("symroutectl");
    // The plugin must not run a tool from a relative entry of PATH, which depends on the caller's directory.
    let mut relative = node.command("symroute");
    relative.arg("status").env("PATH", ".:").current_dir(&here.0);
    let no_words = node.command("symroute");
    for mut command in [relative, no_words, misnamed.command("symroutectl")] {
        let output = run(&mut command);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(output.stdout.is_empty() && said.lines().count() == 1, "{said}");
        assert!(said.contains("symroutectl") && said.contains("./install.sh install"), "{said}");
    }
    let broken = Folder::with_plugin("symroute");
    fs::write(broken.0.join("symroutectl"), "").expect("write a file that does not run");
    let said = text(&run(&mut broken.command("symroute")).stderr);
    assert!(said.contains("symroutectl: Permission denied"), "{said}");
}

#[test]
fn a_runtimes_call_runs_nothing_else() {
    let node = Folder::with_plugin("symroute");
    node.put_tool();
    for verb in ["VERSION", "fly"] {
        let output = run(node.command("symroute").env("CNI_COMMAND", verb).args(["up"]));
        assert!(text(&output.stdout).starts_with('{'), "{verb}: {}", text(&output.stdout));
    }
}

#[test]
fn both_tell_their_own_version() {
    let node = Folder::with_plugin("symroute");
    node.put_tool();
    let version = |command: &mut Command| text(&run(command.arg("--version")).stdout);
    let number = env!("CARGO_PKG_VERSION");
    assert_eq!(version(&mut node.command("symroute")), format!("symroute {number}\n"));
    assert_eq!(version(&mut Command::new(TOOL)), format!("symroutectl {number}\n"));
}

#[test]
fn shells_get_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for word in ["symroutectl", "attachments", "conf-dir", "own-file"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let folder = Folder::new();
    let script = folder.0.join("script");
    fs::write(&script, printed(&["completions", "bash"])).expect("write the script");
    assert!(run(Command::new("bash").arg("-n").arg(&script)).status.success());
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH symroutectl 1") && page.contains("Exit codes"), "{page}");
    let folder = Folder::new();
    assert_eq!(printed(&["man", folder.path()]), "");
    for command in ["", "-up", "-down", "-status", "-attachments", "-agent", "-uninstall"] {
        let path = folder.0.join(format!("symroutectl{command}.1"));
        assert!(fs::read_to_string(&path).expect("a page").contains("Examples:"), "{command}");
    }
    for command in ["-conflist", "-conflist-add", "-conflist-remove", "-conflist-check"] {
        assert!(folder.0.join(format!("symroutectl{command}.1")).exists(), "{command}");
    }
    let said = run(Command::new(TOOL).args(["man", "/dev/null/man"]));
    assert_eq!(said.status.code(), Some(1));
}

/// Runs `kubectl symroute` with a kubectl of three nodes: one has findings, one has none, and one does not
/// answer.
#[test]
fn nodes_of_a_cluster_in_one_table() {
    const KUBECTL: &str = r#"#!/bin/sh
case "$*" in
*"--namespace nowhere get pods"*) ;;
*"get pods"*) printf 'node-b two\nnode-a one\nnode-c three\n' ;;
*"one -- /symroutectl doctor") printf 'problem: drops at eth1 [rp-filter]\n    shown by\nnote: no agent [no-agent]\n'; exit 4 ;;
*"two -- /symroutectl doctor") echo "ok: fine" ;;
*"one -- /symroutectl status") exit 3 ;;
*"two -- /symroutectl status") exit 0 ;;
*) echo "error: can't connect" >&2; exit 1 ;;
esac
"#;
    let folder = Folder::new();
    let kubectl = folder.0.join("kubectl");
    fs::write(&kubectl, KUBECTL).expect("write a kubectl");
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kubectl-symroute");
    let said = |words: &[&str]| {
        let path = format!("{}:/usr/bin:/bin", folder.path());
        let output = run(Command::new(script).args(words).env("PATH", path));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text + &String::from_utf8_lossy(&output.stderr))
    };
    let table = "NODE    FINDING            WHAT\n\
                 node-a  problem rp-filter  drops at eth1\n\
                 node-a  note no-agent      no agent\n\
                 node-b  ok\n\
                 node-c  problem no-answer  error: can't connect\n";
    assert_eq!(said(&["doctor"]), (Some(4), table.into()));
    let one = "problem: drops at eth1 [rp-filter]\n    shown by\nnote: no agent [no-agent]\n";
    assert_eq!(said(&["doctor", "--node", "node-a"]), (Some(4), one.into()));
    assert_eq!(said(&["doctor", "--node", "node-b"]), (Some(0), "ok: fine\n".into()));
    let (code, text) = said(&["status"]);
    assert!(text.contains("node-a  warning            not in force"), "{text}");
    assert!(code == Some(4) && text.contains("node-b  ok                 in force"), "{text}");
    for (words, wanted, why) in [
        (&["doctor", "--namespace", "nowhere"][..], 1, "no pod of symroute"),
        (&["doctor", "--node", "node-z"], 1, "node node-z has no pod"),
        (&["fly"], 2, "--help"),
        (&[], 2, "doctor or status is missing"),
        (&["doctor", "--node"], 2, "a value is missing"),
    ] {
        let (code, text) = said(words);
        assert!(code == Some(wanted) && text.contains(why), "{words:?}: {code:?} {text}");
    }
}
