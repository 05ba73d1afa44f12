//! DEL: take a pod out again. A DEL that fails stops the chain and leaks the primary plugin's
//! address, so nothing that goes wrong here is told to the runtime.

use super::{Request, log_failures};
use crate::config::{self, Log};
use crate::logging;
use crate::node::Node;

/// Removes what the file of this attachment names, and only that. The configuration is not
/// needed for it and may be any.
pub(super) fn del(request: &Request<'_>) {
    let log = config::parse(&request.config).map_or_else(|_| Log::default(), |c| c.log);
    logging::start(&log);
    let failures = match Node::open() {
        Ok(mut node) => {
            let failures = node.remove(&request.key);
            node.leave();
            failures
        }
        Err(error) => vec![error],
    };
    log_failures(request, &failures);
}
