//! DEL: detach a pod. A failing DEL would stop the chain and leak the primary plugin's address, so the
//! plugin logs errors and reports none to the runtime.

use super::{Request, log_failures, settle_capabilities};
use crate::config::{self, Log};
use crate::logging;
use crate::names;
use crate::node::{pods, teardown};
use crate::state::State;

/// Removes the file of this attachment and the rules of its interface in the pod's namespace. The
/// configuration may be invalid: DEL does not need it.
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
