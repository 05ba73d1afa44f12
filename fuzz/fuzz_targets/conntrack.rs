#![no_main]
symroute_fuzz::target!("conntrack");
