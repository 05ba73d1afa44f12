//! What a test says when it can't run here. `tests/run` counts these lines, and has a test whose kernel lacks a
//! part run on a kernel that has it.

use std::panic::Location;
use std::thread;

use super::backend::Backend;

/// Says that this test does not run, because the kernel has no such part.
#[track_caller]
pub(crate) fn kernel_lacks(part: &str) {
    println!("NOT RUN: {}: the kernel has no {part}", this_test());
}

/// Whether the run is about nftables. If not, says that this test is not for the backend of the run, and why.
#[track_caller]
pub(crate) fn only_nftables(reason: &str) -> bool {
    let backend = Backend::of_run();
    if backend.is_iptables() {
        println!("NOT FOR {}: {}: {reason}", backend.name(), this_test());
    }
    !backend.is_iptables()
}

/// The test's name; with one thread for all tests, the file that it is in.
#[track_caller]
fn this_test() -> String {
    let place = Location::caller();
    let thread = thread::current();
    thread.name().filter(|name| *name != "main").unwrap_or(place.file()).to_owned()
}
