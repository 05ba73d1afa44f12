//! Never worse than without: on random nodes, every flow that works without the plugin works with
//! it, by real packets. A run is the same each time; `SYMROUTE_SEED` gives it other layouts, and
//! `SYMROUTE_LAYOUTS` more of them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use std::{env, thread};

use serde_json::{Value, json};

use super::lan::{Lan, firewall, node_port};
use crate::agent::plugin_object;
use crate::lab::dice::Dice;
use crate::lab::netns::Netns;
use crate::lab::node::Node;
use crate::lab::traffic::{Proto, Server, ask};
use crate::lab::tun::Tunnel;
use crate::lab::verdicts::{Recorded, each_once};

/// Seed of the layouts, unless the environment names another one.
const SEED: u64 = 5000;
/// Number of layouts that a run tries.
const LAYOUTS: u64 = 80;
/// One layout of this many is used to check `explain`.
const EXPLAINED: u64 = 16;
/// How many worlds share the layouts.
const WORLDS: usize = 2;
/// A ruleset that gives IPv6 what strict `rp_filter` gives IPv4, also after DNAT. Without it an
/// asymmetric IPv6 flow may work.
const STRICT: &str = "table ip6 strict {
       chain prerouting {
         type filter hook prerouting priority 0;
         meta l4proto != icmpv6 fib saddr . iif oif missing drop
       }
     }";
/// Time limit of a flow that may fail.
const BASELINE: Duration = Duration::from_millis(400);
/// Time limit of a flow that has to work: two retransmissions of a SYN.
const PATIENT: Duration = Duration::from_secs(4);

/// The part of the layout that stays while nodes change. There are two networks, the second with two
/// NICs of the node. A stateless and a stateful router are on both networks. There are neighbours, and
/// a branch network behind one of them. A client reaches each address by one of the routers. A tunnel
/// leads to an edge with a host behind it.
struct World {
    node: Node,
    others: Vec<Netns>,
    client: Netns,
    senders: Vec<(&'static str, Netns)>,
    _lans: Vec<Lan>,
    _servers: Vec<Server>,
    _tunnels: [Tunnel; 2],
}

/// Addresses of a family, as text.
struct Family {
    addresses: [&'static str; 5],
    nets: [&'static str; 3],
    /// Prefixes of the hosts' addresses in the three networks.
    hosts: [&'static str; 3],
    branch: &'static str,
    in_branch: &'static str,
    outside: &'static str,
    length: u8,
    whole: u8,
    ip: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        addresses: ["10.10.0.10", "10.11.0.10", "10.11.0.20", "198.51.100.1", "198.51.100.2"],
        nets: ["10.10.0.0", "10.11.0.0", "10.11.0.0"],
        hosts: ["10.10.0.", "10.11.0.", "10.11.0."],
        branch: "10.60.0.0",
        in_branch: "10.60.0.",
        outside: "203.0.113.",
        length: 24,
        whole: 32,
        ip: "ip -4",
    },
    Family {
        addresses: [
            "2001:db8:10::10",
            "2001:db8:11::10",
            "2001:db8:11::20",
            "2001:db8:51::1",
            "2001:db8:51::2",
        ],
        nets: ["2001:db8:10::", "2001:db8:11::", "2001:db8:11::"],
        hosts: ["2001:db8:10::", "2001:db8:11::", "2001:db8:11::"],
        branch: "2001:db8:60::",
        in_branch: "2001:db8:60::",
        outside: "2001:db8:113::",
        length: 64,
        whole: 128,
        ip: "ip -6",
    },
];

const NICS: [&str; 3] = ["eth0", "eth1", "eth2"];
/// The node's address on the tunnel, and the table that a rule may name by it.
const BY_TUNNEL: &str = "10.7.0.3";
const OF_TUNNEL: u32 = 160;

impl World {
    fn new() -> Self {
        let node = Node::new("node");
        let lans: Vec<Lan> = ["lan0", "lan1", "outside", "inner", "edges"].map(Lan::new).into();
        for (nic, lan) in NICS.iter().zip([0, 1, 1]) {
            lans[lan].plug(&node.ns, nic, &[]);
        }
        node.ns.ip("link add br2 type bridge
             link set br2 up");
        let plain = Netns::new("router1");
        plain.sysctl("ipv4/ip_forward", "1");
        plain.sysctl("ipv4/conf/all/send_redirects", "0");
        plain.sysctl("ipv4/conf/default/send_redirects", "0");
        let routers = [plain, firewall("router2")];
        let both = |words: fn(&Family) -> &'static str, host: &str| {
            FAMILIES.each_ref().map(|f| format!("{}{host}/{}", words(f), f.length))
        };
        let plug = |lan: usize, ns: &Netns, ifname: &str, addresses: [String; 2]| {
            lans[lan].plug(ns, ifname, &[&addresses[0], &addresses[1]]);
        };
        for (router, n) in routers.iter().zip(["1", "2"]) {
            router.sysctl("ipv6/conf/all/forwarding", "1");
            plug(0, router, "r0", both(|f| f.hosts[0], n));
            plug(1, router, "r1", both(|f| f.hosts[1], n));
            plug(2, router, "r2", both(|f| f.outside, n));
            for Family { branch, hosts, length, .. } in &FAMILIES {
                router.ip(&format!("route add {branch}/{length} via {}254", hosts[1]));
            }
        }
        let client = Netns::new("client");
        plug(2, &client, "eth0", both(|f| f.outside, "9"));
        let host = |lan, name: &str, words: fn(&Family) -> &'static str, host: &str| {
            let ns = Netns::new(name);
            plug(lan, &ns, "eth0", both(words, host));
            for family in &FAMILIES {
                ns.ip(&format!("route add default via {}1", words(family)));
            }
            ns
        };
        let near0 = host(0, "near0", |f| f.hosts[0], "50");
        let near1 = host(1, "near1", |f| f.hosts[1], "50");
        let branch = Netns::new("branch");
        branch.sysctl("ipv4/ip_forward", "1");
        branch.sysctl("ipv6/conf/all/forwarding", "1");
        branch.sysctl("ipv4/conf/all/send_redirects", "0");
        plug(1, &branch, "b0", both(|f| f.hosts[1], "254"));
        plug(3, &branch, "b1", both(|f| f.in_branch, "1"));
        for family in &FAMILIES {
            branch.ip(&format!("route add default via {}1", family.hosts[1]));
        }
        let far = host(3, "far", |f| f.in_branch, "9");
        let edge = firewall("edge");
        lans[0].plug(&edge, "e0", &["10.10.0.60/24"]);
        lans[4].plug(&edge, "e1", &["10.90.0.1/24"]);
        let behind = super::lan::host(&lans[4], "behind", "10.90.0.9/24", "10.90.0.1");
        // The address that the tunnel's packets come from has to be there when it begins.
        node.ns.ip("addr add 10.10.0.10/24 dev eth0");
        let tunnels = [
            Tunnel::open(&node.ns, "wg0", "10.10.0.10:51820", "10.10.0.60:51820"),
            Tunnel::open(&edge, "wg0", "10.10.0.60:51820", "10.10.0.10:51820"),
        ];
        node.ns.ip("link set wg0 up");
        edge.ip("addr add 10.7.0.2/31 dev wg0
             link set wg0 up");
        let pod = node.pod("pod", &["10.244.0.5", "2001:db8:244::5"]);
        // With a flow label of its own, each connection would choose one of several hops anew. A flow
        // that works by chance does not count.
        for ns in [&node.ns, &pod.ns] {
            ns.sysctl("ipv6/auto_flowlabels", "0");
        }
        node_port(&node.ns, "10.244.0.5");
        node.ns.nft(
            "table ip6 nodeport {
               chain prerouting {
                 type nat hook prerouting priority -100;
                 fib daddr type local tcp dport 30080 dnat to [2001:db8:244::5]:8080
               }
             }",
        );
        let servers = vec![
            Server::start(&node.ns, Proto::Tcp, 10250, "host"),
            Server::start(&pod.ns, Proto::Tcp, 8080, "pod"),
        ];
        let mut others = Vec::from(routers);
        others.extend([branch, pod.ns, edge]);
        let senders = vec![("near0", near0), ("near1", near1), ("far", far), ("behind", behind)];
        Self { node, others, client, senders, _lans: lans, _servers: servers, _tunnels: tunnels }
    }

    /// Sets up a random node and the ways to it. Returns the commands of `ip` for it, and the uplinks
    /// to name.
    fn shuffle(&self, dice: &mut Dice) -> (String, Vec<&'static str>) {
        let mut node = String::new();
        // The third NIC may be the port of a bridge. The bridge then has its addresses.
        let bridged = dice.coin();
        if bridged {
            let _ = writeln!(node, "link set eth2 master br2");
        }
        for family in &FAMILIES {
            Self::shuffle_family(dice, family, bridged, &mut node);
        }
        let mut uplinks = vec!["eth*"];
        uplinks.extend(bridged.then_some("br2"));
        if dice.coin() {
            let _ = writeln!(node, "addr add {BY_TUNNEL}/31 dev wg0");
            if dice.coin() {
                let _ = writeln!(node, "route add 10.90.0.0/24 dev wg0");
            }
            if dice.coin() {
                let _ = writeln!(
                    node,
                    "rule add from {BY_TUNNEL} lookup {OF_TUNNEL} pref 32010
                     route add default dev wg0 table {OF_TUNNEL}"
                );
            }
            uplinks.extend(dice.coin().then_some("wg*"));
        }
        let own_arp = dice.coin();
        for nic in ["eth0", "eth1", "eth2", "br2"] {
            let [ignore, announce] = if own_arp { ["1", "2"] } else { ["0", "0"] };
            self.node.ns.sysctl(&format!("ipv4/conf/{nic}/arp_ignore"), ignore);
            self.node.ns.sysctl(&format!("ipv4/conf/{nic}/arp_announce"), announce);
        }
        // A rule does not name its family.
        let of_rules = |line: &&str| line.starts_with("rule add from 2001:");
        let (rules, rest): (Vec<&str>, Vec<&str>) =
            node.lines().map(str::trim).partition(|line| of_rules(line));
        // The kernel refuses some IPv6 routes beside others. The node consists of those that it accepts.
        let take = |ip: &str, lines: &[&str]| {
            let script = format!("{ip} -force -batch - 2>/dev/null || true");
            self.node.ns.exec(&["sh", "-c", &script], &(lines.join("\n") + "\n"));
        };
        take("ip", &rest);
        take("ip -6", &rules);
        // Each of the node's addresses is reached by a router, and virtual ones by a NIC of it.
        let mut ways = String::new();
        for family in &FAMILIES {
            for address in family.addresses {
                let n = 1 + dice.roll(2);
                let _ = writeln!(ways, "route replace {address} via {}{n}", family.outside);
            }
        }
        self.client.ip(&ways);
        for family in &FAMILIES {
            for vip in &family.addresses[3..] {
                let nic = usize::try_from(dice.roll(2)).expect("a small number");
                for other in &self.others[..2] {
                    other.ip(&format!("route replace {vip} via {}", family.addresses[nic]));
                }
                let _ = writeln!(ways, "{vip} by {}", NICS[nic]);
            }
        }
        (format!("{node}own ARP: {own_arp}\n{ways}"), uplinks)
    }

    fn shuffle_family(dice: &mut Dice, family: &Family, bridged: bool, node: &mut String) {
        let mut add = |line: &str| {
            let _ = writeln!(node, "{line}");
        };
        let second = dice.coin();
        let addressed = [true, true, second];
        let length = family.length;
        for at in (0..3).filter(|&at| addressed[at]) {
            let nic = if at == 2 && bridged { "br2" } else { NICS[at] };
            let (address, hosts) = (family.addresses[at], family.hosts[at]);
            let (net, far) = (family.nets[at], format!("{}/{length}", family.branch));
            let own_table = dice.coin();
            let alone = own_table && dice.coin();
            let noprefix = if alone { "noprefixroute" } else { "" };
            let nodad = if length == 64 { "nodad" } else { "" };
            add(&format!("addr add {address}/{length} dev {nic} {noprefix} {nodad}"));
            let table = 150 + at;
            let by = 1 + dice.roll(2);
            if own_table {
                let place = if dice.roll(4) == 0 { 100 } else { 32000 };
                add(&format!("rule add from {address} lookup {table} pref {place}"));
                if alone || dice.coin() {
                    add(&format!("route add {net}/{length} dev {nic} table {table}"));
                }
                if at > 0 && dice.coin() {
                    let onlink = if alone { "onlink" } else { "" };
                    add(&format!(
                        "route add {far} via {hosts}254 dev {nic} table {table} {onlink}"
                    ));
                }
                if dice.roll(4) > 0 {
                    add(&format!(
                        "route add default via {hosts}{by} dev {nic} table {table} onlink"
                    ));
                }
            }
            if at == 0 || dice.coin() {
                let metric = 100 * (at + 1);
                if dice.roll(4) == 0 {
                    add(&format!(
                        "route add default metric {metric} nexthop via {hosts}1 dev {nic} weight {} onlink \
                         nexthop via {hosts}2 dev {nic} onlink",
                        1 + dice.roll(3)
                    ));
                } else {
                    add(&format!(
                        "route add default via {hosts}{by} dev {nic} metric {metric} onlink"
                    ));
                    if dice.roll(3) == 0 {
                        let other = 3 - by;
                        add(&format!(
                            "route add default via {hosts}{other} dev {nic} metric {} onlink",
                            metric + 50
                        ));
                    }
                }
            }
            if at > 0 && dice.roll(3) == 0 {
                add(&format!("route replace {far} via {hosts}254 dev {nic} onlink"));
            }
        }
        for vip in &family.addresses[3..] {
            add(&format!("addr add {vip}/{} dev lo", family.whole));
        }
    }

    fn reset(&self) {
        let mut script = String::from("ip link set eth2 nomaster; exec 2>/dev/null\n");
        for family in &FAMILIES {
            let ip = family.ip;
            for nic in ["eth0", "eth1", "eth2", "br2", "wg0"] {
                let _ = writeln!(script, "{ip} addr flush dev {nic} scope global");
            }
            for vip in &family.addresses[3..] {
                let _ = writeln!(script, "{ip} addr del {vip}/{} dev lo", family.whole);
            }
            for table in ["150", "151", "152", "160"] {
                let _ = writeln!(
                    script,
                    "{ip} route flush table {table}; while {ip} rule del lookup {table}; do :; done"
                );
            }
            let _ = writeln!(script, "{ip} route flush table main proto static");
        }
        script.push_str(
            "ip -4 route flush table main proto boot
             while ip -6 route del default; do :; done
             ip -6 route del 2001:db8:60::/64
             ip route add 10.244.0.5 dev enipod scope link
             true",
        );
        self.node.ns.exec(&["sh", "-c", &script], "");
    }

    /// Empties the tables of neighbours and connections.
    fn forget(&self) {
        let all = self.others.iter().chain([&self.node.ns, &self.client]);
        for ns in all.chain(self.senders.iter().map(|(_, ns)| ns)) {
            ns.exec(&["sh", "-c", "ip neigh flush all; conntrack -F 2>/dev/null || true"], "");
        }
    }

    /// Asserts that `explain` says of each answered request that it works. A request without answer may
    /// have been lost elsewhere.
    fn assert_verdicts(
        &self,
        settings: &Value,
        probes: &[Probe<'_>],
        outcome: &[bool],
        words: &str,
    ) -> usize {
        let config = plugin_object(&self.node, settings);
        let asked = self.node.recorded_requests();
        let once = each_once(&asked);
        let mut count = 0;
        for (probe, _) in probes.iter().zip(outcome).filter(|(_, works)| **works) {
            let to = (probe.to.ip().to_string(), u64::from(probe.to.port()));
            let of_probe = |one: &&&Recorded| {
                let from = one.from.parse().expect("an address");
                probe.from.has_address(from) && (&one.to, one.port) == (&to.0, to.1)
            };
            let found: Vec<_> = once.iter().filter(of_probe).collect();
            assert!(!found.is_empty(), "{} to {}: the node got no request", probe.name, probe.to);
            for one in found {
                let (is_answered, report) = self.node.is_explained_as_answered(&config, one);
                assert!(is_answered, "{one} was answered, and explain says: {report:#}\n{words}");
                count += 1;
            }
        }
        count
    }

    /// All flows, in words.
    fn flows(&self) -> Vec<Probe<'_>> {
        let mut flows = Vec::new();
        let clients = std::iter::once(("client", &self.client));
        for (name, from) in clients.chain(self.senders.iter().map(|(name, ns)| (*name, ns))) {
            let count = if name == "client" { 5 } else { 3 };
            let all = FAMILIES.iter().flat_map(|family| &family.addresses[..count]).copied();
            let to: Vec<&str> = if name == "behind" { vec![BY_TUNNEL] } else { all.collect() };
            for ip in to {
                let ip: IpAddr = ip.parse().expect("an address");
                flows.extend([10250, 30080].map(|port| Probe {
                    name,
                    from,
                    to: SocketAddr::new(ip, port),
                }));
            }
        }
        flows
    }
}

struct Probe<'a> {
    name: &'a str,
    from: &'a Netns,
    to: SocketAddr,
}

/// Which of the flows work.
fn which_work(probes: &[Probe<'_>], deadline: Duration) -> Vec<bool> {
    thread::scope(|scope| {
        let one = |probe: &Probe<'_>| ask(probe.from, Proto::Tcp, probe.to, deadline).is_ok();
        let running: Vec<_> = probes.iter().map(|probe| scope.spawn(move || one(probe))).collect();
        running.into_iter().map(|probe| probe.join().expect("a probe does not panic")).collect()
    })
}

/// What was seen on some layouts.
#[derive(Default)]
struct Tally {
    worked: usize,
    healed: usize,
    explained: usize,
}

/// Sets up the node of this seed. Asserts that each flow that works without the plugin works with
/// it.
fn assert_never_worse(world: &World, seed: u64, is_explained: bool, tally: &mut Tally) {
    world.reset();
    let (words, uplinks) = world.shuffle(&mut Dice(seed));
    world.forget();
    let probes = world.flows();
    let settings = json!({ "uplinks": uplinks });
    if is_explained {
        world.node.record_requests();
    }
    world.node.ns.nft(STRICT);
    let before = which_work(&probes, BASELINE);
    world.node.ns.nft("delete table ip6 strict");
    if is_explained {
        tally.explained += world.assert_verdicts(&settings, &probes, &before, &words);
    }
    world.forget();
    world.node.up(&settings);
    let with: Vec<bool> = which_work(&probes, BASELINE);
    if is_explained {
        tally.explained += world.assert_verdicts(&settings, &probes, &with, &words);
        world.node.stop_recording();
    }
    // Busy processors may have delayed it.
    let lost = (0..probes.len()).filter(|&at| before[at] && !with[at]);
    let again: Vec<Probe<'_>> = lost
        .map(|at| Probe { name: probes[at].name, from: probes[at].from, to: probes[at].to })
        .collect();
    let broken: Vec<String> = which_work(&again, PATIENT)
        .into_iter()
        .zip(&again)
        .filter(|(works, _)| !works)
        .map(|(_, probe)| format!("{} to {}", probe.name, probe.to))
        .collect();
    let status = world.node.symroute(&["status"]).stdout;
    assert!(
        broken.is_empty(),
        "SYMROUTE_SEED={seed} SYMROUTE_LAYOUTS=1: worked without and fails with symroute: {}\n{words}\n{status}",
        broken.join(", ")
    );
    tally.worked += before.iter().filter(|&&works| works).count();
    tally.healed += (0..probes.len()).filter(|&at| !before[at] && with[at]).count();
    world.node.down();
}

#[test]
fn what_worked_works() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let seed: u64 = number("SYMROUTE_SEED").unwrap_or(SEED);
    let layouts: u64 = number("SYMROUTE_LAYOUTS").unwrap_or(LAYOUTS);
    println!("SYMROUTE_SEED={seed}");
    // Most of a layout's time is spent waiting, so two worlds take turns.
    let share = |first: u64| {
        let (world, mut tally) = (World::new(), Tally::default());
        for layout in (first..layouts).step_by(WORLDS) {
            // Both worlds have some of them.
            let is_explained = (layout / WORLDS as u64).is_multiple_of(EXPLAINED / WORLDS as u64);
            assert_never_worse(&world, seed.wrapping_add(layout), is_explained, &mut tally);
        }
        tally
    };
    let all = thread::scope(|scope| {
        let running: Vec<_> = (0..layouts.min(WORLDS as u64))
            .map(|first| scope.spawn(move || share(first)))
            .collect();
        running.into_iter().fold(Tally::default(), |sum, one| {
            let tally = one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Tally {
                worked: sum.worked + tally.worked,
                healed: sum.healed + tally.healed,
                explained: sum.explained + tally.explained,
            }
        })
    });
    let Tally { worked, healed, explained } = all;
    println!(
        "{layouts} layouts: {worked} flows worked before and do with symroute, {healed} more work; explain is \
         right about {explained} requests that were answered"
    );
    assert!(worked > 0 && healed > 0 && explained > 0, "the layouts show something");
    // On a busy machine some flows are too late without the plugin. The test does not ask for them with
    // it. On an idle machine there are 1,399.
    assert!((seed, layouts) != (SEED, LAYOUTS) || worked > 1200, "only {worked} flows are held");
}
