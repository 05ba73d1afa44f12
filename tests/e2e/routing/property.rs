//! Never worse than without: on random nodes, every flow that works without the plugin works with
//! it, by real packets. A run is the same each time; `SYMROUTE_SEED` gives it other layouts, and
//! `SYMROUTE_LAYOUTS` more of them.

use std::fmt::Write as _;
use std::time::Duration;
use std::{env, thread};

use serde_json::json;

use super::lan::{Lan, firewall, host, node_port};
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::traffic::{Proto, Server, ask};

/// What the layouts are made of, unless the environment says otherwise.
const SEED: u64 = 5000;
/// How many layouts a run tries.
const LAYOUTS: u64 = 80;
/// How long a flow may take that may fail.
const BASELINE: Duration = Duration::from_millis(400);
/// How long a flow may take that has to work: two retransmissions of a SYN.
const PATIENT: Duration = Duration::from_secs(4);

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn coin(&mut self) -> bool {
        self.roll(2) == 0
    }
}

/// What stays while nodes change: two networks, the second with two NICs of the node; a router
/// that forgets and one that remembers connections, each on both networks; neighbours, and a branch
/// network behind one of them; a client that reaches each address by the one or the other router.
struct World {
    node: Node,
    others: Vec<Netns>,
    client: Netns,
    senders: Vec<(&'static str, Netns)>,
    _lans: Vec<Lan>,
    _servers: Vec<Server>,
}

const NICS: [&str; 3] = ["eth0", "eth1", "eth2"];
const ADDRESSES: [&str; 5] =
    ["10.10.0.10", "10.11.0.10", "10.11.0.20", "198.51.100.1", "198.51.100.2"];

impl World {
    fn new() -> Self {
        let node = Node::new("node");
        let lans: Vec<Lan> = ["lan0", "lan1", "outside", "inner"].map(Lan::new).into();
        for (nic, lan) in NICS.iter().zip([0, 1, 1]) {
            lans[lan].plug(&node.ns, nic, &[]);
        }
        let plain = Netns::new("router1");
        plain.sysctl("ipv4/ip_forward", "1");
        plain.sysctl("ipv4/conf/all/send_redirects", "0");
        plain.sysctl("ipv4/conf/default/send_redirects", "0");
        let routers = [plain, firewall("router2")];
        for (router, n) in routers.iter().zip(1..) {
            lans[0].plug(router, "r0", &[&format!("10.10.0.{n}/24")]);
            lans[1].plug(router, "r1", &[&format!("10.11.0.{n}/24")]);
            lans[2].plug(router, "r2", &[&format!("203.0.113.{n}/24")]);
        }
        let client = Netns::new("client");
        lans[2].plug(&client, "eth0", &["203.0.113.9/24"]);
        let near0 = host(&lans[0], "near0", "10.10.0.50/24", "10.10.0.1");
        let near1 = host(&lans[1], "near1", "10.11.0.50/24", "10.11.0.1");
        let branch = Netns::new("branch");
        branch.sysctl("ipv4/ip_forward", "1");
        branch.sysctl("ipv4/conf/all/send_redirects", "0");
        lans[1].plug(&branch, "b0", &["10.11.0.254/24"]);
        lans[3].plug(&branch, "b1", &["10.60.0.1/24"]);
        branch.ip("route add default via 10.11.0.1");
        let far = host(&lans[3], "far", "10.60.0.9/24", "10.60.0.1");
        let pod = node.pod("pod", &["10.244.0.5"]);
        node_port(&node.ns, "10.244.0.5");
        let servers = vec![
            Server::start(&node.ns, Proto::Tcp, 10250, "host"),
            Server::start(&pod.ns, Proto::Tcp, 8080, "pod"),
        ];
        let mut others = Vec::from(routers);
        others.extend([branch, pod.ns]);
        let senders = vec![("near0", near0), ("near1", near1), ("far", far)];
        Self { node, others, client, senders, _lans: lans, _servers: servers }
    }

    /// Sets up a random node and the ways to it; what it is, in the words of `ip`.
    fn shuffle(&self, dice: &mut Dice) -> String {
        let mut node = String::new();
        let mut add = |line: &str| {
            let _ = writeln!(node, "{line}");
        };
        let second = dice.coin();
        let addressed = [true, true, second];
        let nets = ["10.10.0.0/24", "10.11.0.0/24", "10.11.0.0/24"];
        for at in (0..3).filter(|&at| addressed[at]) {
            let (nic, address) = (NICS[at], ADDRESSES[at]);
            let own_table = dice.coin();
            let alone = own_table && dice.coin();
            let noprefix = if alone { "noprefixroute" } else { "" };
            add(&format!("addr add {address}/24 dev {nic} {noprefix}"));
            let subnet = ["10.10.0", "10.11.0", "10.11.0"][at];
            let table = 150 + at;
            let by = 1 + dice.roll(2);
            if own_table {
                let place = if dice.roll(4) == 0 { 100 } else { 32000 };
                add(&format!("rule add from {address} lookup {table} pref {place}"));
                if alone || dice.coin() {
                    add(&format!("route add {} dev {nic} src {address} table {table}", nets[at]));
                }
                if at > 0 && dice.coin() {
                    let onlink = if alone { "onlink" } else { "" };
                    add(&format!(
                        "route add 10.60.0.0/24 via 10.11.0.254 dev {nic} table {table} {onlink}"
                    ));
                }
                if dice.roll(4) > 0 {
                    add(&format!(
                        "route add default via {subnet}.{by} dev {nic} table {table} onlink"
                    ));
                }
            }
            if at == 0 || dice.coin() {
                let metric = 100 * (at + 1);
                if dice.roll(4) == 0 {
                    add(&format!(
                        "route add default metric {metric} nexthop via {subnet}.1 dev {nic} weight {} onlink \
                         nexthop via {subnet}.2 dev {nic} onlink",
                        1 + dice.roll(3)
                    ));
                } else {
                    add(&format!(
                        "route add default via {subnet}.{by} dev {nic} metric {metric} onlink"
                    ));
                    if dice.roll(3) == 0 {
                        let other = 3 - by;
                        add(&format!(
                            "route add default via {subnet}.{other} dev {nic} metric {} onlink",
                            metric + 50
                        ));
                    }
                }
            }
            if at > 0 && dice.roll(3) == 0 {
                add(&format!("route replace 10.60.0.0/24 via 10.11.0.254 dev {nic} onlink"));
            }
        }
        for vip in &ADDRESSES[3..] {
            add(&format!("addr add {vip}/32 dev lo"));
        }
        let own_arp = dice.coin();
        for nic in NICS {
            let [ignore, announce] = if own_arp { ["1", "2"] } else { ["0", "0"] };
            self.node.ns.sysctl(&format!("ipv4/conf/{nic}/arp_ignore"), ignore);
            self.node.ns.sysctl(&format!("ipv4/conf/{nic}/arp_announce"), announce);
        }
        self.node.ns.ip(&node);
        // Each of the node's addresses is reached by a router, and virtual ones by a NIC of it.
        let mut ways = String::new();
        for address in ADDRESSES {
            let _ = writeln!(ways, "route replace {address} via 203.0.113.{}", 1 + dice.roll(2));
        }
        self.client.ip(&ways);
        for vip in &ADDRESSES[3..] {
            let nic = usize::try_from(dice.roll(2)).expect("a small number");
            for other in &self.others[..2] {
                other.ip(&format!("route replace {vip} via {}", ADDRESSES[nic]));
            }
            let _ = writeln!(ways, "{vip} by {}", NICS[nic]);
        }
        format!("{node}own ARP: {own_arp}\n{ways}")
    }

    fn reset(&self) {
        self.node.ns.ip("addr flush dev eth0
             addr flush dev eth1
             addr flush dev eth2
             route flush table main proto boot
             route flush table main proto static
             route add 10.244.0.5 dev enipod scope link");
        for line in ["150", "151", "152"] {
            self.node.ns.exec(
                &["sh", "-c", &format!("ip route flush table {line} 2>/dev/null; while ip rule del lookup {line} 2>/dev/null; do :; done")],
                "",
            );
        }
        for vip in &ADDRESSES[3..] {
            self.node.ns.exec(
                &["sh", "-c", &format!("ip addr del {vip}/32 dev lo 2>/dev/null || true")],
                "",
            );
        }
    }

    /// Nothing is known of neighbours and connections.
    fn forget(&self) {
        let all = self.others.iter().chain([&self.node.ns, &self.client]);
        for ns in all.chain(self.senders.iter().map(|(_, ns)| ns)) {
            ns.exec(&["sh", "-c", "ip neigh flush all; conntrack -F 2>/dev/null || true"], "");
        }
    }

    /// All flows, in words.
    fn flows(&self) -> Vec<Probe<'_>> {
        let mut flows = Vec::new();
        let clients = std::iter::once(("client", &self.client));
        for (name, from) in clients.chain(self.senders.iter().map(|(name, ns)| (*name, ns))) {
            for to in ADDRESSES {
                if name != "client" && to.starts_with("198") {
                    continue;
                }
                flows.extend([10250, 30080].map(|port| Probe {
                    name,
                    from,
                    to: format!("{to}:{port}"),
                }));
            }
        }
        flows
    }
}

struct Probe<'a> {
    name: &'a str,
    from: &'a Netns,
    to: String,
}

/// Which of the flows work.
fn work(probes: &[Probe<'_>], deadline: Duration) -> Vec<bool> {
    thread::scope(|scope| {
        let one = |probe: &Probe<'_>| {
            let to = probe.to.parse().expect("an address");
            ask(probe.from, Proto::Tcp, to, deadline).is_ok()
        };
        let running: Vec<_> = probes.iter().map(|probe| scope.spawn(move || one(probe))).collect();
        running.into_iter().map(|probe| probe.join().expect("a probe does not panic")).collect()
    })
}

#[test]
fn what_worked_works() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let seed: u64 = number("SYMROUTE_SEED").unwrap_or(SEED);
    let layouts: u64 = number("SYMROUTE_LAYOUTS").unwrap_or(LAYOUTS);
    println!("SYMROUTE_SEED={seed}");
    let world = World::new();
    let settings = json!({ "uplinks": ["eth*"] });
    let (mut worked, mut healed) = (0, 0);
    for layout in 0..layouts {
        let mut dice = Dice(seed.wrapping_add(layout));
        world.reset();
        let words = world.shuffle(&mut dice);
        world.forget();
        let probes = world.flows();
        let before = work(&probes, BASELINE);
        world.forget();
        world.node.up(&settings);
        let with: Vec<bool> = work(&probes, BASELINE);
        let lost = || (0..probes.len()).filter(|&at| before[at] && !with[at]);
        // Busy processors may have delayed it.
        let again: Vec<usize> = lost().collect();
        let patient: Vec<Probe<'_>> = again
            .iter()
            .map(|&at| Probe {
                name: probes[at].name,
                from: probes[at].from,
                to: probes[at].to.clone(),
            })
            .collect();
        let broken: Vec<String> = work(&patient, PATIENT)
            .into_iter()
            .zip(&patient)
            .filter(|(works, _)| !works)
            .map(|(_, probe)| format!("{} to {}", probe.name, probe.to))
            .collect();
        let status = world.node.symroute(&["status"]).stdout;
        assert!(
            broken.is_empty(),
            "SYMROUTE_SEED={} SYMROUTE_LAYOUTS=1: worked without and fails with symroute: {}\n{words}\n{status}",
            seed.wrapping_add(layout),
            broken.join(", ")
        );
        worked += before.iter().filter(|&&works| works).count();
        healed += (0..probes.len()).filter(|&at| !before[at] && with[at]).count();
        world.node.down();
    }
    println!(
        "{layouts} layouts: {worked} flows worked before and do with symroute, {healed} more work"
    );
    assert!(worked > 0 && healed > 0, "the layouts show something");
}
