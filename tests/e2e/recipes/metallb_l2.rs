//! MetalLB in L2 mode: the virtual address is on no NIC. The leader's speaker answers ARP for it on
//! eth1, and kube-proxy's rules send it to a pod.
//!
//! MetalLB itself does not run here. [`Speaker`] puts the same packets on the wire, from a packet
//! socket too: an answer to each ARP request for the address, and a gratuitous one when it begins.

use serde_json::json;

use crate::lab::arp::Speaker;
use crate::lab::backend::Backend;
use crate::lab::capture::{Capture, assert_replies_symmetric};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::kubeproxy::{self, Flavour, Policy};
use crate::lab::traffic::Proto;

use super::site::{NICS, OneSubnet, Site, VIP, Watch, service, settings};

/// Both nodes have the rules of kube-proxy. Port 80: a pod on node a, or on node b for node b itself,
/// with `externalTrafficPolicy: Local`. Port 81: the pod on node b with `Cluster`. Port 82: a pod of
/// node b with `hostNetwork`, at its address on eth1.
fn site(kube_proxy: Flavour) -> Site {
    let site = Site::new();
    for (node, own) in site.nodes.iter().zip(super::site::PODS) {
        let own = format!("{own}:8080");
        let services = [
            service(VIP, 80, Proto::Tcp, &own, Policy::Local),
            service(VIP, 80, Proto::Udp, &own, Policy::Local),
            service(VIP, 81, Proto::Tcp, "10.244.2.5:8080", Policy::Cluster),
            service(VIP, 82, Proto::Tcp, "10.11.0.20:6443", Policy::Cluster),
        ];
        kubeproxy::install(&node.ns, kube_proxy, &services);
    }
    site
}

fn flows(site: &Site) -> Vec<Flow<'_>> {
    let flow = |name, proto, port, answer| site.flow(name, proto, &format!("{VIP}:{port}"), answer);
    vec![
        flow("Local", Proto::Tcp, 80, "pod-a 203.0.113.9"),
        flow("Local over UDP", Proto::Udp, 80, "pod-a 203.0.113.9"),
        flow("Cluster, backend on node b", Proto::Tcp, 81, "pod-b 10.10.0.10"),
    ]
}

fn recipe(kube_proxy: Flavour) {
    let today = site(kube_proxy);
    let speaker = Speaker::start(&today.nodes[0].ns, "eth1", VIP);
    today.assert_strict_rp_filter_drops(&flows(&today));
    let tcp = [flows(&today).remove(0)];
    today.assert_replies_leave_by_eth0(&tcp, VIP);
    drop(speaker);

    let site = site(kube_proxy);
    let _speaker = Speaker::start(&site.nodes[0].ns, "eth1", VIP);
    let watch = Watch::begin(&site);
    site.up();
    // The flow with the remote backend crosses node a's NICs twice.
    watch.assert_flows_work(&flows(&site), 4);
    watch.assert_down_leaves_nothing();
}

#[test]
fn kube_proxy_in_iptables() {
    recipe(Flavour::Iptables);
}

#[test]
fn kube_proxy_in_nftables() {
    recipe(Flavour::Nftables);
}

/// A flow whose backend is behind the NIC that the request came in by. iptables marks before DNAT, so
/// it can't serve that flow over IPv4.
#[test]
fn a_backend_behind_the_same_nic() {
    let site = site(Flavour::Iptables);
    let _speaker = Speaker::start(&site.nodes[0].ns, "eth1", VIP);
    let to = format!("{VIP}:82");
    let flows = || [site.flow("backend behind eth1", Proto::Tcp, &to, "node-b 10.11.0.10")];
    site.assert_strict_rp_filter_drops(&flows());
    let watch = Watch::begin(&site);
    site.up();
    if Backend::of_run().is_iptables() {
        let before = site.nodes[0].rp_filter_drops();
        assert_only_these_fail(&flows(), &["backend behind eth1"]);
        assert!(site.nodes[0].rp_filter_drops() > before, "dropped by strict rp_filter");
    } else {
        watch.assert_flows_work(&flows(), 2);
    }
}

/// The leader fails. The speaker of node b announces the address, and its own pod answers. Node b has
/// had the plugin from the start, and no agent runs.
#[test]
fn another_node_takes_over() {
    let site = site(Flavour::Iptables);
    let speaker = Speaker::start(&site.nodes[0].ns, "eth1", VIP);
    site.up();
    let to = format!("{VIP}:80");
    let open = site.connection(&to);
    drop(speaker);
    let _speaker = Speaker::start(&site.nodes[1].ns, "eth1", VIP);
    site.assert_moved_to("pod-b", &to, open);
}

/// Without the key `gateways` symroute can't know the router of eth1, and says so.
#[test]
fn a_nic_whose_router_is_unknown() {
    let site = site(Flavour::Iptables);
    let _speaker = Speaker::start(&site.nodes[0].ns, "eth1", VIP);
    site.nodes[0].up(&json!({"uplinks": NICS}));
    assert_only_these_fail(&flows(&site)[..1], &["Local"]);
    let status = site.nodes[0].symroute(&["status"]);
    assert!(status.stdout.contains("eth1 has no IPv4 gateway"), "{}", status.stdout);
    site.nodes[0].ns.exec(&["conntrack", "-F"], "");
    site.nodes[0].up(&settings());
    assert_all_work(&flows(&site));
}

/// eth1 has no address at all. The speaker answers ARP, and symroute needs the router's address only.
/// But the node's own ARP request for the router carries the address of eth0: the router has to answer
/// it.
#[test]
fn a_nic_without_an_address() {
    let layout = || {
        let site = site(Flavour::Iptables);
        site.nodes[0].ns.ip("addr flush dev eth1");
        site
    };
    let today = layout();
    let _speaker = Speaker::start(&today.nodes[0].ns, "eth1", VIP);
    today.assert_strict_rp_filter_drops(&flows(&today));

    let site = layout();
    let _speaker = Speaker::start(&site.nodes[0].ns, "eth1", VIP);
    let watch = Watch::begin(&site);
    site.up();
    watch.assert_flows_work(&flows(&site), 4);
    let known = site.edges[1].exec(&["ip", "neigh", "show", "dev", "in"], "");
    assert!(known.contains("10.10.0.10 "), "{known}");
    watch.assert_down_leaves_nothing();
}

/// Both NICs are in one subnet, and `interfaces` is not set, so the speaker answers by both. The
/// router may take either answer. Here it takes that of eth1 first, then that of eth0.
#[test]
fn the_speaker_answers_by_both_nics_of_one_subnet() {
    let site = OneSubnet::new();
    let node = &site.nodes[0];
    let backend = service(VIP, 80, Proto::Tcp, "10.11.0.10:6443", Policy::Local);
    kubeproxy::install(&node.ns, Flavour::Iptables, &[backend]);
    let to = format!("{VIP}:80");
    let flow = |name: &str| [Flow::new(name, &site.client, Proto::Tcp, &to, "node-a 203.0.113.9")];
    let answer_by = |nic: &str| Speaker::start(&node.ns, nic, VIP);
    let by_eth1 = answer_by("eth1");
    assert_only_these_fail(&flow("by eth1"), &["by eth1"]);
    let drops = node.rp_filter_drops();
    assert!(drops > 0, "strict rp_filter saw nothing wrong");
    node.up(&json!({"uplinks": NICS}));
    let capture = Capture::start(&node.ns);
    assert_all_work(&flow("by eth1"));
    drop(by_eth1);
    let _by_eth0 = answer_by("eth0");
    assert_all_work(&flow("by eth0"));
    assert_eq!(assert_replies_symmetric(&capture.stop(), &NICS, false), 2, "both flows");
    assert_eq!(node.rp_filter_drops(), drops, "drops of strict rp_filter");
}
