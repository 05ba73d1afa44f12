//! A UDP server of the node on the wildcard address.

use super::{NICS, found, json, report};
use crate::lab::flows::{BASELINE, PATIENT};
use crate::lab::traffic::{Proto, ask};
use crate::lab::two_nics::{CLIENT, NODE, two_nics};

/// The server replies from eth0's address, whichever address the client asked.
#[test]
fn a_server_that_replies_from_the_wrong_address() {
    let layout = two_nics();
    let node = &layout.node;
    node.up(&json!({ "uplinks": NICS }));
    let asks = |address: &str, deadline| {
        let to = format!("{address}:10250").parse().expect("an address");
        ask(&layout.client, Proto::Udp, to, deadline)
    };
    asks(NODE[0], PATIENT).expect("an answer");
    assert_eq!(found(node, &[]), ["note no-agent"]);
    asks(NODE[1], BASELINE).expect_err("the client does not take such a reply");
    assert_eq!(found(node, &[]), ["warning unbound-udp", "note no-agent"]);
    let text = report(node, &[]).to_string();
    for words in [
        "UDP server on port 10250".to_owned(),
        format!("{CLIENT}:"),
        format!("has asked {}:10250", NODE[1]),
        format!("went out from {}:10250", NODE[0]),
        format!("(process {})", std::process::id()),
    ] {
        assert!(text.contains(&words), "{words:?} in {text}");
    }
    node.down();
}
