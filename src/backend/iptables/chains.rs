//! The rules of the iptables backend. docs/design.md says what they do. A rule that does what a
//! rule of [`crate::backend::nftables::chains`] does has the same words in its comment.
//!
//! Table mangle runs before DNAT, so the destination is known only in FORWARD and INPUT, and
//! symroute binds a request there. In PREROUTING the request gets its uplink's mark as evidence for
//! `rp_filter`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::node_set;
use super::rules::{Chain, Ipset, Kind, Rule, Xtables};
use crate::backend::spec::{Spec, Uplink};
use crate::model::{Family, Field, Mac, Member, PerFamily, Variant, host_length, mac_text};
use crate::names;

/// Priority of table mangle, in whose chains all rules of this backend are.
pub(crate) const MANGLE: i32 = -150;

/// Builds the desired chains and sets. `prefixes`: see [`super::inside`]. `made`: built-in chains
/// that exist because of symroute.
pub(crate) fn build(
    spec: &Spec<'_>,
    variant: Variant,
    families: impl IntoIterator<Item = Family>,
    prefixes: impl Fn(Family) -> Prefixes,
    made: &BTreeSet<(Family, String)>,
) -> Xtables {
    let mut out = Xtables { variant, chains: [].into(), sets: Vec::new() };
    for family in families {
        out.chains.insert(family, Builder { spec, family }.chains());
        out.sets.extend(sets(spec, family, prefixes(family)));
    }
    out.sets.push(Ipset {
        name: names::NODE_SET,
        kind: Kind::Notes,
        family: Family::V4,
        members: node_set::write(spec, made),
    });
    out
}

/// Where main leads prefixes and single addresses of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prefixes {
    /// Prefixes that lead to an interface that is not outside, with exceptions.
    pub(crate) inside: Vec<Member>,
    /// Single addresses that lead outside.
    pub(crate) hosts: Vec<Member>,
}

/// Makes an address a member of a set of addresses.
pub(crate) fn member(address: IpAddr) -> Member {
    Member { address, prefix: host_length(address), nomatch: false, comment: None }
}

fn sets(spec: &Spec<'_>, family: Family, prefixes: Prefixes) -> Vec<Ipset> {
    let set = |name, kind, members: Vec<Member>| {
        let members = members.into_iter().collect();
        Ipset { name, kind, family, members }
    };
    let mut sets = vec![
        set(names::INSIDE.of(family), Kind::Prefixes, prefixes.inside),
        set(names::HOSTS.of(family), Kind::Addresses, prefixes.hosts),
    ];
    let pods = [
        (names::HAIRPIN_SET.of(family), spec.hairpins),
        (names::LEFT_OUT_SET.of(family), spec.left_out),
    ];
    for (name, pods) in pods.into_iter().filter(|(_, pods)| Spec::has_family(pods, family)) {
        let of_family = pods.iter().filter(|&&ip| Family::of(ip) == family);
        sets.push(set(name, Kind::Addresses, of_family.map(|&ip| member(ip)).collect()));
    }
    sets
}

fn rule(matches: impl Into<String>, why: &'static str, target: impl Into<String>) -> Rule {
    Rule { matches: matches.into(), why, target: target.into() }
}

/// Name of a chain.
fn named(chain: &str) -> String {
    format!("{}{chain}", names::CHAIN_PREFIX)
}

/// Name of a chain of the uplink with this id.
fn named_of(chain: &str, id: u32) -> String {
    format!("{}{chain}-{id}", names::CHAIN_PREFIX)
}

fn goto(chain: &str) -> String {
    format!("-g {}", named(chain))
}

fn goto_of(chain: &str, id: u32) -> String {
    format!("-g {}", named_of(chain, id))
}

fn in_set(set: &str, side: &str) -> String {
    format!("-m set --match-set {set} {side}")
}

const ORIGINAL: &str = "-m conntrack --ctdir ORIGINAL";
const REPLY: &str = "-m conntrack --ctdir REPLY";
const ANSWERED: &str = "-m conntrack --ctstatus SEEN_REPLY";
const RETURN: &str = "-j RETURN";

struct Builder<'a> {
    spec: &'a Spec<'a>,
    family: Family,
}

impl Builder<'_> {
    fn field(&self) -> Field {
        self.spec.field
    }

    fn chains(&self) -> Vec<Chain> {
        let uplinks = self.spec.uplinks;
        let mut chains: Vec<Chain> = uplinks.iter().flat_map(|u| self.of_uplink(u)).collect();
        let mut chain = |name, rules| chains.push(Chain { name, hook: None, rules });
        let counts = |why| uplinks.iter().map(move |u| self.count(u.id, why));
        let restored = std::iter::once(self.restore()).chain(counts("counts what leaves by it"));
        chain(names::COUNT_RESTORED.into(), restored.collect());
        chain(names::COUNT_BOUND.into(), counts("counts connections bound to it").collect());
        chain(named("clear"), vec![self.set_mark("was evidence only", 0)]);
        chain(named("refuse"), vec![self.set_mark("the address of a local pod", 0)]);
        chain(named("take"), self.take());
        chain(named("turn"), self.turn());
        chain(named("request"), self.request());
        chain(named("local"), self.local());
        let unmarked = || rule(self.mark(0), "no mark of symroute", RETURN);
        let mut forwarded = vec![unmarked()];
        // A bound request keeps its mark only without IPVS, which would route by it.
        if !self.spec.ipvs {
            forwarded.extend(uplinks.iter().map(|u| self.bound_already(u.id)));
        }
        forwarded.extend(self.forget("request"));
        chain(named("forwarded"), forwarded);
        chain(named("received"), [vec![unmarked()], self.forget("local")].concat());
        chains.extend(self.hooks());
        chains
    }

    fn of_uplink(&self, uplink: &Uplink) -> Vec<Chain> {
        let id = uplink.id;
        let chain = |name, rules| Chain { name, hook: None, rules };
        let (mark, turned) = (self.spec.bound_mark(id), self.spec.turned_mark(id));
        vec![
            chain(named_of("via", id), vec![self.set_mark("leaves by this uplink", mark)]),
            chain(named_of("uturn", id), vec![self.set_mark("turns round on this uplink", turned)]),
            chain(named_of("source", id), self.source(id)),
            chain(named_of("offer", id), self.offer(id)),
            chain(named_of("moved", id), self.moved(id)),
            chain(named_of("stays", id), self.stays(uplink)),
            chain(named_of("answered", id), self.answered(id)),
            chain(named_of("reply", id), self.reply(uplink)),
            chain(named_of("in", id), self.arrive(uplink)),
        ]
    }

    fn hooks(&self) -> [Chain; 5] {
        let from = |target: &dyn Fn(u32) -> String| -> Vec<Rule> {
            let uplinks = self.spec.interfaces();
            uplinks.map(|u| rule(format!("-i {}", u.name), "came in by", target(u.id))).collect()
        };
        let hook = |hook: &'static str, rules| {
            let name = named(&hook.to_lowercase());
            Chain { name, hook: Some(hook), rules }
        };
        let mut prerouting = from(&|id| goto_of("in", id));
        prerouting.push(rule(self.has_id("!"), "of a bound connection", goto("restore")));
        let clear = format!("-j MARK --set-xmark 0x0/{}", self.field());
        let bound = format!("-m connmark ! --mark 0x0/{}", self.field());
        let mut leaving = vec![rule(bound, "exact comparers come next", clear.clone())];
        let unbound = self.spec.unbound.map(|mark| self.unbound_reply(mark));
        leaving.extend(unbound.map(|reply| rule(reply, "an unbound reply of a pod", clear)));
        [
            hook("PREROUTING", prerouting),
            hook("INPUT", from(&|_| goto("received"))),
            hook("FORWARD", from(&|_| goto("forwarded"))),
            hook("OUTPUT", self.output()),
            hook("POSTROUTING", leaving),
        ]
    }

    /// Matches a reply of a connection that is bound to no uplink, if the packet's field is `mark`.
    /// A mark of another program stays.
    fn unbound_reply(&self, mark: u32) -> String {
        format!("{REPLY} {} {}", self.connection(0), self.mark(mark))
    }

    /// Matches packets whose field is `mark`.
    fn mark(&self, mark: u32) -> String {
        format!("-m mark --mark {mark:#x}/{}", self.field())
    }

    /// Matches connections whose field is `mark`.
    fn connection(&self, mark: u32) -> String {
        format!("-m connmark --mark {mark:#x}/{}", self.field())
    }

    /// Matches connections with this id, whether they turn round or not.
    fn connection_of(&self, id: u32) -> String {
        format!("-m connmark --mark {:#x}/{:#x}", self.field().of(id), self.field().id_mask())
    }

    /// Matches connections with any id if `not` is "!", and connections without one if `not` is
    /// empty.
    fn has_id(&self, not: &str) -> String {
        let space = if not.is_empty() { "" } else { " " };
        format!("-m connmark {not}{space}--mark 0x0/{:#x}", self.field().id_mask())
    }

    fn set_mark(&self, why: &'static str, mark: u32) -> Rule {
        rule("", why, format!("-j MARK --set-xmark {mark:#x}/{}", self.field()))
    }

    fn set_connection(&self, matches: String, why: &'static str, mark: u32) -> Rule {
        rule(matches, why, format!("-j CONNMARK --set-xmark {mark:#x}/{}", self.field()))
    }

    /// Rule that leaves a packet alone whose connection is already bound to the uplink of its mark.
    fn bound_already(&self, id: u32) -> Rule {
        let mark = self.spec.bound_mark(id);
        let matches = format!("{} {}", self.mark(mark), self.connection(mark));
        rule(matches, "bound already", RETURN)
    }

    /// Rule that counts packets with the mark of an uplink.
    fn count(&self, id: u32, why: &'static str) -> Rule {
        rule(self.mark(self.spec.bound_mark(id)), why, RETURN)
    }

    fn restore(&self) -> Rule {
        let (field, ids) = (self.field(), self.field().id_mask());
        let target = format!("-j CONNMARK --restore-mark --nfmask {field} --ctmask {ids:#x}");
        rule("", "leaves by the uplink of its connection", target)
    }

    fn icmp_error(&self, target: String) -> Rule {
        rule(format!("-p {} -m conntrack --ctstate RELATED", self.icmp()), "an ICMP error", target)
    }

    fn icmp(&self) -> &'static str {
        PerFamily("icmp", "ipv6-icmp").of(self.family)
    }

    /// Matches of the destination, one for each of the uplink's own addresses.
    fn to_own_addresses(&self, uplink: &Uplink) -> impl Iterator<Item = String> {
        let of_uplink =
            |(link, ip): &&(u32, IpAddr)| *link == uplink.link && Family::of(*ip) == self.family;
        let own = self.spec.own.iter().filter(of_uplink);
        own.map(|(_, ip)| format!("-d {ip}/{}", host_length(*ip)))
    }

    /// Rules for packets in the reply direction that arrive on this uplink.
    fn reply(&self, uplink: &Uplink) -> Vec<Rule> {
        let id = uplink.id;
        let why = "a reply by the uplink of its own request";
        let mut rules = vec![
            rule(self.connection(self.spec.bound_mark(id)), why, RETURN),
            rule(self.connection(self.spec.turned_mark(id)), "turns round", goto_of("uturn", id)),
        ];
        for (_, router) in Self::other_routers(uplink) {
            let turned = self.connection(self.spec.turned_mark(router));
            rules.push(rule(self.connection(self.spec.bound_mark(router)), why, RETURN));
            rules.push(rule(turned, "turns round", goto_of("uturn", router)));
        }
        let elsewhere = "leaves by the uplink of the request";
        rules.push(rule(self.has_id("!"), elsewhere, goto("restore")));
        let why = "an answer to the address that the request was sent with";
        for to in self.to_own_addresses(uplink) {
            let answer = format!("{to} -m conntrack --ctstate SNAT");
            // Any host can be the source of an ICMP error, so the source is judged.
            if !self.spec.hairpin {
                let error = format!("-p {} {answer} -m conntrack --ctstate RELATED", self.icmp());
                rules.push(rule(error, "an ICMP error", goto_of("source", id)));
            }
            rules.push(rule(answer, why, goto_of("via", id)));
        }
        rules
    }

    /// Rules for packets that arrive on this uplink. The most frequent case comes first.
    fn arrive(&self, uplink: &Uplink) -> Vec<Rule> {
        let id = uplink.id;
        let own = format!("{} {ORIGINAL}", self.connection(self.spec.bound_mark(id)));
        let turned = format!("{} {ORIGINAL}", self.connection(self.spec.turned_mark(id)));
        let answered = format!("{} {ANSWERED}", self.has_id("!"));
        let error = if self.spec.hairpin { "via" } else { "source" };
        let usual = format!("! -p {} {own}", self.icmp());
        let mut rules = vec![
            rule(usual, "bound to this uplink", goto_of("via", id)),
            rule(REPLY, "an answer", goto_of("reply", id)),
            self.icmp_error(goto_of(error, id)),
            rule(own, "bound to this uplink", goto_of("via", id)),
            rule(turned, "turns round", goto_of("uturn", id)),
        ];
        for (_, router) in Self::other_routers(uplink) {
            let own = format!("{} {ORIGINAL}", self.connection(self.spec.bound_mark(router)));
            let turned = format!("{} {ORIGINAL}", self.connection(self.spec.turned_mark(router)));
            rules.push(rule(own, "bound to a router of this uplink", goto_of("via", router)));
            rules.push(rule(turned, "turns round", goto_of("uturn", router)));
        }
        if self.spec.uplinks.len() > 1 {
            rules.push(rule(answered, "bound to another uplink", goto_of("answered", id)));
        }
        rules.extend(Self::other_routers(uplink).map(|(mac, router)| {
            let from = format!("-m mac --mac-source {}", mac_text(mac).to_uppercase());
            rule(from, "came from a router of its own", goto_of("offer", router))
        }));
        rules.push(rule("", "a first packet", goto_of("offer", id)));
        rules
    }

    /// Hardware address and id of an uplink's routers, except its usual one.
    fn other_routers(uplink: &Uplink) -> impl Iterator<Item = (Mac, u32)> {
        let routers = uplink.routers.iter().copied();
        routers.filter(|(_, router)| !uplink.is_router && *router != uplink.id)
    }

    /// Rules for packets of an answered connection that is bound to another uplink.
    fn answered(&self, id: u32) -> Vec<Rule> {
        let others = self.spec.uplinks.iter().filter(|other| other.id != id);
        let mut rules: Vec<Rule> = others
            .map(|o| rule(self.connection_of(o.id), "bound to that uplink", goto_of("stays", id)))
            .collect();
        rules.push(rule("", "its uplink has gone", goto_of("offer", id)));
        rules
    }

    /// Rules for packets that arrive on this uplink, of an answered connection that is bound to
    /// another one. They are let in and do not move the connection, unless the address that the
    /// client called has moved here.
    fn stays(&self, uplink: &Uplink) -> Vec<Rule> {
        let moved = goto_of("moved", uplink.id);
        let mut rules: Vec<Rule> = self
            .to_own_addresses(uplink)
            .map(|to| rule(to, "the address has moved", moved.clone()))
            .collect();
        rules.push(rule("", "answered", goto_of("via", uplink.id)));
        rules
    }

    /// Rules that unbind a connection, so that the packet counts as a first packet.
    fn moved(&self, id: u32) -> Vec<Rule> {
        vec![
            self.set_connection(String::new(), "bound anew", 0),
            rule("", "as a first packet", goto_of("offer", id)),
        ]
    }

    /// Rules for first packets. Their destination is known after DNAT.
    fn offer(&self, id: u32) -> Vec<Rule> {
        // No host answers such packets from their destination address, so they get no mark and
        // rp_filter judges them as without symroute.
        let many = match self.family {
            Family::V4 => "-m addrtype --dst-type BROADCAST,MULTICAST",
            Family::V6 => "-d ff00::/8",
        };
        let mut rules = vec![rule(many, "to many", RETURN)];
        if self.family == Family::V6 {
            rules.push(rule("-s fe80::/10", "link-local", RETURN));
        }
        let excluded = self.spec.exclude.iter().filter(|net| Family::of(net.ip()) == self.family);
        rules.extend(excluded.map(|net| {
            let called = format!("-m conntrack --ctorigdst {net}");
            rule(called, "a destination that is never bound", RETURN)
        }));
        if Spec::has_family(self.spec.left_out, self.family) {
            let to = in_set(names::LEFT_OUT_SET.of(self.family), "dst");
            rules.push(rule(to, "a pod that is left out", RETURN));
        }
        if self.spec.hairpin {
            rules.push(rule("", "hairpin", goto_of("via", id)));
            return rules;
        }
        if Spec::has_family(self.spec.hairpins, self.family) {
            let to = in_set(names::HAIRPIN_SET.of(self.family), "dst");
            rules.push(rule(to, "a pod that accepts hairpin", goto_of("via", id)));
        }
        rules.push(rule("", "the source is judged", goto_of("source", id)));
        rules
    }

    /// Rules that mark packets whose source lies outside. A local pod's source shows by its
    /// single-address route in main: an ip rule sends a look-up with the mark [`Field::ask_mark`]
    /// to main, for such routes only.
    fn source(&self, id: u32) -> Vec<Rule> {
        let inside = in_set(names::INSIDE.of(self.family), "src");
        let pod = format!(
            "-m rpfilter --loose --validmark -m set ! --match-set {} src",
            names::HOSTS.of(self.family)
        );
        // The ip rule compares the whole mark.
        let others = format!("-m mark ! --mark 0x0/{:#x}", !self.field().mask());
        let ask = format!("-j MARK --set-xmark {:#x}/0xffffffff", self.field().ask_mark());
        vec![
            rule(inside, "source lies inside", RETURN),
            rule(others, "a mark of another program", goto_of("via", id)),
            rule("", "ask main for a route to the source alone", ask),
            rule(pod, "the address of a local pod", goto("refuse")),
            rule("", "source lies outside", goto_of("via", id)),
        ]
    }

    /// Rules for a marked packet that arrived on an uplink. They bind requests. They clear a mark
    /// that was evidence only, before IPVS routes by it.
    fn forget(&self, request: &str) -> Vec<Rule> {
        vec![
            rule(ORIGINAL, "a request", goto(request)),
            rule(self.has_id("!"), "a bound reply", RETURN),
            rule("", "a reply that is not bound", goto("clear")),
        ]
    }

    /// Rules that clear the mark of a request that is not to be bound: ICMP errors and answered
    /// connections.
    fn passed_over(&self) -> Vec<Rule> {
        let mut rules = vec![self.icmp_error(goto("clear"))];
        rules.extend(self.spec.uplinks.iter().map(|u| {
            let answered = format!("{} {ANSWERED}", self.connection_of(u.id));
            rule(answered, "answered", goto("clear"))
        }));
        rules
    }

    /// Rules for forwarded requests. The outgoing interface shows whether the destination lies
    /// inside.
    fn request(&self) -> Vec<Rule> {
        let mut rules = self.passed_over();
        if Spec::has_family(self.spec.left_out, self.family) {
            let to = in_set(names::LEFT_OUT_SET.of(self.family), "dst");
            rules.push(rule(to, "a pod that is left out", goto("clear")));
        }
        if self.spec.host {
            let why = "NodePort, backend anywhere";
            rules.push(rule("-m conntrack --ctstate DNAT", why, goto("turn")));
        }
        let outside = self.spec.outside.iter();
        rules.extend(
            outside
                .map(|(_, name)| rule(format!("-o {name}"), "only passes through", goto("clear"))),
        );
        rules.push(rule("", "for something inside", format!("-j {}", named("take"))));
        rules.push(rule("", "a request needs its mark no more", goto("clear")));
        rules
    }

    /// Rules for DNATed requests. With a backend behind its own uplink the connection turns round.
    fn turn(&self) -> Vec<Rule> {
        let mut rules = vec![rule("", "bound", format!("-j {}", named("take")))];
        rules.extend(self.spec.uplinks.iter().map(|u| {
            let by_itself = format!("{} -o {}", self.mark(self.spec.bound_mark(u.id)), u.name);
            self.set_connection(
                by_itself,
                "to a backend behind this uplink",
                self.spec.turned_mark(u.id),
            )
        }));
        rules.push(rule("", "a request needs its mark no more", goto("clear")));
        rules
    }

    /// Rules that bind the connection to the uplink of the packet's mark.
    fn take(&self) -> Vec<Rule> {
        let (field, ids) = (self.field(), self.field().id_mask());
        let save = format!("-j CONNMARK --save-mark --nfmask {ids:#x} --ctmask {field}");
        let count = format!("-j {}", names::COUNT_BOUND);
        vec![
            rule(self.connection(0), "not bound yet", count),
            rule("", "bound to the uplink that it came in by", save),
        ]
    }

    /// Rules for requests to the node itself.
    fn local(&self) -> Vec<Rule> {
        let mut rules = self.passed_over();
        if self.spec.host {
            rules.push(rule("", "the node itself", format!("-j {}", named("take"))));
        }
        rules.push(rule("", "a request needs its mark no more", goto("clear")));
        rules
    }

    /// Rules for the node's own packets.
    fn output(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        if let Some(mark) = self.spec.unbound {
            // Rules by address are for connections that the pod opens.
            let by_others = format!("-j MARK --set-xmark {mark:#x}/{}", self.field());
            rules.push(rule(self.unbound_reply(0), "goes by the rules of others", by_others));
        }
        rules.extend([
            rule(self.has_id(""), "not bound", RETURN),
            rule(REPLY, "the node answers", goto("restore")),
        ]);
        rules
    }
}
