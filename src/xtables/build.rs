//! The rules of the iptables backend. What they do is told in docs/design.md; where a rule does
//! what one of [`crate::ruleset::build`] does, its comment says so in the same words.
//!
//! Table mangle comes before DNAT, so whom a request is for is known only in FORWARD and INPUT:
//! there it is bound. In PREROUTING it gets its uplink's mark as evidence for `rp_filter`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::model::{Chain, Ipset, Kind, Rule, Xtables};
use super::notes;
use crate::facts::{Family, Member, Variant};
use crate::mark::Field;
use crate::names;
use crate::netlink::ipset::whole;
use crate::ruleset::build::Spec;

/// Builds the desired chains and sets. `uplinks`: id and name of each. `inside`: see
/// [`super::inside`]. `made`: built-in chains that come with us.
#[must_use]
pub fn build(
    spec: &Spec<'_>,
    variant: Variant,
    families: impl IntoIterator<Item = Family>,
    uplinks: &[(u32, String)],
    inside: impl Fn(Family) -> Vec<Member>,
    made: &BTreeSet<(Family, String)>,
) -> Xtables {
    let mut out = Xtables { variant, chains: [].into(), sets: Vec::new() };
    for family in families {
        out.chains.insert(family, Builder { spec, family }.chains(uplinks));
        out.sets.extend(sets(spec, family, inside(family)));
    }
    out.sets.push(Ipset {
        name: names::NODE_SET,
        kind: Kind::Notes,
        family: Family::V4,
        members: notes::write(spec, made),
    });
    out
}

/// The ipset that goes by this name in the nftables table.
#[must_use]
pub fn ipset(set: &str) -> &'static str {
    let of = names::IPSETS.iter().find(|(table, _)| *table == set);
    of.map_or(names::NODE_SET, |(_, ipset)| ipset)
}

/// The set of prefixes inside, of a family.
#[must_use]
pub fn inside_set(family: Family) -> &'static str {
    match family {
        Family::V4 => names::INSIDE4,
        Family::V6 => names::INSIDE6,
    }
}

fn pods_set(family: Family) -> &'static str {
    ipset(crate::ruleset::sets::pods_set(family))
}

fn hairpin_set(family: Family) -> &'static str {
    ipset(crate::ruleset::sets::hairpin_set(family))
}

/// An address as a member of a set of addresses.
#[must_use]
pub fn member(address: IpAddr) -> Member {
    Member { address, prefix: whole(address), nomatch: false, comment: None }
}

fn sets(spec: &Spec<'_>, family: Family, inside: Vec<Member>) -> [Ipset; 3] {
    let of_family = |ip: &&IpAddr| Family::of(**ip) == family;
    let set = |name, all: &BTreeSet<IpAddr>| Ipset {
        name,
        kind: Kind::Addresses,
        family,
        members: all.iter().filter(of_family).map(|&ip| member(ip)).collect(),
    };
    let inside = Ipset {
        name: inside_set(family),
        kind: Kind::Prefixes,
        family,
        members: inside.into_iter().collect(),
    };
    [set(pods_set(family), spec.pods), set(hairpin_set(family), spec.hairpins), inside]
}

fn rule(matches: impl Into<String>, why: &'static str, target: impl Into<String>) -> Rule {
    Rule { matches: matches.into(), why, target: target.into() }
}

/// The full name of a chain of ours.
fn named(chain: &str) -> String {
    format!("{}{chain}", names::CHAIN_PREFIX)
}

fn of(chain: &str, id: u32) -> String {
    format!("{}{chain}-{id}", names::CHAIN_PREFIX)
}

fn goto(chain: &str) -> String {
    format!("-g {}", named(chain))
}

fn goto_of(chain: &str, id: u32) -> String {
    format!("-g {}", of(chain, id))
}

fn in_set(set: &str, side: &str) -> String {
    format!("-m set --match-set {set} {side}")
}

const ORIGINAL: &str = "-m conntrack --ctdir ORIGINAL";
const REPLY: &str = "-m conntrack --ctdir REPLY";
const RETURN: &str = "-j RETURN";

/// The chains of one family.
struct Builder<'a> {
    spec: &'a Spec<'a>,
    family: Family,
}

impl Builder<'_> {
    fn field(&self) -> Field {
        self.spec.field
    }

    fn chains(&self, uplinks: &[(u32, String)]) -> Vec<Chain> {
        let mut chains = Vec::new();
        let mut chain = |name, rules| chains.push(Chain { name, hook: None, rules });
        for &(id, _) in uplinks {
            let mark = self.field().of(id);
            chain(of("via", id), vec![self.set_mark("leaves by this uplink", mark)]);
            let sent = mark | self.field().d();
            chain(of("uturn", id), vec![self.set_mark("turns round on this uplink", sent)]);
            chain(of("reply", id), self.reply(id));
            chain(of("in", id), self.arrive(id));
        }
        let counts = |why| uplinks.iter().map(move |&(id, _)| self.count(id, why));
        let restored = std::iter::once(self.restore()).chain(counts("counts what leaves by it"));
        chain(names::COUNT_RESTORED.into(), restored.collect());
        chain(names::COUNT_BOUND.into(), counts("counts connections bound to it").collect());
        chain(named("clear"), vec![self.set_mark("was evidence only", 0)]);
        chain(named("request"), self.request());
        chain(named("local"), self.local());
        let unmarked = || rule(self.marked(""), "not ours", RETURN);
        let mut forwarded = vec![unmarked()];
        // IPVS would route by the mark.
        if !self.spec.ipvs {
            forwarded.extend(uplinks.iter().map(|&(id, _)| self.done(id)));
        }
        forwarded.extend(self.forget("request"));
        chain(named("forwarded"), forwarded);
        chain(named("received"), [vec![unmarked()], self.forget("local")].concat());
        chains.extend(self.hooks(uplinks));
        chains
    }

    fn hooks(&self, uplinks: &[(u32, String)]) -> [Chain; 5] {
        let from = |target: &dyn Fn(u32) -> String| -> Vec<Rule> {
            let rules = uplinks.iter();
            rules.map(|(id, name)| rule(format!("-i {name}"), "came in by", target(*id))).collect()
        };
        let hook = |hook: &'static str, rules| {
            let name = named(&hook.to_lowercase());
            Chain { name, hook: Some(hook), rules }
        };
        let mut prerouting = from(&|id| goto_of("in", id));
        prerouting.push(rule(self.bound("!"), "of a bound connection", goto("restore")));
        let clear = format!("-j MARK --set-xmark 0x0/{}", self.field());
        [
            hook("PREROUTING", prerouting),
            hook("INPUT", from(&|_| goto("received"))),
            hook("FORWARD", from(&|_| goto("forwarded"))),
            hook("OUTPUT", self.output()),
            hook("POSTROUTING", vec![rule(self.bound("!"), "exact comparers come next", clear)]),
        ]
    }

    /// The packet carries a mark of ours; with "!" it does, with "" it does not.
    fn marked(&self, not: &str) -> String {
        format!("-m mark {not}{}--mark 0x0/{}", spaced(not), self.field())
    }

    /// The same for the connection.
    fn bound(&self, not: &str) -> String {
        format!("-m connmark {not}{}--mark 0x0/{}", spaced(not), self.field())
    }

    /// The connection carries a plain id, without D.
    fn plain(&self) -> String {
        format!("{} -m connmark --mark 0x0/{:#x}", self.bound("!"), self.field().d())
    }

    fn set_mark(&self, why: &'static str, mark: u32) -> Rule {
        rule("", why, format!("-j MARK --set-xmark {mark:#x}/{}", self.field()))
    }

    /// A packet of a connection that is bound where it should be.
    fn done(&self, id: u32) -> Rule {
        let (mark, field) = (self.field().of(id), self.field());
        let matches = format!("-m mark --mark {mark:#x}/{field} {}", self.connection_is(mark));
        rule(matches, "bound already", RETURN)
    }

    /// Counts packets with the mark of an uplink.
    fn count(&self, id: u32, why: &'static str) -> Rule {
        rule(format!("-m mark --mark {:#x}/{}", self.field().of(id), self.field()), why, RETURN)
    }

    /// Counts a connection that is bound by the next rule, which asks for the same.
    fn newly(&self, matches: &str) -> Rule {
        let matches = format!("{} {matches}", self.bound(""));
        rule(matches.trim_end(), "not bound yet", format!("-j {}", names::COUNT_BOUND))
    }

    fn restore(&self) -> Rule {
        let (field, ids) = (self.field(), self.field().id_mask());
        let target = format!("-j CONNMARK --restore-mark --nfmask {field} --ctmask {ids:#x}");
        rule("", "leaves by the uplink of its connection", target)
    }

    fn save(&self, matches: impl Into<String>, why: &'static str) -> Rule {
        let (field, ids) = (self.field(), self.field().id_mask());
        let target = format!("-j CONNMARK --save-mark --nfmask {ids:#x} --ctmask {field}");
        rule(matches, why, target)
    }

    fn icmp_error(&self, target: String) -> Rule {
        let protocol = match self.family {
            Family::V4 => "icmp",
            Family::V6 => "ipv6-icmp",
        };
        let matches = format!("-p {protocol} -m conntrack --ctstate RELATED");
        rule(matches, "an ICMP error binds nothing: anybody can send one", target)
    }

    fn connection_is(&self, mark: u32) -> String {
        format!("-m connmark --mark {mark:#x}/{}", self.field())
    }

    /// A packet in the reply direction came in by this uplink.
    fn reply(&self, id: u32) -> Vec<Rule> {
        let own = self.connection_is(self.field().of(id));
        vec![
            rule(own, "leaves by the uplink it came in on", goto_of("uturn", id)),
            rule(self.plain(), "leaves by the uplink of the request", goto("restore")),
            rule(
                "-m conntrack --ctstate SNAT",
                "evidence for rp_filter: SNATed here, so conntrack knows it",
                goto_of("via", id),
            ),
        ]
    }

    /// A packet came in by this uplink.
    fn arrive(&self, id: u32) -> Vec<Rule> {
        let own = format!("{} {ORIGINAL}", self.connection_is(self.field().of(id)));
        let mut rules = vec![
            rule(own, "bound to this uplink", goto_of("via", id)),
            rule(REPLY, "an answer", goto_of("reply", id)),
            self.icmp_error(goto_of("via", id)),
        ];
        if self.family == Family::V6 {
            rules.push(rule("-s fe80::/10", "link-local", RETURN));
        }
        let (pods, inside) = (pods_set(self.family), inside_set(self.family));
        if !self.spec.hairpin {
            let accepting = in_set(hairpin_set(self.family), "dst");
            rules.push(rule(accepting, "a pod that accepts hairpin", goto_of("via", id)));
            rules.push(rule(in_set(pods, "src"), "the address of a pod, from outside", RETURN));
            rules.push(rule(in_set(inside, "src"), "source lies inside", RETURN));
        }
        rules.push(rule(in_set(pods, "dst"), "to a pod of ours", goto_of("via", id)));
        rules.push(rule(in_set(inside, "dst"), "to somebody else inside", RETURN));
        rules.push(rule("", "whom for is known after DNAT", goto_of("via", id)));
        rules
    }

    /// Where a marked packet that came in by an uplink goes: requests are bound, and what was
    /// marked as evidence only loses the mark, before IPVS routes by it.
    fn forget(&self, request: &str) -> Vec<Rule> {
        vec![
            rule(ORIGINAL, "a request", goto(request)),
            rule(self.plain(), "a bound reply", RETURN),
            rule("", "a reply that is not bound", goto("clear")),
        ]
    }

    /// A request that is forwarded.
    fn request(&self) -> Vec<Rule> {
        let mut rules = vec![self.icmp_error(goto("clear"))];
        let to_pod = in_set(pods_set(self.family), "dst");
        rules.extend([self.newly(&to_pod), self.save(to_pod, "to a pod of ours")]);
        if self.spec.host {
            let node_port = "-m conntrack --ctstate DNAT";
            rules.push(self.newly(node_port));
            rules.push(self.save(node_port, "NodePort, backend anywhere"));
        }
        rules.push(rule("", "a request needs its mark no more", goto("clear")));
        rules
    }

    /// A request to the node itself.
    fn local(&self) -> Vec<Rule> {
        let mut rules = vec![self.icmp_error(goto("clear"))];
        if self.spec.host {
            rules.extend([self.newly(""), self.save("", "the node itself")]);
        }
        rules.push(rule("", "a request needs its mark no more", goto("clear")));
        rules
    }

    /// The node's own packets.
    fn output(&self) -> Vec<Rule> {
        let d = self.field().d();
        let sent = format!("{ORIGINAL} -m connmark --mark {d:#x}/{d:#x}");
        vec![
            rule(self.bound(""), "not bound", RETURN),
            rule(format!("{REPLY} {}", self.plain()), "the node answers", goto("restore")),
            rule(sent, "sent out by an uplink", goto("restore")),
        ]
    }
}

fn spaced(not: &str) -> &str {
    if not.is_empty() { "" } else { " " }
}
