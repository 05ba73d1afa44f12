//! An uplink's table holds what the node would use if it had this uplink alone. No flow that worked
//! without the plugin fails with it.

mod arp;
mod behind;
mod excluded;
mod followed;
mod gateways;
pub(crate) mod lan;
mod one_network;
mod own_table;
mod precedence;
mod property;
mod two_routers;
mod which_interfaces;
