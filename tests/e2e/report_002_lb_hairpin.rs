//! Field report 002: a pod calls an internal load balancer that sends it back to its own node.
//!
//! ```text
//!  +---------------------------------------------+
//!  |   router, with the balancer in it, which    |   10.99.0.10:80 -> NodePort on eth0
//!  |   keeps the client's address                |   10.99.0.11:80 -> NodePort on eth1
//!  +-------+-----------------------------+-------+
//!        eth0                          eth1
//!  +-------+-----------------------------+-------+
//!  |      node: strict rp_filter, kube-proxy     |   NodePort 30080 -> pod1:8080
//!  +-------+-----------------------------+-------+
//!       enipod0, who calls            enipod1, who answers
//! ```
//!
//! The request comes back to the node with the source address of the node's own pod. Strict
//! `rp_filter` drops it; without `rp_filter` the reply would go straight to the caller, from an
//! address that the caller never spoke to. Over IPv6, which has no `rp_filter`, it does just that.

use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_only_these_fail};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::proof::Proof;
use crate::lab::traffic::Proto;
use crate::lab::two_nics::{NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};

const NODE_PORT: u16 = 30080;
const BALANCERS: [&str; 2] = ["10.99.0.10", "10.99.0.11"];
const BALANCERS6: [&str; 2] = ["2001:db8:99::10", "2001:db8:99::11"];

fn layout(policy: Policy) -> TwoNics {
    let layout = two_nics();
    let service = |proto, backend: String| Service {
        frontend: Frontend::NodePort(NODE_PORT),
        proto,
        backend: backend.parse().expect("an address and port"),
        policy,
    };
    let services = [
        service(Proto::Tcp, format!("{}:8080", POD[1])),
        service(Proto::Udp, format!("{}:8080", POD[1])),
        service(Proto::Tcp, format!("[{}]:8080", POD6[1])),
    ];
    kubeproxy::install(&layout.node.ns, Flavour::Iptables, &services);
    layout.router.ns.nft(&balancer());
    layout
}

/// The balancer's rules: the destination is rewritten, the source is not.
fn balancer() -> String {
    let rules = [0, 1].map(|nic| {
        let (from, to, from6, to6) = (BALANCERS[nic], NODE[nic], BALANCERS6[nic], NODE6[nic]);
        format!(
            "ip daddr {from} tcp dport 80 dnat ip to {to}:{NODE_PORT}
             ip daddr {from} udp dport 80 dnat ip to {to}:{NODE_PORT}
             ip6 daddr {from6} tcp dport 80 dnat ip6 to [{to6}]:{NODE_PORT}
             "
        )
    });
    format!(
        "table inet balancer {{
         chain balance {{
         type nat hook prerouting priority dstnat; policy accept;
         {}
         }}
         }}
         ",
        rules.concat()
    )
}

/// From pod0 by each balancer to pod1, which sees the caller's address, or with the policy
/// Cluster the node's.
fn flows(layout: &TwoNics, policy: Policy) -> Vec<Flow<'_>> {
    let (answer, answer6) = match policy {
        Policy::Local => ("pod1 10.20.0.50", Some("pod1 2001:db8:20::50")),
        // Which of the node's IPv6 addresses MASQUERADE takes is not the report's business.
        Policy::Cluster => ("pod1 10.20.0.10", None),
    };
    let pod0 = &layout.pods[0].ns;
    let mut flows = Vec::new();
    for (nic, balancer) in NICS.iter().zip(BALANCERS) {
        for proto in [Proto::Tcp, Proto::Udp] {
            let name = format!("hairpin by {nic} over {proto:?}");
            flows.push(Flow::new(&name, pod0, proto, &format!("{balancer}:80"), answer));
        }
    }
    for (nic, balancer) in NICS.iter().zip(BALANCERS6) {
        if let Some(answer6) = answer6 {
            let name = format!("hairpin by {nic} over IPv6");
            flows.push(Flow::new(&name, pod0, Proto::Tcp, &format!("[{balancer}]:80"), answer6));
        }
    }
    flows
}

fn settings(hairpin: bool) -> Value {
    json!({"uplinks": NICS, "hairpin": hairpin})
}

/// Asserts that every flow fails, and that strict `rp_filter` dropped the IPv4 ones.
fn assert_dropped(layout: &TwoNics, policy: Policy) {
    let flows = flows(layout, policy);
    let names: Vec<&str> = flows.iter().map(|flow| flow.name.as_str()).collect();
    assert_only_these_fail(&flows, &names);
    let drops = layout.node.rp_filter_drops();
    assert!(drops >= 4, "strict rp_filter dropped only {drops} packets of four flows");
}

fn field_report(policy: Policy) {
    let today = layout(policy);
    assert_dropped(&today, policy);
    // kube-proxy's rules for the NodePort.
    let requests = [("eth0", POD[0], POD[1]), ("eth1", POD[0], POD[1])];
    today.node.assert_explained("report_002", &settings(true), &requests);
    drop(today);
    works_with(policy, &settings(true), &settings(true));
}

/// `caller` and `backend`: the settings that each of the two pods is added with.
fn works_with(policy: Policy, caller: &Value, backend: &Value) {
    let layout = &layout(policy);
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.add(caller, &layout.pods[0]);
    layout.node.add(backend, &layout.pods[1]);
    let flows = flows(layout, policy);
    // Each flow crosses the router twice: caller to balancer, and balancer to NodePort.
    proof.assert_flows_work(&flows, &NICS, 2 * flows.len());
    layout.node.del(caller, &layout.pods[0]);
    layout.node.del(backend, &layout.pods[1]);
    proof.assert_as_before();
}

fn annotated() -> Value {
    let mut settings = settings(false);
    settings["runtimeConfig"] = json!({
        "io.kubernetes.cri.pod-annotations": {"symroute.io/hairpin": "true"}
    });
    settings
}

/// A pod may ask for hairpin by its own annotation; the caller need not. iptables decides whether to
/// accept a packet before DNAT shows that the `NodePort` leads to that pod.
#[test]
fn by_the_annotation_of_the_backend() {
    if !Backend::of_run().is_iptables() {
        works_with(Policy::Local, &settings(false), &annotated());
        return;
    }
    let layout = layout(Policy::Local);
    layout.node.add(&settings(false), &layout.pods[0]);
    layout.node.add(&annotated(), &layout.pods[1]);
    assert_dropped(&layout, Policy::Local);
}

/// The balancer sends to the pod itself, as cloud balancers with pod targets do.
#[test]
fn by_the_annotation_of_the_pod_that_is_the_target() {
    let layout = two_nics();
    layout.router.ns.nft(&format!(
        "table inet balancer {{
         chain balance {{
         type nat hook prerouting priority dstnat; policy accept;
         ip daddr 10.99.0.11 tcp dport 80 dnat ip to {}:8080
         ip6 daddr 2001:db8:99::11 tcp dport 80 dnat ip6 to [{}]:8080
         }}
         }}
         ",
        POD[1], POD6[1]
    ));
    let flow = |to, answer| Flow::new(to, &layout.pods[0].ns, Proto::Tcp, to, answer);
    let flows = || {
        let over6 = flow("[2001:db8:99::11]:80", "pod1 2001:db8:20::50");
        [flow("10.99.0.11:80", "pod1 10.20.0.50"), over6]
    };
    layout.node.add(&settings(false), &layout.pods[0]);
    layout.node.add(&settings(false), &layout.pods[1]);
    assert_only_these_fail(&flows(), &["10.99.0.11:80", "[2001:db8:99::11]:80"]);
    layout.node.ns.exec(&["conntrack", "-F"], "");
    layout.node.del(&settings(false), &layout.pods[1]);
    let proof = Proof::begin(&layout.node, &layout.router);
    layout.node.add(&annotated(), &layout.pods[1]);
    proof.assert_flows_work(&flows(), &NICS, 4);
    layout.node.del(&annotated(), &layout.pods[1]);
    proof.assert_as_before();
}

#[test]
fn policy_local() {
    field_report(Policy::Local);
}

#[test]
fn policy_cluster() {
    field_report(Policy::Cluster);
}

/// The packet looks like a spoofed one, and without `hairpin` it is treated as one.
#[test]
fn stays_dropped_without_hairpin() {
    let layout = layout(Policy::Local);
    for pod in &layout.pods {
        layout.node.add(&settings(false), pod);
    }
    assert_dropped(&layout, Policy::Local);
}

/// `explain` predicts the result of each flow, without the plugin and with it.
#[test]
fn verdicts() {
    for (policy, name) in [(Policy::Local, "Local"), (Policy::Cluster, "Cluster")] {
        let layout = &layout(policy);
        let flows = flows(layout, policy);
        let names: Vec<&str> = flows.iter().map(|flow| flow.name.as_str()).collect();
        let what = format!("report 002, policy {name}");
        let settings = settings(true);
        layout.node.assert_verdicts(&what, &settings, &flows, &names);
        layout.pods.iter().for_each(|pod| layout.node.add(&settings, pod));
        let what = format!("{what}, with symroute");
        layout.node.assert_verdicts(&what, &settings, &flows, &[]);
        layout.pods.iter().for_each(|pod| layout.node.del(&settings, pod));
    }
}
