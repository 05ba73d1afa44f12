//! The `symroute` program.

fn main() {}
