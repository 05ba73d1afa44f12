//! The iptables backend: the same marks set by rules in the tables mangle of iptables and
//! ip6tables, with ipsets for what changes. docs/design.md says what differs and why.
//!
//! [`chains`] makes the desired rules and [`node_set`] what the node's ipset remembers (pure),
//! [`restore_script`] and [`set_diff`] the difference (pure); [`programs`] runs the programs,
//! [`ipset`] and [`builtin_chains`] speak netlink.

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
