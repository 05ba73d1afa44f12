//! The one netlink transport: a blocking socket, the wire format, and the messages of rtnetlink,
//! `nf_tables` and ipset that symroute speaks.

pub mod base_chains;
pub mod counters;
pub mod ipset;
pub mod nft;
pub mod route;
pub mod socket;
pub mod uapi;
pub mod wire;

pub use socket::{Error, Socket};
