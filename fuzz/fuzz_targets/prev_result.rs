#![no_main]
symroute_fuzz::target!("prev_result");
