//! The `symroute` program: a CNI plugin when a runtime calls it, a command line tool otherwise.

use std::process::ExitCode;

use symroute::cni::{self, Environment};

fn main() -> ExitCode {
    match Environment::of_process() {
        Some(environment) => cni::run(&environment),
        None => symroute::cli::run(std::env::args_os()),
    }
}
