//! The nftables table: what stands in it, and how it is written on the wire.
//!
//! [`chains`] and [`base_chains`] make the rules from a [`super::spec::Spec`], [`sets`] what they
//! look into, [`offload`] the flowtable ([`rules`] has the shapes); [`encode`] writes them, [`table`] reads the table and
//! makes the changes of [`table_diff`] in one transaction, [`counters`] reads what the rules count.

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
