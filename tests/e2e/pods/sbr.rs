//! Compares symroute with the reference plugin `sbr`, which adds rules and tables by source
//! address. The same flows run in the same layout without both, with `sbr` on the interfaces that
//! Multus adds, with `sbr` on all, and with symroute. The test reads the table in docs/pods.md.
//!
//! Each row covers TCP and UDP, and both families except for containers and for eth0's address
//! through net1. `sbr` moves the routes of its interface out of main. Unbound sockets look only
//! there. `sbr` has no rule for other addresses, and none that knows connections. Its rules send
//! the pod's answers to its own containers outside, and strict `rp_filter` drops the question.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::flows::{BASELINE, PATIENT};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::plugin::Call;
use crate::lab::traffic::{Answer, Proto, Server, ask, ask_from};

use super::lyft::{Default, Kind, Lyft};
use super::nested::{CONTAINER, Nested, PUBLISHED};
use super::site::{CLIENT, CLIENT6, Site, address, address6, name, router, router6, settings};

const PAGE: &str = include_str!("../../../docs/pods.md");
const PORT: u16 = 8080;
/// An address on `lo` that the pod announces through net1.
const VIP: [&str; 2] = ["10.99.0.1", "2001:db8:99::1"];
/// Addresses that net1 gets after the calls of the plugins.
const LATER: [&str; 2] = ["10.100.1.11", "2001:db8:100:1::11"];
/// A client whose requests to eth0's address arrive on net1.
const SIDE: &str = "198.51.100.9";

/// The layout with all hosts of the flows.
struct Yard {
    site: Site,
    nested: Nested,
    aside: Netns,
    servers: Vec<Server>,
}

/// One question of a row of the table.
struct Probe<'a> {
    row: &'static str,
    from: &'a Netns,
    bound: Option<IpAddr>,
    proto: Proto,
    to: SocketAddr,
    who: String,
    seen_as: IpAddr,
}

impl Yard {
    fn new() -> Self {
        let site = Site::new(3);
        let aside = Netns::new("side");
        site.fabric.ip(&format!(
            "link add side type veth peer name eth0 netns {}
             link set side up
             addr add 198.51.100.1/24 dev side
             rule add iif side lookup 7
             route add {} via {} dev net1 table 7
             route add {} via {2} dev net1
             route add {} via {} dev net1",
            aside.name(),
            address(0),
            address(1),
            VIP[0],
            VIP[1],
            address6(1)
        ));
        aside.ip("link set eth0 up
             addr add 198.51.100.9/24 dev eth0
             route add default via 198.51.100.1");
        // The source check lets the pod send with these addresses through net1.
        for source in
            [format!("ip saddr {{ {}, {} }}", VIP[0], address(0)), format!("ip6 saddr {}", VIP[1])]
        {
            site.fabric
                .nft(&format!("insert rule inet fabric source_check iifname net1 {source} accept"));
        }
        site.pod.ip(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo", VIP[0], VIP[1]));
        let nested = Nested::new(&site.pod);
        let mut servers = Vec::new();
        for proto in [Proto::Tcp, Proto::Udp] {
            for ip in VIP {
                let at = SocketAddr::new(ip.parse().expect("an address"), PORT);
                servers.push(Server::at(&site.pod, proto, at, "vip"));
            }
            servers.push(Server::start(&site.client, proto, PORT, "client"));
            for ip in [router(2), router6(2)] {
                let at = SocketAddr::new(ip.parse().expect("an address"), PORT);
                servers.push(Server::at(&site.fabric, proto, at, "fabric"));
            }
        }
        Self { site, nested, aside, servers }
    }

    /// Adds an address to net1, after the calls of the plugins.
    fn add_later_addresses(&mut self) {
        self.site.pod.ip(&format!(
            "addr add {}/24 dev net1\naddr add {}/64 dev net1 nodad",
            LATER[0], LATER[1]
        ));
        for proto in [Proto::Tcp, Proto::Udp] {
            for ip in LATER {
                let at = SocketAddr::new(ip.parse().expect("an address"), PORT);
                self.servers.push(Server::at(&self.site.pod, proto, at, "later"));
            }
        }
    }

    fn sbr(&self, number: usize) {
        let site = &self.site;
        let result = site.result(number);
        call_sbr(&site.node, &result, &site.id, &site.pod.path(), &name(number));
    }

    fn probes(&self) -> Vec<Probe<'_>> {
        let Self { site, nested, aside, .. } = self;
        let (client, pod) = (&site.client, &site.pod);
        let clients = [CLIENT, CLIENT6].map(str::to_owned);
        let both = |number| [address(number), address6(number)];
        let vip = VIP.map(str::to_owned);
        let later = LATER.map(str::to_owned);
        let four = |ip: &str| [ip.to_owned()];
        let mut probes = Vec::new();
        let mut row = |row, from, to: &[String], port, who: &str, seen_as: &[String]| {
            probes.extend(questions(row, from, None, to, port, who, seen_as));
        };
        row("the client asks eth0", client, &both(0), PORT, "eth0", &clients);
        row("the client asks net1", client, &both(1), PORT, "net1", &clients);
        row("the client asks net2", client, &both(2), PORT, "net2", &clients);
        row("an address of no interface, by net1", client, &vip, PORT, "vip", &clients);
        row("eth0's address, by net1", aside, &four(&address(0)), PORT, "eth0", &four(SIDE));
        row("an address that net1 got later", client, &later, PORT, "later", &clients);
        for (text, number) in [
            ("a port that a container publishes, by eth0", 0),
            ("a port that a container publishes, by net1", 1),
        ] {
            let to = four(&address(number));
            row(text, client, &to, PUBLISHED, "nested", &four(CLIENT));
        }
        row("the pod asks the client", pod, &clients, PORT, "client", &both(0));
        let in_net2 = [router(2), router6(2)];
        row("the pod asks in net2's network", pod, &in_net2, PORT, "fabric", &both(2));
        let inside = &nested.ns;
        for (text, number) in [
            ("a container in the pod asks eth0's address", 0),
            ("a container in the pod asks net1's address", 1),
        ] {
            row(text, inside, &four(&address(number)), PORT, &name(number), &four(CONTAINER));
        }
        let text = "a container in the pod asks the client";
        row(text, inside, &four(CLIENT), PORT, "client", &four(&address(0)));
        let text = "the pod asks the client from net1's address";
        for (to, own) in clients.iter().zip(both(1)) {
            let bound = Some(own.parse().expect("an address"));
            let own = [own];
            probes.extend(questions(
                text,
                pod,
                bound,
                std::slice::from_ref(to),
                PORT,
                "client",
                &own,
            ));
        }
        probes
    }
}

/// A question over each protocol to each address.
fn questions<'a>(
    row: &'static str,
    from: &'a Netns,
    bound: Option<IpAddr>,
    to: &[String],
    port: u16,
    who: &str,
    seen_as: &[String],
) -> Vec<Probe<'a>> {
    let parse = |text: &String| text.parse::<IpAddr>().expect("an address");
    let pairs = to.iter().map(parse).zip(seen_as.iter().map(parse));
    let each = pairs.flat_map(|pair| [Proto::Tcp, Proto::Udp].map(|proto| (pair, proto)));
    let probe = |((to, seen_as), proto)| Probe {
        row,
        from,
        bound,
        proto,
        to: (to, port).into(),
        who: who.to_owned(),
        seen_as,
    };
    each.map(probe).collect()
}

impl Probe<'_> {
    fn ask(&self, deadline: Duration) -> io::Result<Answer> {
        match self.bound {
            Some(own) => ask_from(self.from, own, self.proto, self.to, deadline),
            None => ask(self.from, self.proto, self.to, deadline),
        }
    }

    /// How the answer differs from the table; `None` if it does not.
    fn surprise(&self, works: bool) -> Option<String> {
        let wanted = Answer { who: self.who.clone(), seen_as: self.seen_as };
        let answer = self.ask(if works { PATIENT } else { BASELINE });
        let is_right = answer.as_ref().is_ok_and(|answer| *answer == wanted);
        let Self { row, proto, to, .. } = self;
        (is_right != works).then(|| format!("{row}: {proto:?} {to}: {answer:?}"))
    }
}

/// Calls the real `sbr`.
fn call_sbr(node: &Node, result: &str, id: &str, netns: &str, ifname: &str) {
    let prev: Value = serde_json::from_str(result).expect("a result");
    let network = json!({"cniVersion": "1.0.0", "name": "lab", "type": "sbr", "prevResult": prev});
    let call = Call::cni("ADD", &network.to_string(), id, netns, ifname);
    node.call_program(&["/usr/lib/cni/sbr"], &call).assert_success("ADD of sbr");
}

/// The rows of the table: the flow, and the cells of its columns.
fn table() -> BTreeMap<&'static str, Vec<&'static str>> {
    let table = PAGE.split("\n## Beside sbr\n").nth(1).expect("the section of the page");
    let rows = table.lines().take_while(|line| !line.starts_with("## "));
    let rows = rows.filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let mut rows = rows.map(|line| line.split(" | "));
    rows.next().expect("a heading");
    rows.map(|mut cells| (cells.next().expect("a flow"), cells.collect())).collect()
}

/// Whether a flow works according to a cell of the table.
fn works(cell: &str, probe: &Probe<'_>) -> bool {
    match cell {
        "works" => true,
        "fails" => false,
        "IPv4 fails" => probe.to.is_ipv6(),
        other => panic!("{other:?} in the table"),
    }
}

/// Asserts that a column of the table is true. `prepare` makes the calls of the plugins.
fn assert_column(column: usize, prepare: impl Fn(&Yard)) {
    let mut yard = Yard::new();
    prepare(&yard);
    yard.add_later_addresses();
    let table = table();
    let probes = yard.probes();
    for row in table.keys() {
        assert!(probes.iter().any(|probe| probe.row == *row), "no flow for {row}");
    }
    let surprises: Vec<String> = thread::scope(|scope| {
        let mut running = Vec::new();
        for probe in &probes {
            let works = works(table[probe.row][column], probe);
            running.push(scope.spawn(move || probe.surprise(works)));
        }
        running.into_iter().filter_map(|probe| probe.join().expect("no panic")).collect()
    });
    assert!(surprises.is_empty(), "not as the table has it:\n{}", surprises.join("\n"));
}

#[test]
fn with_neither() {
    assert_column(0, |_| {});
}

#[test]
fn with_sbr_on_the_interfaces_that_multus_adds() {
    assert_column(1, |yard| [1, 2].into_iter().for_each(|number| yard.sbr(number)));
}

#[test]
fn with_sbr_on_all() {
    assert_column(2, |yard| (0..3).for_each(|number| yard.sbr(number)));
}

#[test]
fn with_symroute() {
    assert_column(3, |yard| (0..3).for_each(|number| yard.site.add(&settings(), number)));
}

/// Asserts that these flows fail with `sbr` in lyft's layout. lyft's veth has no address for a rule
/// of `sbr`. The pod's address belongs to eth0, so `sbr` also diverts packets that should leave
/// through the veth. "pod" in a name is the pod's own address on eth0. The servers use the wildcard
/// address.
fn assert_sbr_does_not_help(default: Default, broken: &[&str]) {
    let Some(lyft) = Lyft::new(Kind::Macvlan, default) else { return };
    call_sbr(&lyft.node, &lyft.result(), &lyft.id, &lyft.pod.path(), "eth0");
    lyft.assert_only_these_fail(lyft.client_flows(), broken);
}

#[test]
fn with_sbr_in_lyfts_layout() {
    let asked = ["far NodePort", "near NodePort", "far pod Udp IPv4", "near pod Udp IPv4"];
    let own = ["node to pod*IPv4", "pod to node*IPv4", "pod to far*IPv4", "pod to near*IPv4"];
    assert_sbr_does_not_help(Default::Vpc, &[asked, own].concat());
}

#[test]
fn with_sbr_in_lyfts_layout_beside_the_default_route() {
    let tcp = ["far NodePort Tcp", "near NodePort Tcp"];
    let udp = ["far NodePort Udp IPv4", "near NodePort Udp IPv4", "far pod Udp", "near pod Udp"];
    // The node no longer masquerades packets to far, and it does masquerade those to near.
    let own = ["node to pod*IPv4", "pod to node*IPv4", "pod to far*IPv4", "pod to near*IPv6"];
    assert_sbr_does_not_help(Default::Node, &[&tcp[..], &udp, &own].concat());
}
