//! The netlink transport: a blocking socket, the wire format, the kernel's numbers, and the
//! messages of rtnetlink. What `nf_tables` and ipset are asked is in [`crate::backend`].

pub mod route;
pub mod socket;
pub mod uapi;
pub mod wire;

pub use socket::{Error, Socket};
