//! Sources of events: netlink and the file system.

pub(crate) mod files;
pub(crate) mod nftables;
pub(crate) mod route;
