//! symroute: replies leave a Kubernetes node by the NIC the request came in by.
//!
//! Two programs are made of it: the plugin (`src/main.rs`, all of it below [`cni`]) and the tool
//! (`src/bin/symroutectl.rs`, below [`cli`]); [`handover`] leads from the one to the other.
//!
//! How a call flows: [`cni`] or [`cli`] take it in, `node` holds the one reconcile: it observes
//! the node as `model::Facts`, `plan` makes the desired state and the steps towards it (pure), and
//! `node` applies them through `netlink` and `backend`. What an ADD does on a node where everything
//! is in place is in `node::attach` and `node::proof`. `agent` calls the reconcile when another
//! program has changed the node; [`conflist`] keeps our entry in the list of plugins that the
//! runtime calls. `explain` asks the kernel about one request, and `doctor` about the whole node; `trace`
//! follows packets. `netfilter` reads the rules of other programs for `explain`, and `ledger` reads which
//! program uses which bits of the marks. `bundle` gathers what they say in one file. None of them changes
//! anything.
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
