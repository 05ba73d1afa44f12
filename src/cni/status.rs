//! STATUS: checks whether an ADD can succeed. The runtime calls it every few seconds, so the check makes
//! few requests to the kernel and takes no lock.

use super::{Code, Failure, Request};
use crate::backend::iptables::ipset;
use crate::backend::iptables::programs::Programs;
use crate::backend::nftables::sets::number_key;
use crate::backend::nftables::table;
use crate::capabilities::{self, Capabilities};
use crate::config::{self, Backend};
use crate::error::Error;
use crate::names;
use crate::netlink::Socket;
use crate::node::observe;

/// Succeeds if the settings are valid and the plugin may use a backend: the kernel's `nf_tables`, or
/// `ip_set` together with an installed iptables.
pub(super) fn status(request: &Request<'_>) -> Result<(), Failure> {
    let unavailable = |error: Error| {
        let remedy = error.remedy().unwrap_or_default();
        Failure::new(Code::Unavailable, format!("symroute: {error}")).with(remedy)
    };
    let config = config::parse(&request.config).map_err(|e| unavailable(e.into()))?;
    if config.scope.pod && !capabilities::has(Capabilities::NAMESPACES) {
        let message = "symroute: may not enter the network namespaces of pods";
        let remedy = "run the plugin with the capabilities CAP_SYS_ADMIN and CAP_SYS_PTRACE";
        return Err(Failure::new(Code::Unavailable, message).with(remedy));
    }
    let mut socket = Socket::netfilter()
        .map_err(Error::kernel("open a socket to netfilter"))
        .map_err(unavailable)?;
    let backend = config.settings.backend;
    if matches!(backend, Backend::Auto | Backend::Nftables) {
        let key = number_key(config.settings.fingerprint(false));
        match table::element(&mut socket, names::IN_FORCE, &key) {
            Err(error) if backend == Backend::Auto && observe::is_missing(&error) => {}
            Err(error) => return Err(unavailable(Error::kernel("ask nf_tables")(error))),
            Ok(_) => return Ok(()),
        }
    }
    ipset::require(&mut socket).map_err(Error::kernel("ask ip_set")).map_err(unavailable)?;
    let installed = Programs::installed();
    let does = match backend {
        Backend::Variant(variant) => installed.contains(&variant),
        _ => !installed.is_empty(),
    };
    if !does {
        let wanted = if backend == Backend::Auto { "iptables".into() } else { backend.to_string() };
        let message = format!("symroute: {wanted} is not installed on this node");
        return Err(Failure::new(Code::Unavailable, message).with("install it"));
    }
    Ok(())
}
