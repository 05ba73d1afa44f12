//! Lines that a test prints when it cannot run here. `tests/run` counts these lines. Where the
//! kernel lacks a part, it runs the test again on a kernel that has it.

use std::panic::Location;
use std::thread;

use super::backend::Backend;

/// Prints that this test does not run because the kernel lacks a part.
#[track_caller]
pub(crate) fn kernel_lacks(part: &str) {
    println!("NOT RUN: {}: the kernel has no {part}", this_test());
}

/// Whether the run's backend is nftables. Otherwise prints that this test is not for the backend,
/// and why.
#[track_caller]
pub(crate) fn only_nftables(reason: &str) -> bool {
    let backend = Backend::of_run();
    if backend.is_iptables() {
        println!("NOT FOR {}: {}: {reason}", backend.name(), this_test());
    }
    !backend.is_iptables()
}

/// The test's name. With one thread for all tests, the file of the caller.
#[track_caller]
fn this_test() -> String {
    let place = Location::caller();
    let thread = thread::current();
    thread.name().filter(|name| *name != "main").unwrap_or(place.file()).to_owned()
}
