//! The second backend: the same marks set by rules in the tables mangle of iptables and
//! ip6tables, with ipsets for what changes. docs/design.md tells what differs and why.
//!
//! [`build`] makes the desired rules and [`notes`] what the node's ipset remembers (pure),
//! [`script`] the difference as text for `iptables-restore` (pure), [`tools`] runs the programs.

pub mod build;
pub mod counters;
pub mod diff;
pub mod inside;
pub mod model;
pub mod notes;
pub mod script;
pub mod tools;

#[cfg(test)]
pub(crate) mod tests;
