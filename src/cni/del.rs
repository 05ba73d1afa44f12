//! DEL: detach a pod. A DEL that fails stops the chain and leaks the primary plugin's address, so
//! nothing that goes wrong here is reported to the runtime.

use super::{Request, log_failures, settle_capabilities};
use crate::config::{self, Log};
use crate::logging;
use crate::names;
use crate::node::{pods, teardown};
use crate::state::State;

/// Removes this attachment, and only that: its file, and what its interface had in the pod's namespace. The
/// configuration is not needed for it and may be any.
pub(super) fn del(request: &Request<'_>) {
    let start_log = || {
        let log = config::parse(&request.config).map_or_else(|_| Log::default(), |c| c.log);
        logging::start(&log);
    };
    let state = State::new(names::STATE_DIR);
    log_failures(request, &teardown::remove(&state, &request.key, start_log));
    let has_pods = state.has_pods();
    settle_capabilities(has_pods);
    if !has_pods {
        return;
    }
    start_log();
    let failures = pods::detach(&state, &request.key);
    log_failures(request, &failures);
}
