//! symroute: replies leave a Kubernetes node by the NIC the request came in by.
//!
//! Two programs are made of it: the plugin (`src/main.rs`, all of it below [`cni`]) and the tool
//! (`src/bin/symroutectl.rs`, below [`cli`]); [`handover`] leads from the one to the other.
//!
//! How a call flows: [`cni`] or [`cli`] take it in, [`node`] holds the one reconcile —
//! [`gather`] reads [`facts`] from the kernel, [`plan`] makes the desired state and the steps
//! towards it (pure), [`apply`] carries them out through [`netlink`]. What an ADD does on a node
//! where everything is in place is in [`cni::add`] and [`fast`]. [`agent`] calls the reconcile
//! when somebody else has changed the node; [`conflist`] keeps our entry in the list of plugins
//! that the runtime calls.

pub mod agent;
pub mod backend;
pub mod cli;
pub mod cni;
pub mod config;
pub mod conflist;
pub mod error;
pub mod handover;
pub mod hash;
pub mod logging;
pub mod model;
pub mod names;
pub mod netlink;
pub mod node;
pub mod plan;
pub mod process;
pub mod state;
