//! Established connections survive whatever happens to the node state.

use std::time::Duration;

use serde_json::json;

use crate::lab::backend::Backend;
use crate::lab::load::Load;
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::proof::Proof;
use crate::lab::traffic::Connection;
use crate::lab::two_nics::{NICS, NODE, NODE6, POD, POD6, TwoNics, two_nics};

const PATIENT: Duration = Duration::from_secs(8);

fn open(client: &Netns, address: &str, port: u16) -> Connection {
    let ip = address.parse().expect("an address");
    Connection::open(client, std::net::SocketAddr::new(ip, port), PATIENT)
        .unwrap_or_else(|error| panic!("{address}: {error}"))
}

#[test]
fn connections_survive_everything_that_happens_to_the_node() {
    let layout = two_nics();
    let start = |address: &str, port| Load::kept(&layout.client, address, port);
    // These connections work without symroute. It binds them too, and does not just leave them alone.
    let mut transfers: Vec<_> =
        [POD[0], POD6[0], POD[1], POD6[1]].map(|address| start(address, 8080)).into();
    let goes_on = |transfers: &[Load], after: &str| {
        for transfer in transfers {
            transfer.assert_goes_on(after);
        }
    };
    goes_on(&transfers, "nothing");
    let proof = Proof::begin(&layout.node, &layout.router);
    let node = &layout.node;
    node.up(&json!({"uplinks": NICS}));
    goes_on(&transfers, "up");
    // These connections need symroute.
    transfers.extend([NODE[1], NODE6[1]].map(|address| start(address, 10250)));
    node.up(&json!({"uplinks": NICS}));
    goes_on(&transfers, "up again");
    for pod in &layout.pods {
        node.add(&json!({"uplinks": NICS}), pod);
    }
    goes_on(&transfers, "ADD");
    node.up(&json!({"uplinks": NICS, "hairpin": true}));
    goes_on(&transfers, "new settings");
    node.up(&json!({"uplinks": NICS, "hairpin": true, "rulePriority": 300, "tableBase": 9000}));
    goes_on(&transfers, "other priorities and tables");
    older_ruleset(node);
    node.up(&json!({"uplinks": NICS}));
    goes_on(&transfers, "an upgrade of the ruleset");
    node.ns.ip("link add eth2 type veth peer name peer2
         addr add 10.22.0.10/24 dev eth2
         link set eth2 up
         link set peer2 up");
    node.up(&json!({"uplinks": ["eth*"]}));
    goes_on(&transfers, "a third uplink");
    let table = node.ns.exec(&["ip", "route", "show", "table", "47003"], "");
    assert!(table.contains("10.22.0.0/24 dev eth2"), "{table}");
    node.ns.ip("link del eth2");
    node.up(&json!({"uplinks": NICS}));
    goes_on(&transfers, "its removal");
    // Without symroute, the host's replies by eth1 leave by eth0: only the pods' connections go on.
    transfers.truncate(4);
    proof.assert_nothing_dropped();
    for pod in &layout.pods {
        node.del(&json!({"uplinks": NICS}), pod);
    }
    node.down();
    goes_on(&transfers, "down");
    proof.assert_as_before();
}

/// Makes the rules look like those of another release: without this release's fingerprint, and with a
/// chain and a set that it does not have.
fn older_ruleset(node: &Node) {
    let backend = Backend::of_run();
    if backend.is_iptables() {
        for rule in [
            "-N symroute-old",
            "-A symroute-old -m mark --mark 7 -j ACCEPT",
            "-I symroute-prerouting -m mark --mark 7 -j symroute-old",
            "-A symroute-via-1 -m mark --mark 7 -j RETURN",
        ] {
            node.ns.iptables(backend, &format!("-t mangle {rule}"));
        }
        node.ns.exec(&["ipset", "create", "symroute-old", "hash:ip"], "");
        return;
    }
    let text = node.ns.exec(&["nft", "list", "table", "inet", "symroute"], "");
    node.ns.nft(&format!("delete table inet symroute\n{text}"));
    node.ns.nft(
        "table inet symroute {
            set legacy { type mark; elements = { 7 } }
            map older { type mark : verdict; elements = { 7 : goto old } }
            chain old {
                counter
            }
            chain via_1 {
                meta mark 7 counter
            }
        }",
    );
    let rules = node.ns.exec(&["nft", "list", "chain", "inet", "symroute", "via_1"], "");
    assert!(rules.contains("counter packets"), "a changed chain: {rules}");
}

/// After a downgrade: the program replaces a table with an unknown layout.
#[test]
fn a_table_of_another_layout_is_replaced() {
    let layout = two_nics();
    let backend = Backend::of_run();
    if backend.is_iptables() {
        chains_of_another_layout_are_replaced(&layout, backend);
        return;
    }
    layout.node.ns.nft(
        "table inet symroute {
            set leftout4 { type ipv6_addr; }
            chain prerouting { type filter hook prerouting priority 17; policy accept; }
        }",
    );
    let mut connection = open(&layout.client, POD[1], 8080);
    layout.node.up(&json!({"uplinks": NICS}));
    connection.ask().expect("the connection goes on");
    let text = layout.node.ns.exec(&["nft", "list", "table", "inet", "symroute"], "");
    assert!(text.contains("priority -80") && !text.contains("priority 17"), "{text}");
    layout.node.down();
    assert_eq!(layout.node.ns.backends(), []);
}

fn chains_of_another_layout_are_replaced(layout: &TwoNics, backend: Backend) {
    let node = &layout.node;
    node.ns.exec(&["ipset", "create", "symroute-inside4", "hash:ip", "family", "inet"], "");
    for rule in [
        "-N symroute-prerouting",
        "-N symroute-old",
        "-A symroute-prerouting -m mark --mark 7 -j symroute-old",
        "-A PREROUTING -j symroute-prerouting",
    ] {
        node.ns.iptables(backend, &format!("-t mangle {rule}"));
    }
    let mut connection = open(&layout.client, POD[1], 8080);
    node.up(&json!({"uplinks": NICS}));
    connection.ask().expect("the connection goes on");
    let (rules, sets) = (node.ns.mangle(backend), node.ns.exec(&["ipset", "save"], ""));
    assert!(!rules.contains("symroute-old") && !rules.contains("--mark 0x7 "), "{rules}");
    assert!(sets.contains("create symroute-inside4 hash:net "), "{sets}");
    node.down();
    assert_eq!(node.ns.backends(), []);
}
