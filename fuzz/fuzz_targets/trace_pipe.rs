#![no_main]
symroute_fuzz::target!("trace_pipe");
