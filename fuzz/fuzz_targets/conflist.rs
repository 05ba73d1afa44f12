#![no_main]
symroute_fuzz::target!("conflist");
