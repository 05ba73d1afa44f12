//! Field report 001: a pod of a secondary NIC calls the load balancer address of a Service.
//!
//! ```text
//!                  backend 10.253.4.194:8000
//!                              |
//!  +---------------------------+-----------------+   the network; its source check
//!  |                   router                    |   is on or off
//!  +-------+-----------------------------+-------+
//!        eth0                          eth1
//!        10.12.97.49/24                (no address)
//!  +-------+-----------------------------+-------+
//!  |     main: default              table 1003   |   node: strict rp_filter, kube-proxy with
//!  +-----------------------+---------------------+   10.12.115.101:80 -> 10.253.4.194:8000
//!                        enipod
//!                        10.12.192.44   rules: 1000 to it main, 2000 from it 1003
//! ```
//!
//! kube-proxy marks the flow and masquerades it, but routing came first: the SYN leaves by eth1
//! with eth0's address. A source check drops it there. Without one the answer comes back on eth0,
//! where strict `rp_filter` drops it. The backend iptables can't help here, and says so.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::backend::Backend;
use crate::lab::flows::{Flow, assert_only_these_fail};
use crate::lab::kubeproxy::{self, Flavour, Frontend, Policy, Service};
use crate::lab::netns::Netns;
use crate::lab::node::{Node, Pod};
use crate::lab::not_run::kernel_lacks;
use crate::lab::proof::Proof;
use crate::lab::router::Router;
use crate::lab::traffic::{Proto, Server};

const LOAD_BALANCER: &str = "10.12.115.101:80";
const BACKEND: &str = "10.253.4.194:8000";

struct Layout {
    router: Router,
    node: Node,
    pod: Pod,
    _backend: (Netns, Server),
}

fn layout(kube_proxy: Flavour, source_check: bool) -> Layout {
    let (mut router, node) = (Router::new(), Node::new("node"));
    router.plug("eth0", &node.ns, "eth0", &["10.12.97.1"]);
    router.plug("eth1", &node.ns, "eth1", &["10.12.192.1"]);
    node.ns.ip("addr add 10.12.97.49/24 dev eth0
         route add default via 10.12.97.1 dev eth0
         route add 10.12.192.1 dev eth1 scope link table 1003
         route add default via 10.12.192.1 dev eth1 table 1003
         rule add pref 1000 to 10.12.192.44 lookup main
         rule add pref 2000 from 10.12.192.44 lookup 1003");
    let pod = node.pod("pod", &["10.12.192.44"]);
    router.assign("eth0", "10.12.97.49");
    router.assign("eth1", "10.12.192.44");
    let backend = router.host("backend", &["10.253.4.194"]);
    if source_check {
        router.check_sources(&["eth0", "eth1"]);
    }
    let service = Service {
        frontend: Frontend::Address(LOAD_BALANCER.parse().expect("an address and port")),
        proto: Proto::Tcp,
        backend: BACKEND.parse().expect("an address and port"),
        policy: Policy::Cluster,
    };
    kubeproxy::install(&node.ns, kube_proxy, &[service]);
    let server = Server::start(&backend, Proto::Tcp, 8000, "backend");
    Layout { router, node, pod, _backend: (backend, server) }
}

fn flows(pod: &Pod) -> [Flow<'_>; 2] {
    let flow = |name, to, answer| Flow::new(name, &pod.ns, Proto::Tcp, to, answer);
    [
        flow("pod to load balancer address", LOAD_BALANCER, "backend 10.12.97.49"),
        flow("pod to backend", BACKEND, "backend 10.12.192.44"),
    ]
}

fn settings() -> Value {
    json!({"uplinks": ["eth0", "eth1"]})
}

fn field_report(kube_proxy: Flavour, source_check: bool) {
    let today = layout(kube_proxy, source_check);
    assert_only_these_fail(&flows(&today.pod), &["pod to load balancer address"]);
    if source_check {
        assert!(
            today.router.source_check_drops()["eth1"] > 0,
            "the source check saw nothing wrong"
        );
    } else {
        assert!(today.node.rp_filter_drops() > 0, "strict rp_filter saw nothing wrong");
    }
    // Requests of the pod, also without kube-proxy, and the backend's answer to eth0's address.
    let pod = "10.12.192.44";
    let requests = [
        ("enipod", pod, LOAD_BALANCER),
        ("enipod", pod, BACKEND),
        ("eth0", "10.253.4.194", "10.12.97.49"),
    ];
    let by = match kube_proxy {
        Flavour::Nftables => "nftables",
        Flavour::Iptables => "iptables",
        Flavour::Ipvs => "ipvs",
    };
    let backend = if Backend::of_run().is_iptables() { "_steering_off" } else { "" };
    let name = format!("report_001_{by}{backend}");
    today.node.assert_explained(&name, &settings(), &requests);
    drop(today);

    let Layout { router, node, pod, .. } = &layout(kube_proxy, source_check);
    let proof = Proof::begin(node, router);
    node.add(&settings(), pod);
    if Backend::of_run().is_iptables() {
        assert_status_names_limit(node, pod, source_check);
    } else {
        proof.assert_flows_work(&flows(pod), &["eth0", "eth1"], 2);
    }
    node.del(&settings(), pod);
    proof.assert_as_before();
}

/// Masquerade steering needs the mark that kube-proxy sets in table nat, after the mangle table of
/// iptables. So the SYN still leaves by eth1 with eth0's address. Without a source check in the
/// network, the answer on eth0 is let in, since it is an answer. `status` names the limit; nothing else
/// gets worse.
fn assert_status_names_limit(node: &Node, pod: &Pod, source_check: bool) {
    let broken = ["pod to load balancer address"];
    assert_only_these_fail(&flows(pod), if source_check { &broken } else { &[] });
    let status = node.symroute(&["status"]).stdout;
    for word in ["masquerade", "eth1", "iptables", "nftables"] {
        assert!(status.contains(word), "status does not say {word}:\n{status}");
    }
}

#[test]
fn kube_proxy_in_iptables_with_source_check() {
    field_report(Flavour::Iptables, true);
}

#[test]
fn kube_proxy_in_iptables_without_source_check() {
    field_report(Flavour::Iptables, false);
}

#[test]
fn kube_proxy_in_nftables_with_source_check() {
    field_report(Flavour::Nftables, true);
}

#[test]
fn kube_proxy_in_nftables_without_source_check() {
    field_report(Flavour::Nftables, false);
}

/// Whether the kernel has IPVS. Otherwise the test reports that it does not run.
#[track_caller]
fn has_ipvs() -> bool {
    // Where ip_vs is a module it may not be loaded yet; where it is missing this fails, rightly.
    let _ = Command::new("modprobe").args(["-q", "ip_vs"]).status();
    let found = Path::new("/proc/net/ip_vs").exists();
    if !found {
        kernel_lacks("IPVS");
    }
    found
}

/// The report itself is about IPVS, which only some kernels have.
#[test]
fn kube_proxy_in_ipvs() {
    if has_ipvs() {
        field_report(Flavour::Ipvs, true);
        field_report(Flavour::Ipvs, false);
        println!("neighbour kube-proxy, IPVS: shown by packets");
    }
}

/// IPVS takes a request out of the input hook and routes it again. The mark, meant for `rp_filter`
/// only, has to be gone by then. Otherwise the request leaves by its arrival NIC, with the other NIC's
/// address.
#[test]
fn kube_proxy_in_ipvs_for_a_client_behind_eth1() {
    if !has_ipvs() {
        return;
    }
    let layout = || {
        let mut layout = layout(Flavour::Ipvs, false);
        layout.router.assign("eth1", "10.12.115.101");
        let client = layout.router.host("client", &["203.0.113.9"]);
        layout.router.check_sources(&["eth0", "eth1"]);
        (layout, client)
    };
    let flow =
        |client| [Flow::new("client", client, Proto::Tcp, LOAD_BALANCER, "backend 10.12.97.49")];
    let (today, client) = layout();
    assert_only_these_fail(&flow(&client), &["client"]);
    assert!(today.node.rp_filter_drops() > 0, "strict rp_filter saw nothing wrong");

    let (Layout { router, node, pod, .. }, client) = &layout();
    let proof = Proof::begin(node, router);
    node.add(&settings(), pod);
    proof.assert_flows_work(&flow(client), &["eth0", "eth1"], 2);
    node.del(&settings(), pod);
    proof.assert_as_before();
}

/// `explain` predicts the result of each flow, without the plugin and with it.
fn verdicts(kube_proxy: Flavour, name: &str) {
    let Layout { node, pod, .. } = &layout(kube_proxy, true);
    let broken = ["pod to load balancer address"];
    let what = format!("report 001, kube-proxy in {name}");
    node.assert_verdicts(&what, &settings(), &flows(pod), &broken);
    node.add(&settings(), pod);
    let broken = if Backend::of_run().is_iptables() { &broken[..] } else { &[] };
    node.assert_verdicts(&format!("{what}, with symroute"), &settings(), &flows(pod), broken);
    node.del(&settings(), pod);
}

#[test]
fn verdicts_with_kube_proxy_in_iptables() {
    verdicts(Flavour::Iptables, "iptables");
}

#[test]
fn verdicts_with_kube_proxy_in_nftables() {
    verdicts(Flavour::Nftables, "nftables");
}
