//! The netlink transport: sockets for requests and for multicasts, the wire format, the kernel's
//! numbers, and the messages of rtnetlink and conntrack. The messages of `nf_tables` and ipset are
//! in [`crate::backend`].

pub(crate) mod conntrack;
pub(crate) mod listener;
pub(crate) mod route;
pub(crate) mod socket;
pub(crate) mod uapi;
pub(crate) mod wire;

pub(crate) use socket::{Error, Socket};
