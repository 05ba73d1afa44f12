//! The nftables backend: the content of the table, and its netlink messages.
//!
//! [`chains`] and [`base_chains`] build the rules from a [`super::spec::Spec`], [`sets`] the sets
//! and maps, [`offload`] the flowtable, and [`arp`] the table of family arp. [`rules`] defines
//! their types.
//!
//! [`encode`] writes them as netlink attributes. [`table`] reads the table and commits the changes
//! of [`table_diff`] in one transaction. [`counters`] reads the counters.

pub(crate) mod arp;
pub(crate) mod base_chains;
pub(crate) mod chains;
pub(crate) mod counters;
pub(crate) mod encode;
pub(crate) mod fingerprint;
pub(crate) mod offload;
pub(crate) mod rules;
pub(crate) mod sets;
pub(crate) mod table;
pub(crate) mod table_diff;
