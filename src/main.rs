//! The `symroute` program: the CNI plugin that a container runtime calls.
#![no_main]

use symroute::cni::{self, Environment};
use symroute::{handover, process};

/// Start of the program, called by the C library. Rust's own start-up would look for the stack's
/// guard page in `/proc/self/maps` and set up a signal stack. That takes a tenth of the time of a
/// fast ADD.
// SAFETY: no other function of this program is called `main`, and the C library calls it once.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> libc::c_int {
    process::standard_streams();
    let code = match Environment::of_process() {
        Some(environment) => cni::run(&environment),
        None => handover::run(std::env::args_os()),
    };
    code.into()
}
