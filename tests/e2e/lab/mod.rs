//! A lab of network namespaces: a node with several NICs, the cloud around it, pods and clients.
//!
//! `tests/README.md` says how to run and debug; each file here holds one part of the lab.

pub(crate) mod agent;
pub(crate) mod arp;
pub(crate) mod attachments;
pub(crate) mod aws;
pub(crate) mod backend;
pub(crate) mod capture;
mod changes;
mod cmd;
pub(crate) mod conntrack;
pub(crate) mod damage;
pub(crate) mod dice;
pub(crate) mod fates;
pub(crate) mod flows;
pub(crate) mod flowtable;
pub(crate) mod forge;
pub(crate) mod golden;
pub(crate) mod kill;
pub(crate) mod kubeproxy;
pub(crate) mod load;
pub(crate) mod netns;
pub(crate) mod node;
pub(crate) mod not_run;
pub(crate) mod plugin;
pub(crate) mod process;
pub(crate) mod proof;
pub(crate) mod router;
pub(crate) mod snapshot;
pub(crate) mod strace;
pub(crate) mod sweep;
pub(crate) mod talk;
pub(crate) mod traffic;
pub(crate) mod tun;
pub(crate) mod two_nics;
pub(crate) mod verdicts;
pub(crate) mod wire;
