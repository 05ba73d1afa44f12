#![no_main]
symroute_fuzz::target!("attachment");
