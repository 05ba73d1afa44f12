//! The one netlink transport: a blocking socket, the wire format, and the messages of rtnetlink
//! and `nf_tables` that symroute speaks.

pub mod nft;
pub mod route;
pub mod socket;
pub mod uapi;
pub mod wire;

pub use socket::{Error, Socket};
