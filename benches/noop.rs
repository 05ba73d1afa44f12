//! A static program that does nothing. Its time is the minimum time of any plugin call.

fn main() {}
