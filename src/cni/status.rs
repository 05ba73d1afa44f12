//! STATUS: could an ADD succeed? Asked every few seconds, so it is one look and takes no lock.

use nix::errno::Errno;

use super::{Code, Failure, Request};
use crate::config;
use crate::error::Error;
use crate::names;
use crate::netlink::{Socket, nft};
use crate::ruleset::sets::number_key;

/// Succeeds if the settings can be read, the kernel has `nf_tables` and we may use it.
pub(super) fn status(request: &Request<'_>) -> Result<(), Failure> {
    let unavailable = |error: Error| {
        let way_out = error.way_out().unwrap_or_default();
        Failure::new(Code::Unavailable, format!("symroute: {error}")).with(way_out)
    };
    let config = config::parse(&request.config).map_err(|e| unavailable(e.into()))?;
    let mut socket = Socket::netfilter()
        .map_err(Error::kernel("open a socket to nf_tables"))
        .map_err(unavailable)?;
    let key = number_key(config.settings.fingerprint());
    match nft::element(&mut socket, names::IN_FORCE, &key) {
        Ok(_) => Ok(()),
        Err(error) if error.errno == Errno::ENOENT => Ok(()),
        Err(error) => Err(unavailable(Error::kernel("ask nf_tables")(error))),
    }
}
