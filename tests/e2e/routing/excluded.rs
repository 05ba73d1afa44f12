//! `exclude`: destinations whose connections are asymmetric on purpose, as with direct server
//! return: the request comes by a balancer on one NIC, the reply leaves by the default route.

use serde_json::json;

use super::lan::{Lan, host};
use crate::lab::flows::{Flow, assert_all_work, assert_only_these_fail};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::snapshot::Snapshot;
use crate::lab::traffic::{Proto, Server};

#[test]
fn direct_server_return() {
    let (node, balancer, router) =
        (Node::new("node"), Netns::new("balancer"), Netns::new("router"));
    for ns in [&balancer, &router] {
        ns.sysctl("ipv4/ip_forward", "1");
        ns.sysctl("ipv4/conf/all/send_redirects", "0");
    }
    // Such nodes have to be loose.
    for scope in ["all", "default"] {
        node.ns.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "2");
    }
    let (lan0, lan1, outside) = (Lan::new("lan0"), Lan::new("lan1"), Lan::new("outside"));
    lan0.plug(&node.ns, "eth0", &["10.20.0.10/24"]);
    lan1.plug(&node.ns, "eth1", &["10.21.0.10/24"]);
    lan0.plug(&router, "r0", &["10.20.0.1/24"]);
    lan1.plug(&balancer, "b0", &["10.21.0.1/24"]);
    outside.plug(&router, "r1", &["203.0.113.1/24"]);
    outside.plug(&balancer, "b1", &["203.0.113.2/24"]);
    node.ns.ip("route add default via 10.20.0.1
         addr add 198.51.100.7/32 dev lo");
    balancer.ip("route add 198.51.100.7 via 10.21.0.10");
    // It forwards to the node alone: replies that come back are lost.
    balancer.nft(
        "table ip balancer {
          chain forward {
            type filter hook forward priority 0;
            iifname b0 counter drop
          }
        }",
    );
    let client = host(&outside, "client", "203.0.113.9/24", "203.0.113.1");
    client.ip("route add 198.51.100.7 via 203.0.113.2
         route add 10.21.0.0/24 via 203.0.113.2");
    let _server = Server::start(&node.ns, Proto::Tcp, 80, "host");
    let flows = [Flow::new("vip", &client, Proto::Tcp, "198.51.100.7:80", "host 203.0.113.9")];
    assert_all_work(&flows);
    let before = Snapshot::take(&node);
    let mut settings = json!({
        "uplinks": ["eth0", "eth1"], "gateways": {"eth1": ["10.21.0.1"]}
    });
    node.up(&settings);
    // Here the reply must not leave by the request's NIC.
    assert_only_these_fail(&flows, &["vip"]);
    node.ns.exec(&["conntrack", "-F"], "");
    settings["exclude"] = json!(["198.51.100.0/24", "2001:db8:51::/48"]);
    node.up(&settings);
    assert_all_work(&flows);
    settings["exclude"] = json!(["192.0.2.0/24"]);
    node.up(&settings);
    node.ns.exec(&["conntrack", "-F"], "");
    assert_only_these_fail(&flows, &["vip"]);
    node.down();
    before.assert_unchanged(&Snapshot::take(&node));
}
