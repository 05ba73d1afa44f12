//! A static program that does nothing: what a call costs at the least, however little a plugin does.

fn main() {}
