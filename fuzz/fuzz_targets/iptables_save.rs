#![no_main]
symroute_fuzz::target!("iptables_save");
