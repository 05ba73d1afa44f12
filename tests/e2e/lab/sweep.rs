//! Holds `explain` against the flows of every test: of each request that a node of the test gets, and of its
//! answer, it has to say what happens.

use std::cell::RefCell;
use std::mem::ManuallyDrop;

use serde_json::{Value, json};

use super::flows::Flow;
use super::node::Node;
use super::verdicts::Asked;
use crate::agent::plugin_object;

thread_local! {
    /// The nodes of the test that this thread runs.
    static NODES: RefCell<Vec<ManuallyDrop<Node>>> = const { RefCell::new(Vec::new()) };
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
pub(super) fn begin() {
    NODES.with_borrow(|nodes| nodes.iter().for_each(|node| node.note_requests()));
}

/// Panics unless `explain` is right about what the nodes got since [`begin`]. `broken`: the flows that fail.
pub(super) fn hold(flows: &[Flow<'_>], broken: &[&str]) {
    let (mut count, mut wrong) = (0, Vec::new());
    NODES.with_borrow(|nodes| {
        for node in nodes {
            let (asked, left) = (node.asked(), node.left());
            node.end_noting_requests();
            let config = plugin_object(node, &json!({"uplinks": ["eth*"]}));
            for one in &asked {
                let own: Vec<_> = flows.iter().filter(|flow| flow.is(one)).collect();
                let fate = if own.is_empty() {
                    Fate::Unknown
                } else if own.iter().any(|flow| broken.contains(&flow.name.as_str())) {
                    Fate::Fails
                } else {
                    Fate::Works
                };
                let by: Vec<_> = left.iter().filter(|answer| is_answer(answer, one)).collect();
                let by: Vec<&str> = by.iter().map(|answer| answer.nic.as_str()).collect();
                count += 1;
                wrong.extend(judge(node, &config, one, &by, fate));
            }
        }
    });
    println!("explain is held against {count} requests");
    assert!(wrong.is_empty(), "explain is wrong:\n{}", wrong.join("\n"));
}

fn is_answer(answer: &Asked, to: &Asked) -> bool {
    Asked { nic: to.nic.clone(), ..answer.clone() } == *to
}

/// What is wrong with what `explain` says of a request. `by`: the interfaces that its answers left by.
fn judge(node: &Node, config: &str, one: &Asked, by: &[&str], fate: Fate) -> Option<String> {
    let ran = node.explained(config, one, &["--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let requests = report["requests"].as_array().expect("requests");
    let sides: Vec<_> = requests.iter().map(now).collect();
    let is_right = sides.iter().any(|side| fits(side, by, fate));
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

fn fits(side: &Value, by: &[&str], fate: Fate) -> bool {
    let is_lost_later = !side["departure"]["answerIsDroppedAt"].is_null();
    let goes_on = !side["departure"].is_null();
    match side["ending"].as_str().expect("a word") {
        "answered" if is_lost_later => by.is_empty(),
        "answered" if by.is_empty() => match fate {
            Fate::Works => false,
            // A backend elsewhere may not answer.
            Fate::Fails => goes_on,
            Fate::Unknown => true,
        },
        "answered" => by.iter().all(|nic| side["way"]["interface"] == *nic),
        // What becomes of these is decided elsewhere.
        "leaves" => !(fate == Fate::Works && is_lost_later),
        "passes-through" => true,
        _ => by.is_empty(),
    }
}
