//! A network behind the node (a bridge of containers) asks one of the node's addresses. A rule by that
//! address sends the reply out of a NIC. `status` names the rule with a remedy that works.

use serde_json::{Value, json};

use super::lan::{Lan, firewall, host};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

#[test]
fn containers_that_ask_a_secondary_address_are_named_with_the_remedy() {
    let (node, router) = (Node::new("node"), firewall("router"));
    let (lan0, lan1, outside) = (Lan::new("lan0"), Lan::new("lan1"), Lan::new("outside"));
    lan0.plug(&node.ns, "eth0", &["10.10.0.10/24"]);
    lan1.plug(&node.ns, "eth1", &["10.11.0.10/24"]);
    lan0.plug(&router, "r0", &["10.10.0.1/24"]);
    lan1.plug(&router, "r1", &["10.11.0.1/24"]);
    outside.plug(&router, "r2", &["203.0.113.1/24"]);
    // MAAS makes such rules at 100.
    node.ns.ip("route add default via 10.10.0.1 dev eth0
         route add default via 10.11.0.1 dev eth1 table 111
         rule add from 10.11.0.10 lookup 111 pref 100
         link add docker0 type bridge
         link set docker0 up
         addr add 172.17.0.1/16 dev docker0");
    let container = Netns::new("container");
    node.ns.ip(&format!(
        "link add c0 type veth peer name eth0 netns {}
         link set c0 master docker0 up",
        container.name()
    ));
    container.ip("addr add 172.17.0.2/16 dev eth0
         link set eth0 up
         route add default via 172.17.0.1");
    let client = host(&outside, "client", "203.0.113.9/24", "203.0.113.1");
    let _server = Server::start(&node.ns, Proto::Tcp, 10250, "host");
    let flows = [
        Flow::new("client", &client, Proto::Tcp, "10.11.0.10:10250", "host 203.0.113.9"),
        Flow::new("first", &container, Proto::Tcp, "10.10.0.10:10250", "host 172.17.0.2"),
        Flow::new("second", &container, Proto::Tcp, "10.11.0.10:10250", "host 172.17.0.2"),
    ];
    assert_only_these_fail(&flows, &["second"]);
    let before = Snapshot::take(&node);
    node.up(&json!({"uplinks": ["eth*"], "rulePriority": "auto"}));
    assert_only_these_fail(&flows, &["second"]);
    let status = node.symroute(&["status"]);
    assert_eq!(status.code, Some(0), "symroute itself is well: {}", status.stdout);
    let report = || -> Value {
        serde_json::from_str(&node.symroute(&["status", "--json"]).stdout).expect("a report")
    };
    let found = report()["unanswered"].clone();
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
    let what = found[0]["what"].as_str().expect("a text");
    for word in ["172.17.0.0/16", "docker0", "10.11.0.10", "100: from 10.11.0.10"] {
        assert!(what.contains(word), "{word} is not in {what}");
    }
    assert!(status.stdout.contains(what), "{}", status.stdout);
    let remedy = found[0]["wayOut"].as_str().expect("a text");
    let command = remedy.split_once(": ip ").expect("a command").1;
    node.ns.ip(command);
    assert_all_work(&flows);
    assert_eq!(report()["unanswered"], json!([]));
    assert_eq!(node.symroute(&["status"]).code, Some(0), "the remedy is nothing wrong");
    node.ns.ip(&command.replace("rule add", "rule del"));
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
}
