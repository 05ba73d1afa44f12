#![no_main]
symroute_fuzz::target!("conf_dir");
