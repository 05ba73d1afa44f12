//! Runs a program and prints the most memory that it had, in KiB. A program of its own, because the
//! kernel counts the memory of whoever starts a process as that process's: this one is small.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "stops at the first surprise")]

use std::process::{Command, Stdio};

fn main() {
    let mut words = std::env::args_os().skip(1);
    let program = words.next().expect("a program");
    let mut child =
        Command::new(program).args(words).stdout(Stdio::null()).spawn().expect("start it");
    assert!(child.wait().expect("wait").success(), "the program failed");
    // SAFETY: rusage is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one rusage where it is told to.
    let status = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    assert_eq!(status, 0, "getrusage");
    println!("{}", usage.ru_maxrss);
}
