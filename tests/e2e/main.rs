//! End-to-end tests: real packets between network namespaces, the real program in the middle.
//!
//! They need root. `tests/README.md` says how to run one of them and how to look inside.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first thing that is not as expected, and prints its figures"
)]

mod agent;
mod annotations;
mod answered;
mod backends;
mod bad_input;
mod bundle;
mod capabilities;
mod discovery;
mod doctor;
mod explain;
mod fast_path;
mod forged;
mod interrupted;
mod ipvs;
mod kinds;
mod lab;
mod lab_itself;
mod ledger;
mod lifecycle;
mod living;
mod marks;
mod neighbours;
mod node_first;
mod offload;
mod overdue;
mod overlay;
mod pods;
mod protocol;
mod races;
mod recipes;
mod refusals;
mod regressions;
mod remote_backend;
mod report_000_aws_nlb;
mod report_001_lb_ip_from_pod;
mod report_002_lb_hairpin;
mod report_003_flannel_tun;
mod report_004_cluster_api_reboot;
mod routing;
mod soak;
mod sources;
mod spoofs;
mod status;
mod text;
mod trace;
mod transit;
mod unattached;
mod upgrade;
mod verbs;
