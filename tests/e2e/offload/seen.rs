//! What the tool reports about connections in the flowtable, and about a kernel without flowtables.

use serde_json::{Value, json};

use super::{PROTOS, offloaded, settings};
use crate::lab::agent::{Agent, until};
use crate::lab::flows::assert_all_work;
use crate::lab::flowtable::{ENOUGH, is_offloaded, kernel_has_flowtables, line_of, offload};
use crate::lab::node::Node;
use crate::lab::talk::Talk;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{CLIENT, POD, two_nics};

fn report(node: &Node) -> Value {
    serde_json::from_str(&node.symroute(&["status", "--json"]).stdout).expect("a report")
}

/// The findings of `doctor` about offload, as severity and text.
fn findings(node: &Node) -> Vec<(String, String)> {
    let ran = node.symroute(&["doctor", "--for", "0s", "--json"]);
    let report: Value = serde_json::from_str(&ran.stdout).expect(&ran.stderr);
    let offloaded = |one: &&Value| one["id"] == "offloaded" || one["id"] == "flowtable";
    let word = |one: &Value, key: &str| one[key].as_str().expect("text").to_owned();
    let all = report["findings"].as_array().expect("findings").iter().filter(offloaded);
    all.map(|one| (word(one, "severity"), word(one, "what"))).collect()
}

#[test]
fn status_doctor_metrics_and_trace_name_offloaded_connections() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    node.add(&settings(), &layout.pods[1]);
    let before = report(node);
    assert_eq!(before["offloads"], true);
    assert_eq!(before["uplinks"][1]["counters"]["connectionsOffloaded"], 0);
    assert_eq!(findings(node), []);
    let _talks = offloaded(&layout);
    let mut by_eth0 = Talk::begin(&layout.client, &layout.pods[0].ns, Proto::Tcp, POD[0]);
    offload(&node.ns, &mut by_eth0);
    let status = report(node);
    let count = |at: usize| status["uplinks"][at]["counters"]["connectionsOffloaded"].as_u64();
    assert_eq!((count(0), count(1)), (Some(1), Some(4)));
    let text = node.symroute(&["status"]).stdout;
    assert!(text.contains("offloaded      connections now: 1 by eth0, 4 by eth1\n"), "{text}");
    let counted = "connections in symroute's flowtable: 1 by eth0, 4 by eth1";
    assert_eq!(findings(node), [("note".to_owned(), counted.to_owned())]);
    let agent = Agent::ready(node, &[]);
    assert_eq!(agent.metric("symroute_connections_offloaded{uplink=\"eth1\"}"), 4);
    drop(agent);
    let trace = node.symroute(&["trace", "--from", CLIENT, "--to", POD[1], "--for", "100ms"]);
    assert_eq!(trace.code, Some(5), "{}", trace.stdout);
    assert!(trace.stderr.contains("cannot see: packets of connections"), "{}", trace.stderr);
}

/// Where nothing can be offloaded, symroute serves the node as without the setting, and `status`
/// reports that.
#[test]
fn a_kernel_without_flowtables_serves_as_before() {
    let mut layout = two_nics();
    let pod = layout.pod_behind_eth1(1);
    let node = &layout.node;
    node.add(&settings(), &pod);
    assert_all_work(&[layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")]);
    // For the second pod the node is ready.
    node.add(&settings(), &layout.pods[1]);
    let status = report(node);
    let wrong = status["off"][0]["what"].as_str().unwrap_or_default();
    assert_eq!(status["offloads"].as_bool(), Some(wrong.is_empty()), "{status:#}");
    assert_eq!(status["pending"], json!([]));
    if !wrong.is_empty() {
        assert!(wrong.contains("no connection is offloaded"), "{wrong}");
    }
    node.del(&settings(), &layout.pods[1]);
    node.del(&settings(), &pod);
}

/// The kernel subtracts the flowtable's timeout from conntrack's when a UDP connection returns to
/// the rules. If nothing were left, conntrack would forget the connection. The pod's next packet
/// would then leave through another NIC.
#[test]
fn udp_stays_with_the_rules_where_conntrack_would_forget_it() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node;
    node.ns.sysctl("netfilter/nf_conntrack_udp_timeout_stream", "30");
    node.add(&settings(), &layout.pods[1]);
    let wrong = report(node)["off"][0]["what"].to_string();
    assert!(wrong.contains("no UDP connection is offloaded"), "{wrong}");
    let [mut tcp, mut udp] =
        PROTOS.map(|proto| Talk::begin(&layout.client, &layout.pods[1].ns, proto, POD[1]));
    offload(&node.ns, &mut tcp);
    until("the connection over UDP is kept up", || {
        udp.assert_goes_on("a word");
        line_of(&node.ns, &udp).contains("[ASSURED]")
    });
    for _ in 0..ENOUGH {
        udp.assert_goes_on("a word");
    }
    assert!(!is_offloaded(&node.ns, &udp));
    // The kernel's default is enough.
    node.ns.sysctl("netfilter/nf_conntrack_udp_timeout_stream", "120");
    node.up(&settings());
    offload(&node.ns, &mut udp);
    assert_eq!(report(node)["off"], json!([]));
    node.del(&settings(), &layout.pods[1]);
    node.down();
}
