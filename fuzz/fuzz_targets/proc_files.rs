#![no_main]
symroute_fuzz::target!("proc_files");
