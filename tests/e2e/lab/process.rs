//! Values of `/proc/PID/status`.

use std::fs;

/// The value of a line of `/proc/PID/status`.
pub(crate) fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read the status");
    value(&text, name)
}

/// The value of a line of a text like `/proc/PID/status`.
pub(crate) fn value(text: &str, name: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("the line").trim().to_owned()
}

/// Memory in kB, by a line of `/proc/PID/status`.
pub(crate) fn memory(pid: u32, name: &str) -> u64 {
    status(pid, name).trim_end_matches(" kB").parse().expect("a number")
}

/// A set of capabilities, by its line in a text like `/proc/PID/status`.
pub(crate) fn capabilities(text: &str, name: &str) -> u64 {
    u64::from_str_radix(&value(text, name), 16).expect("hexadecimal")
}
