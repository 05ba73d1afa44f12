//! Holds `explain` against the flows of every test: of each request that a node of the test gets, and of its
//! answer, it has to say what happens.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::flows::Flow;
use super::node::Node;
use super::verdicts::{Asked, each_once, is_same};
use crate::agent::plugin_object;

thread_local! {
    /// The nodes of the test that this thread runs.
    static NODES: RefCell<Vec<Node>> = const { RefCell::new(Vec::new()) };
}

/// What becomes of a request, by the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    Fails,
    /// It is none of the test's flows: what a tunnel carries, or a server on the way sends on.
    Unknown,
}

/// From now on requests that the node gets are looked at.
pub(super) fn register(node: &Node) {
    NODES.with_borrow_mut(|nodes| nodes.push(node.twin()));
}

/// The node is about to go.
pub(super) fn forget(node: &Node) {
    // At the end of a thread there may be no list any more.
    let _ = NODES.try_with(|nodes| {
        nodes.borrow_mut().retain(|one| one.ns.name() != node.ns.name());
    });
}

/// All nodes of the test note what they get.
pub(crate) fn begin() {
    NODES.with_borrow(|nodes| nodes.iter().for_each(Node::note_requests));
}

/// Panics unless `explain` is right about what the nodes got since [`begin`]. `broken`: the flows that fail.
pub(crate) fn hold(flows: &[Flow<'_>], broken: &[&str]) {
    let (mut count, mut wrong) = (0, Vec::new());
    NODES.with_borrow(|nodes| {
        let noted: Vec<_> = nodes.iter().map(|node| (node.asked(), node.left())).collect();
        for (node, (asked, left)) in nodes.iter().zip(noted) {
            node.end_noting_requests();
            let config = plugin_object(node, &json!({"uplinks": ["eth*"]}));
            let fails = |flow: &Flow<'_>| broken.contains(&flow.name.as_str());
            // A node on the way may have sent its request elsewhere, to where another flow's goes.
            let is_turned = |flow: &&Flow<'_>| !asked.iter().any(|one| flow.is(one));
            let is_unclear = flows.iter().filter(is_turned).any(fails);
            for one in each_once(&asked) {
                let own: Vec<_> = flows.iter().filter(|flow| flow.is(one)).collect();
                let fate = if own.iter().any(|flow| fails(flow)) {
                    Fate::Fails
                } else if own.is_empty() || is_unclear {
                    Fate::Unknown
                } else {
                    Fate::Works
                };
                let ports: Vec<_> = asked.iter().filter(|other| is_same(other, one)).collect();
                let is_answer = |answer: &&Asked| {
                    is_same(&Asked { nic: one.nic.clone(), ..(*answer).clone() }, one)
                        && ports.iter().any(|port| port.client_port == answer.client_port)
                };
                let by = left.iter().filter(is_answer).map(|answer| answer.nic.as_str());
                let by: BTreeSet<&str> = by.collect();
                count += 1;
                wrong.extend(judge(node, &config, one, &by, fate));
            }
        }
    });
    println!("explain is held against {count} requests");
    assert!(wrong.is_empty(), "explain is wrong:\n{}", wrong.join("\n"));
}

/// What is wrong with what `explain` says of a request. `by`: the interfaces that its answers left by.
fn judge(
    node: &Node,
    config: &str,
    one: &Asked,
    by: &BTreeSet<&str>,
    fate: Fate,
) -> Option<String> {
    let ran = node.explained(config, one, &["--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let requests = report["requests"].as_array().expect("requests");
    // One for each backend that DNAT may choose.
    let sides: Vec<_> = requests.iter().map(now).collect();
    let is_right = if by.is_empty() {
        sides.iter().any(|side| has_no_answer(side, fate))
    } else {
        by.iter().all(|nic| sides.iter().any(|side| is_answered_by(side, nic)))
    };
    (!is_right).then(|| {
        let text = node.explained(config, one, &[]).stdout;
        format!("{one}: {fate:?}, answers left by {by:?}\n{text}")
    })
}

/// The side that is in force.
fn now(request: &Value) -> &Value {
    let is_with = request["inForce"] == true && !request["with"].is_null();
    &request[if is_with { "with" } else { "without" }]
}

/// Whether it says that answers leave by this interface. What leaves the node has them come in.
fn is_answered_by(side: &Value, nic: &str) -> bool {
    match side["ending"].as_str().expect("a word") {
        "answered" => {
            side["departure"]["answerIsDroppedAt"].is_null() && side["way"]["interface"] == nic
        }
        // The pod that sent it gets them.
        "leaves" => true,
        _ => false,
    }
}

/// Whether what it says goes with no answer of the node's.
fn has_no_answer(side: &Value, fate: Fate) -> bool {
    let is_lost_later = !side["departure"]["answerIsDroppedAt"].is_null();
    match side["ending"].as_str().expect("a word") {
        "answered" if is_lost_later => fate != Fate::Works,
        "answered" => match fate {
            Fate::Works => false,
            // A backend elsewhere may not answer.
            Fate::Fails => !side["departure"].is_null(),
            // And what a tunnel carries may want no answer.
            Fate::Unknown => true,
        },
        // What becomes of it is decided elsewhere.
        "leaves" => !(fate == Fate::Works && is_lost_later),
        "passes-through" => true,
        _ => fate != Fate::Works,
    }
}
