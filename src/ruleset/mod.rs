//! The nftables table: what stands in it, and how it is written on the wire.

pub mod build;
pub mod encode;
pub mod fingerprint;
mod hooks;
pub mod model;
pub mod sets;
