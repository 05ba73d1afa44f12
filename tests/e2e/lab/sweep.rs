//! Compares `explain` with the flows of every test. `explain` has to describe what happens to each
//! request that a node gets, and to its answer.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::flows::Flow;
use super::node::Node;
use super::verdicts::{Recorded, each_once, is_same, side_in_force};
use crate::agent::plugin_object;

thread_local! {
    /// The nodes of the test that this thread runs.
    static NODES: RefCell<Vec<Node>> = const { RefCell::new(Vec::new()) };
}

/// Outcome of a request, according to the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Works,
    Fails,
    /// The request is not one of the test's flows: a tunnel's packet, or one that a server on the
    /// path sends on.
    Unknown,
}

/// Includes a new node in the comparison.
pub(super) fn register(node: &Node) {
    NODES.with_borrow_mut(|nodes| nodes.push(node.twin()));
}

/// Removes a node that is about to be dropped.
pub(super) fn forget(node: &Node) {
    // At the end of a thread the list may be gone already.
    let _ = NODES.try_with(|nodes| {
        nodes.borrow_mut().retain(|one| one.ns.name() != node.ns.name());
    });
}

/// Makes all nodes of the test record their requests.
pub(crate) fn begin_recording() {
    NODES.with_borrow(|nodes| nodes.iter().for_each(Node::record_requests));
}

/// Asserts that `explain` is right about the requests since [`begin_recording`]. `broken` names the
/// flows that fail.
pub(crate) fn assert_explain_is_right(flows: &[Flow<'_>], broken: &[&str]) {
    let (mut count, mut wrong) = (0, Vec::new());
    NODES.with_borrow(|nodes| {
        let noted: Vec<_> =
            nodes.iter().map(|node| (node.recorded_requests(), node.recorded_answers())).collect();
        for (node, (asked, left)) in nodes.iter().zip(noted) {
            node.stop_recording();
            let config = plugin_object(node, &json!({"uplinks": ["eth*"]}));
            let fails = |flow: &Flow<'_>| broken.contains(&flow.name.as_str());
            // A node on the path may have changed the destination of a request to that of another
            // flow.
            let is_turned = |flow: &&Flow<'_>| !asked.iter().any(|one| flow.has_request(one));
            let is_unclear = flows.iter().filter(is_turned).any(fails);
            for one in each_once(&asked) {
                let own: Vec<_> = flows.iter().filter(|flow| flow.has_request(one)).collect();
                let outcome = if own.iter().any(|flow| fails(flow)) {
                    Outcome::Fails
                } else if own.is_empty() || is_unclear {
                    Outcome::Unknown
                } else {
                    Outcome::Works
                };
                let ports: Vec<_> = asked.iter().filter(|other| is_same(other, one)).collect();
                let is_answer = |answer: &&Recorded| {
                    is_same(&Recorded { nic: one.nic.clone(), ..(*answer).clone() }, one)
                        && ports.iter().any(|port| port.client_port == answer.client_port)
                };
                let by = left.iter().filter(is_answer).map(|answer| answer.nic.as_str());
                let by: BTreeSet<&str> = by.collect();
                count += 1;
                wrong.extend(judge(node, &config, one, &by, outcome));
            }
        }
    });
    println!("explain is held against {count} requests");
    assert!(wrong.is_empty(), "explain is wrong:\n{}", wrong.join("\n"));
}

/// Why `explain` is wrong about a request; `None` if it is right. `by` are the interfaces that its
/// answers left through.
fn judge(
    node: &Node,
    config: &str,
    one: &Recorded,
    by: &BTreeSet<&str>,
    outcome: Outcome,
) -> Option<String> {
    let ran = node.explained(config, one, &["--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let requests = report["requests"].as_array().expect("requests");
    // One result for each backend that DNAT may choose.
    let sides: Vec<_> = requests.iter().map(side_in_force).collect();
    let is_right = if by.is_empty() {
        sides.iter().any(|side| has_no_answer(side, outcome))
    } else {
        by.iter().all(|nic| sides.iter().any(|side| is_answered_by(side, nic)))
    };
    (!is_right).then(|| {
        let text = node.explained(config, one, &[]).stdout;
        format!("{one}: {outcome:?}, answers left by {by:?}\n{text}")
    })
}

/// Whether this part says that answers leave through `nic`, or that the request leaves the node.
fn is_answered_by(side: &Value, nic: &str) -> bool {
    match side["ending"].as_str().expect("a word") {
        "answered" => {
            side["departure"]["answerIsDroppedAt"].is_null() && side["way"]["interface"] == nic
        }
        // The pod that sent the request gets the answers.
        "leaves" => true,
        _ => false,
    }
}

/// Whether this part agrees with the absence of answers on the node.
fn has_no_answer(side: &Value, outcome: Outcome) -> bool {
    let is_lost_later = !side["departure"]["answerIsDroppedAt"].is_null();
    match side["ending"].as_str().expect("a word") {
        "answered" if is_lost_later => outcome != Outcome::Works,
        "answered" => match outcome {
            Outcome::Works => false,
            // A backend on another host may not answer.
            Outcome::Fails => !side["departure"].is_null(),
            // A tunnel's packet may expect no answer.
            Outcome::Unknown => true,
        },
        // Other hosts decide what happens to the request.
        "leaves" => !(outcome == Outcome::Works && is_lost_later),
        "passes-through" => true,
        _ => outcome != Outcome::Works,
    }
}
