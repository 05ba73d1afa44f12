//! The netlink transport: a blocking socket, one that listens, the wire format, the kernel's numbers,
//! and the messages of rtnetlink. What `nf_tables` and ipset are asked is in [`crate::backend`].

pub(crate) mod conntrack;
pub(crate) mod listener;
pub(crate) mod route;
pub(crate) mod socket;
pub(crate) mod uapi;
pub(crate) mod wire;

pub(crate) use socket::{Error, Socket};
