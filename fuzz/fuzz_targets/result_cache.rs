#![no_main]
symroute_fuzz::target!("result_cache");
