#![no_main]
symroute_fuzz::target!("nft_own");
