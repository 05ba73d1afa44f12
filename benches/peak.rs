//! Runs a program and prints its peak memory in KiB. This is a separate, small program, because the
//! kernel counts the memory of a parent in the peak of its child.

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
    // SAFETY: the pointer is to one rusage, and the kernel writes no more than that.
    let status = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    assert_eq!(status, 0, "getrusage");
    println!("{}", usage.ru_maxrss);
}
