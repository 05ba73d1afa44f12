//! DEL: detach a pod. A DEL that fails stops the chain and leaks the primary plugin's address, so
//! nothing that goes wrong here is reported to the runtime.

use super::{Request, log_failures};
use crate::config::{self, Log};
use crate::logging;
use crate::names;
use crate::node::teardown;
use crate::state::State;

/// Removes the file of this attachment, and only that. The configuration is not needed for it and
/// may be any.
pub(super) fn del(request: &Request<'_>) {
    let start_log = || {
        let log = config::parse(&request.config).map_or_else(|_| Log::default(), |c| c.log);
        logging::start(&log);
    };
    log_failures(
        request,
        &teardown::remove(&State::new(names::STATE_DIR), &request.key, start_log),
    );
}
