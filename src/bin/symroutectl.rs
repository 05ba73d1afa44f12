//! The `symroutectl` program. An operator, a systemd unit or the container image calls it.

use std::process::ExitCode;

fn main() -> ExitCode {
    symroute::cli::run(std::env::args_os()).into()
}
