//! The `symroutectl` program: what a person, a systemd unit or the image does to a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    symroute::cli::run(std::env::args_os()).into()
}
