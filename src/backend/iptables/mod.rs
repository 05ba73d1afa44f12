//! The iptables backend. It sets the marks by rules in the tables mangle of iptables and ip6tables,
//! and keeps in ipsets what changes. docs/design.md says what differs from nftables and why.
//!
//! [`chains`] builds the desired rules, [`inside`] the sets of prefixes, and [`node_set`] the
//! record in the node's ipset. [`restore_script`] and [`set_diff`] compute the changes. These five
//! are pure. [`programs`] runs the programs, [`ipset`] and [`builtin_chains`] use netlink.

pub(crate) mod builtin_chains;
pub(crate) mod chains;
pub(crate) mod counters;
pub(crate) mod inside;
pub(crate) mod ipset;
pub(crate) mod node_set;
pub(crate) mod programs;
pub(crate) mod restore_script;
pub(crate) mod rules;
pub(crate) mod set_diff;
pub(crate) mod table_size;

#[cfg(test)]
pub(crate) mod tests;
