//! The iptables backend: the same marks set by rules in the tables mangle of iptables and
//! ip6tables, with ipsets for what changes. docs/design.md says what differs and why.
//!
//! [`chains`] makes the desired rules and [`node_set`] what the node's ipset remembers (pure),
//! [`restore_script`] and [`set_diff`] the difference (pure); [`programs`] runs the programs,
//! [`ipset`] and [`builtin_chains`] speak netlink.

pub mod builtin_chains;
pub mod chains;
pub mod counters;
pub mod inside;
pub mod ipset;
pub mod node_set;
pub mod programs;
pub mod restore_script;
pub mod rules;
pub mod set_diff;
pub mod table_size;

#[cfg(test)]
pub(crate) mod tests;
