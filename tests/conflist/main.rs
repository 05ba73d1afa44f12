//! Runs `symroutectl conflist`, the real program, on files in temporary folders. Needs no root.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test stops at the first thing that is not as expected, and says how much it has tried"
)]

mod fights;
mod golden;
mod kills;
mod node;
mod odd;
mod properties;
mod ready;
mod refusals;
