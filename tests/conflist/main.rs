//! `symroutectl conflist`, the real program on files of its own. Needs no root.

#![expect(clippy::expect_used, reason = "a test stops at the first thing that is not as expected")]

mod fights;
mod golden;
mod kills;
mod node;
mod properties;
mod ready;
mod refusals;
