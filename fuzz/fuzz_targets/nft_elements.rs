#![no_main]
symroute_fuzz::target!("nft_elements");
