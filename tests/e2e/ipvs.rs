//! IPVS routes forwarded packets again by their mark, so symroute has to clear evidence before. Only
//! where the kernel has IPVS: the chain costs every packet. `report_001` has tests with IPVS itself.

use serde_json::{Value, json};

use crate::lab::flows::assert_all_work;
use crate::lab::node::{Node, Pod};
use crate::lab::not_run::only_nftables;
use crate::lab::proof::Proof;
use crate::lab::two_nics::{NICS, two_nics};

/// Shell scripts that run their arguments with a /sys that claims IPVS or none, whatever the kernel has.
const WITH_IPVS: &str = "mount -t tmpfs none /sys && mkdir -p /sys/module/ip_vs && exec \"$@\"";
const WITHOUT_IPVS: &str = "mount -t tmpfs none /sys && exec \"$@\"";

fn call(sys: &str, node: &Node, verb: &str, settings: &Value, pod: &Pod) {
    let prefix = ["unshare", "--mount", "sh", "-c", sys, "sh"];
    node.call_under(&prefix, &node.call_of(verb, settings, pod)).assert_success(verb);
}

fn chains_in_forward(node: &Node) -> usize {
    let table = node.ns.exec(&["nft", "list", "table", "inet", "symroute"], "");
    table.matches("hook forward").count()
}

#[test]
fn it_is_noticed_when_it_comes_and_when_it_goes() {
    if !only_nftables("iptables binds in forward, so its chain is always there") {
        return;
    }
    let mut layout = two_nics();
    let (pod, another) = (layout.pod_behind_eth1(1), layout.pod_behind_eth1(2));
    let flows = [layout.flow_to_host(), layout.flow_to_pod(1, "pod101 203.0.113.9")];
    let (node, settings) = (&layout.node, json!({"uplinks": NICS}));
    let proof = Proof::begin(node, &layout.router);
    call(WITHOUT_IPVS, node, "ADD", &settings, &pod);
    assert_eq!(chains_in_forward(node), 0, "no IPVS, no chain");
    assert_all_work(&flows);
    call(WITH_IPVS, node, "CHECK", &settings, &pod);
    call(WITH_IPVS, node, "ADD", &settings, &another);
    assert_eq!(chains_in_forward(node), 1, "the first ADD with IPVS makes the chain");
    assert_all_work(&flows);
    call(WITHOUT_IPVS, node, "ADD", &settings, &another);
    assert_eq!(chains_in_forward(node), 0, "the first ADD without takes it away");
    assert_all_work(&flows);
    for pod in [&pod, &another] {
        call(WITHOUT_IPVS, node, "DEL", &settings, pod);
    }
    proof.assert_as_before();
}
