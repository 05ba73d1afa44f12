//! The sources of causes: netlink and the file system.

pub mod files;
pub mod nftables;
pub mod route;
