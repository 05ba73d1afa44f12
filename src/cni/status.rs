//! STATUS: could an ADD succeed? Asked every few seconds, so it is one look and takes no lock.

use super::{Code, Failure, Request};
use crate::config::{self, Backend};
use crate::error::Error;
use crate::gather;
use crate::names;
use crate::netlink::{Socket, ipset, nft};
use crate::ruleset::sets::number_key;
use crate::startup::leave;
use crate::state::State;
use crate::xtables::tools::Tools;

/// Succeeds if the settings can be read, and the kernel has `nf_tables`, or else `ip_set` beside an
/// iptables that is installed, and we may use it.
pub(super) fn status(request: &Request<'_>) -> Result<(), Failure> {
    let unavailable = |error: Error| {
        let way_out = error.way_out().unwrap_or_default();
        Failure::new(Code::Unavailable, format!("symroute: {error}")).with(way_out)
    };
    let config = config::parse(&request.config).map_err(|e| unavailable(e.into()))?;
    let mut socket = Socket::netfilter()
        .map_err(Error::kernel("open a socket to netfilter"))
        .map_err(unavailable)?;
    let backend = config.settings.backend;
    if matches!(backend, Backend::Auto | Backend::Nftables) {
        let key = number_key(config.settings.fingerprint(false));
        match nft::element(&mut socket, names::IN_FORCE, &key) {
            Err(error) if backend == Backend::Auto && gather::is_missing(&error) => {}
            Err(error) => return Err(unavailable(Error::kernel("ask nf_tables")(error))),
            Ok(_) => {
                leave(&State::new(names::STATE_DIR), false, None);
                return Ok(());
            }
        }
    }
    ipset::is_there(&mut socket).map_err(Error::kernel("ask ip_set")).map_err(unavailable)?;
    let installed = Tools::installed();
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
