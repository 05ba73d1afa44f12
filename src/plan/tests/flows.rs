//! Checks "never worse than without" on a model of the kernel's routing: on random nodes, each flow that works
//! without the plugin works with it. The end-to-end tests check that with packets, on fewer nodes.

use std::cell::Cell;
use std::env;
use std::fmt::Write as _;

use proptest::test_runner::{Config as Runs, RngAlgorithm, TestError, TestRng, TestRunner};

use super::*;
use crate::model::{Mac, PerFamily, PodFacts};
use crate::names::LOOPBACK;
use crate::plan::uplinks::outside;

/// Default of `SYMROUTE_SEED`; `NODES` is that of `SYMROUTE_LAYOUTS`, the number of nodes.
const SEED: u64 = 5000;
const NODES: u32 = 8000;
/// Number of random bytes that a node is made of.
const BYTES: usize = 120;
/// A client behind the routers.
const FAR: PerFamily<&str> = PerFamily("203.0.113.9", "2001:db8:113::9");
/// An address of the node on `lo`; `POD` is the address of a pod.
const VIRTUAL: PerFamily<&str> = PerFamily("198.51.100.1", "2001:db8:51::1");
const POD: PerFamily<&str> = PerFamily("10.244.0.5", "2001:db8:244::5");
const LO: u32 = 1;
/// The tunnel among the kinds of [`nic`].
const TUNNEL: u8 = 4;
const OF_POD: u32 = 20;
/// A bridge in a pod, with containers of the pod's own: index, then address and network, and a container.
const BRIDGE: u32 = 30;
const INSIDE: PerFamily<(&str, &str)> =
    PerFamily(("172.17.0.1/16", "172.17.0.5"), ("fd17::1/64", "fd17::5"));
const INSIDE_LAN: u8 = 200;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Choices, made from the bytes of a test case.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn roll(&mut self, sides: u8) -> u8 {
        self.0.next().map_or(0, |byte| byte % sides)
    }

    fn one_in(&mut self, sides: u8) -> bool {
        self.roll(sides) == sides - 1
    }
}

/// An interface of the node and the network that it is on. Two interfaces may share a network.
#[derive(Debug, Clone)]
struct Port {
    link: u32,
    lan: u8,
    is_tunnel: bool,
    has_subnet: bool,
}

#[derive(Debug)]
struct World {
    family: Family,
    /// Whether routers have link-local addresses, which each network may have.
    has_link_local_routers: bool,
    facts: Facts,
    ports: Vec<Port>,
}

impl World {
    /// A router of a network: hosts 1 and 2 lead outside, 254 to a branch network.
    fn router(&self, lan: u8, host: u8) -> IpAddr {
        if self.has_link_local_routers {
            ip(&format!("fe80::{host}"))
        } else {
            self.host(lan, host)
        }
    }

    fn host(&self, lan: u8, host: u8) -> IpAddr {
        match self.family {
            Family::V4 => ip(&format!("10.{lan}.0.{host}")),
            Family::V6 => ip(&format!("2001:db8:{lan}::{host}")),
        }
    }

    fn subnet(&self, lan: u8) -> IpNetwork {
        let base = self.host(lan, 0);
        IpNetwork::new(base, if base.is_ipv4() { 24 } else { 64 }).unwrap()
    }

    fn branch(&self, lan: u8) -> (IpNetwork, IpAddr) {
        let text = match self.family {
            Family::V4 => format!("10.60.{lan}.0/24"),
            Family::V6 => format!("2001:db8:60{lan}::/64"),
        };
        let net: IpNetwork = text.parse().unwrap();
        let host = match net.ip() {
            IpAddr::V4(ip) => IpAddr::from((u32::from(ip) | 9).to_be_bytes()),
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) | 9).to_be_bytes()),
        };
        (net, host)
    }

    fn mac(lan: u8, host: u8) -> Mac {
        [2, 0, 0, 0, lan, host]
    }

    fn new(bytes: &[u8], is_pod: bool) -> Self {
        let mut dice = Dice(bytes.iter());
        let family = if dice.one_in(3) { Family::V6 } else { Family::V4 };
        let facts = Facts { rules: base_rules(), ..Facts::default() };
        let has_link_local_routers = family == Family::V6 && dice.one_in(2);
        let mut world = Self { family, has_link_local_routers, facts, ports: Vec::new() };
        world.facts.links.push(Link { index: LO, name: LOOPBACK.into(), ..Link::default() });
        for number in 0..=dice.roll(4) {
            let kind = [0, 0, 0, 0, 5, 6, TUNNEL][usize::from(dice.roll(7))];
            // A tunnel shares no network. Only the subnet of a NIC shows that another one is in the same
            // network.
            let shared = world.ports.last().filter(|last| last.has_subnet && kind != TUNNEL);
            let lan = shared.filter(|_| dice.one_in(4)).map_or(number, |last| last.lan);
            world.add_port(&mut dice, kind, lan);
        }
        if is_pod {
            world.be_pod();
            return world;
        }
        world.facts.links.push(Link { name: "enipod".into(), ..nic(OF_POD, 3) });
        let virtual_address = ip(VIRTUAL.of(family));
        let net = virtual_address.into();
        world.facts.addresses.push(Address { link: LO, net, ip: virtual_address, scope: 0 });
        world.routes([route(RT_TABLE_MAIN, ip(POD.of(family)).into(), OF_POD, None)]);
        world
    }

    /// Makes the node a pod with containers of its own behind a bridge.
    fn be_pod(&mut self) {
        self.facts.pod = Some(PodFacts::default());
        self.facts.links.push(Link { name: "docker0".into(), ..nic(BRIDGE, 6) });
        self.facts.rp_filter.insert(BRIDGE, 1);
        let net: IpNetwork = INSIDE.of(self.family).0.parse().unwrap();
        self.facts.addresses.push(Address { link: BRIDGE, net, ip: net.ip(), scope: 0 });
        let dst = IpNetwork::new(net.network(), net.prefix()).unwrap();
        self.routes([route(RT_TABLE_MAIN, dst, BRIDGE, None)]);
    }

    fn is_pod(&self) -> bool {
        self.facts.pod.is_some()
    }

    /// Requests of the pod's own containers to each of its addresses.
    fn flows_from_inside(&self) -> impl Iterator<Item = Flow> {
        let port = Port { link: BRIDGE, lan: INSIDE_LAN, is_tunnel: false, has_subnet: true };
        let client = ip(INSIDE.of(self.family).1);
        let out_of = LOOPBACK.to_owned();
        let global = self.facts.addresses.iter().filter(|a| a.scope == 0 && self.is_pod());
        global.map(move |address| Flow {
            port: port.clone(),
            client,
            router: None,
            mac: None,
            to: address.ip,
            out_of: out_of.clone(),
        })
    }

    fn routes(&mut self, routes: impl IntoIterator<Item = Route>) {
        self.facts.routes.extend(routes);
    }

    fn add_port(&mut self, dice: &mut Dice<'_>, kind: u8, lan: u8) {
        let number = u8::try_from(self.ports.len()).unwrap();
        let link = u32::from(number) + 2;
        let is_tunnel = kind == TUNNEL;
        self.facts.links.push(nic(link, kind));
        self.facts.rp_filter.insert(link, u32::from(!dice.one_in(4)));
        self.facts.src_valid_mark.insert(link, 0);
        let own = self.host(lan, 10 + number);
        if self.family == Family::V6 {
            let own = ip(&format!("fe80::10:{link}"));
            let net = IpNetwork::new(own, 64).unwrap();
            self.facts.addresses.push(Address { link, net, ip: own, scope: 253 });
        }
        // Link-local routers do not show the network of a NIC: its subnet has to.
        let is_named = self.has_link_local_routers && self.ports.iter().any(|p| p.lan == lan);
        let has_address = !dice.one_in(4) || is_named;
        let subnet = self.subnet(lan);
        let alone = is_tunnel || dice.one_in(5) && !is_named;
        self.ports.push(Port { link, lan, is_tunnel, has_subnet: has_address && !alone });
        if has_address {
            let net =
                if alone { own.into() } else { IpNetwork::new(own, subnet.prefix()).unwrap() };
            self.facts.addresses.push(Address { link, net, ip: own, scope: 0 });
        }
        if is_tunnel && dice.one_in(2) {
            // A VPN to all networks of an organisation.
            let wide = if self.family == Family::V4 { "10.0.0.0/8" } else { "2001:db8::/32" };
            self.routes([route(RT_TABLE_MAIN, wide.parse().unwrap(), link, None)]);
        }
        if has_address && !alone && !dice.one_in(5) {
            self.routes([route(RT_TABLE_MAIN, subnet, link, None)]);
        }
        if has_address && dice.one_in(2) {
            self.add_own_table(dice, number, own);
        }
        if number == 0 || dice.one_in(2) {
            self.add_defaults(dice, RT_TABLE_MAIN, number);
        }
        if !is_tunnel && dice.one_in(3) {
            self.routes([self.to_branch(RT_TABLE_MAIN, link, lan)]);
        }
        for host in [1, 2] {
            let router = self.router(lan, host);
            self.facts.neighbours.insert((link, router), Self::mac(lan, host));
        }
    }

    fn to_branch(&self, table: u32, link: u32, lan: u8) -> Route {
        let mut route = route(table, self.branch(lan).0, link, Some(self.router(lan, 254)));
        route.metric += link;
        route
    }

    /// Adds a table that a rule names by the address.
    fn add_own_table(&mut self, dice: &mut Dice<'_>, number: u8, own: IpAddr) {
        let (table, Port { link, lan, is_tunnel, .. }) =
            (150 + u32::from(number), self.ports[usize::from(number)].clone());
        let priority = if dice.one_in(4) { 100 } else { 32000 } + u32::from(number);
        let base = base_rules().into_iter().find(|found| found.rule.family == self.family).unwrap();
        let rule = Rule {
            priority,
            action: Action::Lookup(table),
            from: Some(own.into()),
            other_selectors: true,
            ..base.rule
        };
        self.facts.rules.push(FoundRule { rule, message: Vec::new() });
        if dice.one_in(2) && !is_tunnel {
            self.routes([route(table, self.subnet(lan), link, None)]);
        }
        if dice.one_in(3) && !is_tunnel {
            self.routes([self.to_branch(table, link, lan)]);
        }
        if !dice.one_in(4) {
            self.add_defaults(dice, table, number);
        }
    }

    /// Adds a default route through one router or both, or a second default route with a higher metric.
    fn add_defaults(&mut self, dice: &mut Dice<'_>, table: u32, number: u8) {
        let Port { link, lan, is_tunnel, .. } = self.ports[usize::from(number)].clone();
        let by = 1 + dice.roll(2);
        let gateway = |host| (!is_tunnel).then(|| self.router(lan, host));
        let mut first = route(table, self.family.default_route(), link, gateway(by));
        first.metric += 100 * link;
        let mut second = first.clone();
        second.nexthops[0].gateway = gateway(3 - by);
        if !is_tunnel && dice.one_in(4) {
            first.nexthops.extend(second.nexthops);
            self.routes([first]);
            return;
        }
        self.routes([first]);
        if !is_tunnel && dice.one_in(3) {
            second.metric += 50;
            self.routes([second]);
        }
    }

    /// Every request that can arrive on an interface.
    fn flows(&self) -> Vec<Flow> {
        let far = ip(FAR.of(self.family));
        let global = self.facts.addresses.iter().filter(|a| a.scope == 0);
        let mut to: Vec<(IpAddr, &str)> = global.map(|a| (a.ip, LOOPBACK)).collect();
        if !self.is_pod() {
            to.push((ip(POD.of(self.family)), "enipod"));
        }
        let mut flows: Vec<Flow> = self.flows_from_inside().collect();
        for port in &self.ports {
            let lan = port.lan;
            let senders = if port.is_tunnel {
                vec![(far, None, None)]
            } else {
                vec![
                    (far, Some(self.router(lan, 1)), Some(Self::mac(lan, 1))),
                    (far, Some(self.router(lan, 2)), Some(Self::mac(lan, 2))),
                    (self.host(lan, 50), None, Some(Self::mac(lan, 50))),
                    (self.branch(lan).1, Some(self.router(lan, 254)), Some(Self::mac(lan, 254))),
                ]
            };
            for &(client, router, mac) in &senders {
                flows.extend(to.iter().map(|&(address, out_of)| Flow {
                    port: port.clone(),
                    client,
                    router,
                    mac,
                    to: address,
                    out_of: out_of.into(),
                }));
            }
        }
        flows
    }

    fn lan(&self, link: u32) -> Option<u8> {
        if link == BRIDGE {
            return Some(INSIDE_LAN);
        }
        self.ports.iter().find(|port| port.link == link).map(|port| port.lan)
    }
}

/// A request, and where its reply has to go: every router is a stateful firewall.
#[derive(Debug)]
struct Flow {
    port: Port,
    client: IpAddr,
    /// The router that the request comes from, unless the client is on the link.
    router: Option<IpAddr>,
    mac: Option<Mac>,
    to: IpAddr,
    /// Interface that the reply arrives on: `lo` for the node itself.
    out_of: String,
}

/// The node's rules and routes with those of a plan.
struct Kernel<'a> {
    world: &'a World,
    rules: Vec<&'a Rule>,
    routes: Vec<&'a Route>,
    minds_mark: BTreeSet<u32>,
}

impl<'a> Kernel<'a> {
    fn new(world: &'a World, plan: &'a Plan) -> Self {
        let others = world.facts.foreign_rules();
        let mut rules: Vec<_> = others.chain(&plan.rules).collect();
        rules.retain(|rule| rule.family == world.family);
        rules.sort_by_key(|rule| rule.priority);
        let routes = world.facts.routes.iter().chain(&plan.routes).collect();
        Self { world, rules, routes, minds_mark: plan.src_valid_mark.clone() }
    }

    /// `fib_lookup`: the hops of the first route that a rule leads to.
    fn look_up(&self, to: IpAddr, from: IpAddr, iif: &str, mark: u32) -> Vec<Nexthop> {
        let mut next = 0;
        for rule in &self.rules {
            let selects = rule.mark.is_none_or(|m| mark & m.mask == m.value)
                && rule.iif.as_ref().is_none_or(|wanted| wanted == iif)
                && rule.from.is_none_or(|net| net.contains(from))
                && rule.to.is_none_or(|net| net.contains(to))
                && (rule.from.is_some() || rule.to.is_some() || !rule.other_selectors);
            if rule.priority < next || !selects {
                continue;
            }
            match rule.action {
                Action::Goto(target) => next = target,
                Action::Lookup(table) => {
                    if let Some(route) = self.of_table(table, to, rule.suppress) {
                        return route.nexthops.clone();
                    }
                }
                Action::Nop | Action::Other(_) => {}
            }
        }
        Vec::new()
    }

    fn of_table(&self, table: u32, to: IpAddr, suppress: Option<u32>) -> Option<&Route> {
        let fits = |r: &&&Route| r.table == table && r.dst.contains(to);
        let best = |r: &&&Route| (std::cmp::Reverse(r.dst.prefix()), r.metric);
        let route = self.routes.iter().filter(fits).min_by_key(best)?;
        let kept = suppress.is_none_or(|length| u32::from(route.dst.prefix()) > length);
        kept.then_some(*route)
    }

    /// Whether the kernel accepts the request and the reply goes back to its sender. `unbound`: the mark of a
    /// reply that is not bound.
    fn works(&self, flow: &Flow, mark: u32, unbound: u32) -> bool {
        let link = flow.port.link;
        let strict = self.world.family == Family::V4 && self.world.facts.rp_filter[&link] == 1;
        let judged = if self.minds_mark.contains(&link) { mark } else { 0 };
        let back = self.look_up(flow.client, flow.to, LOOPBACK, judged);
        if strict && back.iter().all(|hop| hop.link != link) {
            return false;
        }
        let marked = if mark == 0 { unbound } else { mark };
        let reply = self.look_up(flow.client, flow.to, &flow.out_of, marked);
        let arrives = |hop: &Nexthop| {
            self.world.lan(hop.link) == Some(flow.port.lan) && hop.gateway == flow.router
        };
        !reply.is_empty() && reply.iter().all(arrives)
    }
}

/// Mark of the uplink or router that the request is bound to; 0 if it is not bound.
fn mark_of(world: &World, settings: &Settings, plan: &Plan, flow: &Flow) -> u32 {
    let link = flow.port.link;
    let Some(uplink) = plan.uplinks.iter().find(|uplink| uplink.link == link) else { return 0 };
    let without = Plan::default();
    let main = Kernel::new(world, &without);
    let outside = outside(&world.facts, &plan.src_valid_mark);
    let inside = main
        .of_table(RT_TABLE_MAIN, flow.client, None)
        .is_some_and(|r| !r.nexthops.iter().any(|hop| outside.contains(&hop.link)));
    if inside {
        return 0;
    }
    let by_router = uplink.routers.iter().find(|router| Some(router.mac) == flow.mac);
    settings.field.of(by_router.map_or(uplink.id, |router| router.uplink_via.id))
}

/// A flow and its node as text for a failed test.
fn words(world: &World, plan: &Plan, flow: &Flow) -> String {
    let mut text = format!("{flow:?}\n");
    for a in &world.facts.addresses {
        let _ = writeln!(text, "address {} on {}", a.net, a.link);
    }
    let others = world.facts.foreign_rules();
    for rule in others.chain(&plan.rules).filter(|rule| rule.family == world.family) {
        let _ = writeln!(text, "rule {rule}");
    }
    for Route { table, dst, metric, nexthops, .. } in world.facts.routes.iter().chain(&plan.routes)
    {
        let hops: Vec<_> = nexthops.iter().map(|hop| (hop.link, hop.gateway)).collect();
        let _ = writeln!(text, "route {dst} table {table} metric {metric} by {hops:?}");
    }
    let _ = writeln!(text, "rp_filter {:?}", world.facts.rp_filter);
    text
}

#[test]
fn what_worked_works() {
    hold_on_random_nodes(false);
}

/// Checks flows of pods that have a data plane of their own, including those of their own containers.
#[test]
fn what_worked_in_a_pod_works() {
    hold_on_random_nodes(true);
}

#[expect(clippy::print_stdout, reason = "the counts of a run and what repeats it")]
fn hold_on_random_nodes(is_pod: bool) {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let seed: u64 = number("SYMROUTE_SEED").unwrap_or(SEED);
    let nodes = number("SYMROUTE_LAYOUTS").map_or(NODES, |n| n.try_into().unwrap());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    println!("SYMROUTE_SEED={seed}");
    let runs = Runs { cases: nodes, failure_persistence: None, ..Runs::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let (worked, healed) = (Cell::new(0), Cell::new(0));
    let node = (vec(any::<u8>(), BYTES), any::<bool>());
    let outcome = TestRunner::new_with_rng(runs, rng).run(&node, |(bytes, auto)| {
        let world = World::new(&bytes, is_pod);
        let uplinks = if auto { Pattern::Auto } else { Pattern::Name("eth*".into()) };
        let settings = Settings { uplinks: vec![uplinks], ..Settings::default() };
        let Ok(plan) = plan(&world.facts, &settings) else { return Ok(()) };
        let nothing = Plan::default();
        let (without, with) = (Kernel::new(&world, &nothing), Kernel::new(&world, &plan));
        for flow in world.flows() {
            let mark = mark_of(&world, &settings, &plan, &flow);
            // In a pod with symroute's rules, the output hook marks a reply that is not bound.
            let by_others = is_pod && !plan.rules.is_empty();
            let works =
                with.works(&flow, mark, if by_others { settings.field.unbound_mark() } else { 0 });
            if without.works(&flow, 0, 0) {
                prop_assert!(works, "{}", words(&world, &plan, &flow));
                worked.set(worked.get() + 1);
            } else {
                healed.set(healed.get() + i32::from(works));
            }
        }
        Ok(())
    });
    if let Err(TestError::Fail(why, _)) = outcome {
        panic!("worked without the plugin and fails with it: {why}");
    }
    let (worked, healed) = (worked.get(), healed.get());
    println!("{nodes} nodes: {worked} flows worked and do with the plugin, {healed} more work");
    assert!(worked > 0 && healed > 0, "the nodes show something");
}
