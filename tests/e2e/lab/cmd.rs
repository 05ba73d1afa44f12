//! Runs the system's tools (ip, nft, iptables) and panics with their messages when they fail.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Runs `argv` with `input` on stdin and returns its stdout. A failure is a panic that quotes
/// command, input and stderr.
pub(crate) fn run(argv: &[&str], input: &str) -> String {
    let mut child = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", argv[0]));
    let mut stdin = child.stdin.take().expect("stdin was piped");
    // A tool that fails early closes its stdin. Its stderr then says more than EPIPE.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("wait for a child");
    assert!(
        output.status.success(),
        "{argv:?}: {}\n{}{input}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("tools print UTF-8")
}
