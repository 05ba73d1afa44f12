//! symroute: replies leave a Kubernetes node by the NIC the request came in by.
//!
//! This library makes two programs. The plugin is `src/main.rs` and begins in [`cni`]. The tool is
//! `src/bin/symroutectl.rs` and begins in [`cli`]. [`handover`] turns a plugin that is called with the
//! tool's words into the tool. ARCHITECTURE.md shows all rooms.
//!
//! [`cni`] and [`cli`] take calls in. `node` holds the one reconcile: it observes the node as
//! `model::Facts`. `plan` makes the desired state and the steps towards it, without side effects.
//! `node` then applies the steps through `netlink` and `backend`. `node::attach` and `node::proof`
//! are what an ADD does on a ready node. `agent` calls the reconcile when another program has changed
//! the node. [`conflist`] keeps symroute's entry in the list of plugins that the runtime calls.
//!
//! `doctor`, `explain` and `trace` find out what is wrong: on the node, with one request, with real
//! packets. `netfilter` reads the rules of other programs, `ledger` the programs that use each bit of
//! the marks, and `bundle` gathers their reports in one file. None of these changes the node, except
//! `doctor --fix`.
//!
//! Public is what the two programs and the tests use. All else is `pub(crate)`, so that the
//! compiler reports what nothing uses.

mod agent;
mod atomic_file;
mod backend;
mod bundle;
mod capabilities;
pub mod cli;
pub mod cni;
mod config;
pub mod conflist;
mod doctor;
mod error;
mod explain;
mod flock;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod handover;
mod hash;
mod ledger;
mod logging;
mod model;
mod names;
mod netfilter;
mod netlink;
mod netns;
mod netstat;
mod node;
mod plain_file;
mod plan;
pub mod process;
mod runtimes;
mod state;
#[cfg(test)]
mod temp_dir;
mod trace;
