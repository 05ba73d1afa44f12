//! Recipes of docs/recipes.md: load balancers on a second NIC, each with real packets.
//!
//! ```text
//!      client 203.0.113.9                      near 203.0.113.8
//!              |                                      |
//!      +-------+----------------- outside ------------+-------+
//!              |                                      |
//!            edge1                                  edge0              stateful firewalls
//!          10.11.0.1                              10.10.0.1
//!              |                                      |
//!      +-------+--------+             +---------------+-------+
//!              |                      |                       |
//!   eth1  10.11.0.10/24    eth0  10.10.0.10/24                |        node a: strict rp_filter
//!   eth1  10.11.0.20/24    eth0  10.10.0.20/24                |        node b: strict rp_filter
//!                                                     worker 10.10.0.30
//! ```
//!
//! The default route of both nodes is by eth0. The client reaches virtual addresses by edge1. All
//! neighbours are resolved by ARP, and no entry is permanent. `eth1` has no default route, so
//! `gateways` names its router.

mod bird;
mod keepalived;
mod kube_vip;
mod metallb_bgp;
mod metallb_l2;
mod site;
