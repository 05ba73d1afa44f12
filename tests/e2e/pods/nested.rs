//! Containers behind a bridge in the pod, as docker and podman make them. All that works without
//! the plugin works with it, and a published port answers on each interface.

use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::flows::{
    Flow, assert_all_work, assert_only_these_fail, assert_only_these_fail_in_pods,
};
use crate::lab::netns::Netns;
use crate::lab::traffic::{Proto, Server};

use super::site::{CLIENT, Site, address, address6, name, router, settings};

/// The port that the pod publishes. It leads to `PORT` of the container.
pub(super) const PUBLISHED: u16 = 8081;
const PORT: u16 = 8080;
pub(super) const CONTAINER: &str = "172.17.0.2";

/// A container with a server at the pod's bridge docker0.
pub(super) struct Nested {
    pub(super) ns: Netns,
    _servers: [Server; 2],
}

impl Nested {
    pub(super) fn new(pod: &Netns) -> Self {
        let ns = Netns::new("nested");
        pod.sysctl("ipv4/ip_forward", "1");
        pod.ip(&format!(
            "link add docker0 type bridge
             link set docker0 up
             addr add 172.17.0.1/24 dev docker0
             link add nested type veth peer name eth0 netns {}
             link set nested up master docker0",
            ns.name()
        ));
        ns.ip("link set eth0 up
             addr add 172.17.0.2/24 dev eth0
             route add default via 172.17.0.1");
        let rules = [Proto::Tcp, Proto::Udp].map(|proto| {
            let proto = format!("{proto:?}").to_lowercase();
            format!("fib daddr type local {proto} dport {PUBLISHED} dnat to {CONTAINER}:{PORT}\n")
        });
        pod.nft(&format!(
            "table ip docker {{
             chain in {{ type nat hook prerouting priority dstnat;
               {}
             }}
             chain out {{ type nat hook postrouting priority srcnat;
               ip saddr 172.17.0.0/24 oifname != docker0 masquerade
             }}
             }}",
            rules.concat()
        ));
        let servers = [Proto::Tcp, Proto::Udp];
        let servers = servers.map(|proto| Server::start(&ns, proto, PORT, "nested"));
        Self { ns, _servers: servers }
    }
}

/// The container asks the pod at each of its addresses, and the client outside. The client asks the
/// published port.
fn flows<'a>(site: &'a Site, nested: &'a Nested) -> Vec<Flow<'a>> {
    let mut flows = Vec::new();
    let mut ask = |name: &str, from, proto, to: &str, answer| {
        flows.push(Flow::new(&format!("{name} {proto:?}"), from, proto, to, answer));
    };
    for proto in [Proto::Tcp, Proto::Udp] {
        for number in 0..3 {
            let (leg, ip) = (name(number), address(number));
            let answer: &'static str = format!("{leg} {CONTAINER}").leak();
            ask(&format!("container to {leg}"), &nested.ns, proto, &format!("{ip}:{PORT}"), answer);
            let to = format!("{ip}:{PUBLISHED}");
            let answer = "nested 203.0.113.9";
            ask(&format!("published by {leg}"), &site.client, proto, &to, answer);
        }
        let to = format!("{CLIENT}:{PORT}");
        ask("container to client", &nested.ns, proto, &to, "client 10.100.0.10");
    }
    flows
}

/// Asserts that flows of a container work with the plugin. `prepare` adds something to the pod
/// first.
fn assert_container_is_served(prepare: impl Fn(&Site)) {
    let layout = || {
        let site = Site::new(3);
        prepare(&site);
        let nested = Nested::new(&site.pod);
        let outside = [Proto::Tcp, Proto::Udp];
        let outside = outside.map(|proto| Server::start(&site.client, proto, PORT, "client"));
        (site, nested, outside)
    };
    let (site, nested, _outside) = layout();
    let without = flows(&site, &nested);
    let names = without.iter().map(|flow| &*flow.name);
    let broken: Vec<_> = names.filter(|name| name.starts_with("published by net")).collect();
    assert_only_these_fail(&without, &broken);

    let (site, nested, _outside) = layout();
    let before = site.snapshot();
    for number in 0..3 {
        site.add(&settings(), number);
    }
    let drops = (site.rp_filter_drops(), site.source_check_drops());
    assert_all_work(&flows(&site, &nested));
    assert_eq!(
        (site.rp_filter_drops(), site.source_check_drops()),
        drops,
        "drops in the pod and of the source check"
    );
    site.assert_answers();
    for number in 0..3 {
        site.del(&settings(), number);
    }
    before.assert_unchanged(&site.snapshot());
}

#[test]
fn containers_of_the_pod() {
    assert_container_is_served(|_| {});
}

/// Main has a route through net1 to a wider network, which contains that of the bridge.
#[test]
fn containers_within_a_network_behind_an_interface() {
    assert_container_is_served(|site| {
        site.pod.ip(&format!("route add 172.16.0.0/12 via {} dev net1", router(1)));
    });
}

/// A program in the pod marks its packets with bits that symroute uses, too. Only a rule for that
/// mark leads them to the containers. symroute keeps the mark on replies of connections that it did
/// not bind.
#[test]
fn marks_of_the_pods_own_on_replies_to_containers() {
    let site = Site::new(2);
    let container = Netns::new("container");
    site.pod.ip(&format!(
        "link add docker0 type bridge
         link set docker0 up
         addr add fd17::1/64 dev docker0 nodad
         link add c0 type veth peer name eth0 netns {}
         link set c0 up master docker0
         route del fd17::/64 dev docker0
         route add fd17::/64 dev docker0 table 900",
        container.name()
    ));
    site.pod.ip6("rule add pref 200 fwmark 0x539 lookup 900");
    container.ip("link set eth0 up
         addr add fd17::5/64 dev eth0 nodad
         route add default via fd17::1");
    let to = format!("[{}]:9999", address6(0));
    let server = Server::at(&site.pod, Proto::Tcp, to.parse().expect("an address"), "pod");
    if let Server::Tcp(listener) = &server {
        setsockopt(listener, sockopt::Mark, &0x539).expect("mark what the server sends");
    }
    let flow = || [Flow::new("container", &container, Proto::Tcp, &to, "pod fd17::5")];
    assert_all_work(&flow());
    for number in 0..2 {
        site.add(&settings(), number);
    }
    assert_all_work(&flow());
    site.assert_answers();
    // Without that rule the replies do not arrive.
    site.pod.ip6("rule del pref 200");
    assert_only_these_fail_in_pods(&flow(), &["container"]);
}
