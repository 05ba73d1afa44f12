//! GC: detach pods that the runtime no longer knows.

use serde_json::Value;

use super::{Code, Failure, Request, settle_capabilities};
use crate::error::Error;
use crate::names;
use crate::node::{pods, teardown};
use crate::state::{Key, State};

/// Keys with the runtime's list of valid attachments; older libraries use the second.
pub(super) const LISTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// Removes attachments of this network that are not in the list; without a list, removes none. Goes on
/// after an error and reports all errors at the end.
pub(super) fn gc(request: &Request<'_>) -> Result<(), Failure> {
    let Some(list) = LISTS.iter().find_map(|key| request.config.get(*key)) else { return Ok(()) };
    let network = &request.key.network;
    let valid = valid(list, network)?;
    let state = State::new(names::STATE_DIR);
    settle_capabilities(state.has_pods());
    let attachments = state.attachments().map_err(Error::from)?;
    let gone = attachments.readable.into_iter().map(|a| a.key);
    let gone = gone.filter(|key| key.network == *network && !valid.contains(key));
    let mut failures: Vec<String> = Vec::new();
    for key in gone.collect::<Vec<_>>() {
        failures.extend(teardown::remove(&state, &key, || {}).iter().map(ToString::to_string));
    }
    let is_gone = |key: &Key| key.network == *network && !valid.contains(key);
    failures.extend(pods::collect(&state, is_gone).iter().map(ToString::to_string));
    failures.extend(pods::settle_rest(&state).iter().map(ToString::to_string));
    failures.extend(teardown::settle_rest(&state).err().iter().map(ToString::to_string));
    failures.dedup();
    if failures.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::Kernel, "symroute: not all could be removed").with(failures.join("; ")))
}

/// The attachments in the list; `null` counts as an empty list.
fn valid(list: &Value, network: &str) -> Result<Vec<Key>, Failure> {
    let wrong = |at: &Value| {
        Failure::new(Code::Decode, format!("decode the list of valid attachments: {at}"))
            .with("wanted: a list of {\"containerID\": \"…\", \"ifname\": \"…\"}")
    };
    let entries = match list {
        Value::Null => return Ok(Vec::new()),
        Value::Array(entries) => entries,
        other => return Err(wrong(other)),
    };
    entries
        .iter()
        .map(|entry| {
            let part = |name: &str| entry.get(name)?.as_str().map(str::to_string);
            part("containerID")
                .zip(part("ifname"))
                .map(|(container, ifname)| Key { network: network.to_string(), container, ifname })
                .ok_or_else(|| wrong(entry))
        })
        .collect()
}
