#![no_main]
symroute_fuzz::target!("mark_users");
