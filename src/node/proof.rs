//! Proves that a node is ready by look-ups of single objects: no dump, no lock, no change. The look-ups pass no
//! rule by a pod's address.

use std::net::IpAddr;

use nix::errno::Errno::{self, *};
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::apply::Kernel;
use crate::backend::Marker;
use crate::backend::iptables::{chains, ipset, node_set};
use crate::backend::nftables::{sets, table};
use crate::model::{Facts, Family};
use crate::names;
use crate::netlink::route::{Lookup, Way, lookups};
use crate::netlink::uapi::{RTN_LOCAL, RTN_UNICAST};
use crate::netlink::{Error, Socket};
use crate::plan::proof::{OUTSIDE, Question, with_one_way};
use crate::state::{Ordinary, Ready, State};

/// Maximum number of look-ups in one message: more answers may overflow the socket.
const AT_ONCE: usize = 32;

/// Why the fast path cannot be used; the slow path takes over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Surprise(pub String);

impl From<Error> for Surprise {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// Proves that one of these fingerprints is in force (see [`crate::config::Settings::fingerprint`]), and that
/// each uplink has its rules, table, gateway and `src_valid_mark`. Returns the values of the proof.
pub(crate) fn prove(state: &State, kernel: &mut Kernel, forms: &[u32]) -> Result<Ready, Surprise> {
    let ready = state.ready().ok_or_else(|| Surprise("the node is not ready".into()))?;
    if !ready.fulfils.iter().any(|form| forms.contains(form)) {
        return Err(Surprise("other settings are in force".into()));
    }
    check_in_force(&mut kernel.netfilter, &ready)?;
    check_answers(kernel, ready.questions.iter())?;
    Ok(ready)
}

/// Proves that a pod with a data plane of its own is ready, for `interface` and the existing interfaces among
/// `others`.
pub(crate) fn prove_of_pod<'a>(
    state: &State,
    kernel: &mut Kernel,
    forms: &[u32],
    interface: &str,
    others: impl Iterator<Item = &'a str>,
) -> Result<(), Surprise> {
    let ready = state.ready().ok_or_else(|| Surprise("the pod is not ready".into()))?;
    if !ready.fulfils.iter().any(|form| forms.contains(form)) {
        return Err(Surprise("other settings are in force in the pod".into()));
    }
    let missing = |_| Surprise(format!("the pod has no interface {interface}"));
    let mut links = vec![if_nametoindex(interface).map_err(missing)?];
    links.extend(others.filter_map(|name| if_nametoindex(name).ok()));
    if ready.questions.is_empty() {
        // The pod has no second interface that a reply could leave by.
        return Ok(());
    }
    check_in_force(&mut kernel.netfilter, &ready)?;
    if ready.marker == Marker::Nftables && !table::has_rules(&mut kernel.netfilter)? {
        return Err(Surprise("the rules of table inet symroute are gone".into()));
    }
    check_answers(kernel, ready.questions.iter().filter(|question| links.contains(&question.link)))
}

/// Does the look-ups of these questions, and fails at the first wrong answer.
fn check_answers<'a>(
    kernel: &mut Kernel,
    questions: impl Iterator<Item = &'a Question>,
) -> Result<(), Surprise> {
    let mut lookups = Vec::with_capacity(questions.size_hint().0);
    for question in questions {
        lookups.push((question, reply_lookup(question)));
        lookups.extend(question.local.map(|to| (question, request_lookup(question, to))));
    }
    for chunk in lookups.chunks(AT_ONCE) {
        let asked: Vec<Lookup> = chunk.iter().map(|(_, lookup)| *lookup).collect();
        for ((question, lookup), way) in chunk.iter().zip(ways(&mut kernel.rtnetlink, &asked)?) {
            if !is_right(question, lookup, way.as_ref()) {
                return Err(Surprise(describe_answer(question, lookup, way.as_ref())));
            }
        }
    }
    Ok(())
}

/// Where the node sends packets without a mark. Later proofs compare their answers with these.
pub(crate) fn ordinary_ways(kernel: &mut Kernel, facts: &Facts) -> Result<Vec<Ordinary>, Error> {
    let outside: Vec<_> = with_one_way(facts).map(|family| OUTSIDE.of(family)).collect();
    let ways = ways(&mut kernel.rtnetlink, &unmarked(outside.iter().copied()))?;
    let each = outside.into_iter().zip(ways).filter_map(|(to, way)| {
        let Way { link, table, gateway, .. } = way?;
        Some(Ordinary { to, link, table, gateway })
    });
    Ok(each.collect())
}

/// Proves that the node's own way outside is still the one that the uplinks' tables were made for. A different
/// way harms no pod, but the node needs a reconcile.
pub(crate) fn check_ordinary_ways(kernel: &mut Kernel, ready: &Ready) -> Result<(), Surprise> {
    let asked = unmarked(ready.ordinary.iter().map(|known| known.to));
    for (known, way) in ready.ordinary.iter().zip(ways(&mut kernel.rtnetlink, &asked)?) {
        let now = way.map(|way| (way.link, way.table, way.gateway));
        if now != Some((known.link, known.table, known.gateway)) {
            return Err(Surprise(format!("the way to {} has changed", known.to)));
        }
    }
    Ok(())
}

/// Where the node sends packets to these addresses.
pub(crate) fn ways_to(
    kernel: &mut Kernel,
    addresses: &[IpAddr],
) -> Result<Vec<Option<Way>>, Error> {
    ways(&mut kernel.rtnetlink, &unmarked(addresses.iter().copied()))
}

fn unmarked(to: impl Iterator<Item = IpAddr>) -> Vec<Lookup> {
    to.map(|to| Lookup { to, from: None, iif: None, mark: 0 }).collect()
}

/// The look-up of a reply that is bound to the uplink.
fn reply_lookup(question: &Question) -> Lookup {
    Lookup { to: question.outside, from: None, iif: None, mark: question.mark }
}

/// The look-up of a request that arrives on the uplink. The kernel checks the way back too, as strict
/// `rp_filter` would.
fn request_lookup(question: &Question, to: IpAddr) -> Lookup {
    Lookup { to, from: Some(question.outside), iif: Some(question.link), mark: question.mark }
}

/// The wrong answer as text for a message.
fn describe_answer(question: &Question, lookup: &Lookup, way: Option<&Way>) -> String {
    let name = |link: u32| {
        let name = if_indextoname(link).ok().and_then(|name| name.into_string().ok());
        name.unwrap_or_else(|| format!("#{link}"))
    };
    let (uplink, to) = (name(question.link), lookup.to);
    let what = if lookup.iif.is_some() { "a request that came in by" } else { "a reply bound to" };
    let goes = way.map_or("has no route".into(), |way| {
        format!("leaves by {} and table {}", name(way.link), way.table)
    });
    format!("{what} uplink {uplink}, to {to}, {goes}")
}

fn is_right(question: &Question, lookup: &Lookup, way: Option<&Way>) -> bool {
    match (lookup.iif, way) {
        (None, Some(way)) => {
            (way.kind, way.link, way.table) == (RTN_UNICAST, question.link, question.table)
        }
        (Some(_), Some(way)) => way.kind == RTN_LOCAL,
        (_, None) => false,
    }
}

/// Checks the kernel's own record of what is in force, and with iptables that the rules still exist.
fn check_in_force(socket: &mut Socket, ready: &Ready) -> Result<(), Surprise> {
    let number = ready.fingerprint;
    let found = match ready.marker {
        Marker::Nftables => {
            table::element(socket, names::IN_FORCE, &sets::number_key(number))?.is_some()
        }
        Marker::Iptables(_) => ipset::set(socket, names::NODE_SET)?
            .is_some_and(|set| node_set::read(&set.members).in_force == Some(number)),
    };
    if !found {
        return Err(Surprise("these settings are not in force".into()));
    }
    if ready.marker == Marker::Nftables {
        return Ok(());
    }
    let is_used =
        |family: &Family| ready.questions.iter().any(|q| Family::of(q.outside) == *family);
    Family::ALL.into_iter().filter(is_used).try_for_each(|family| check_rules(socket, family))
}

/// Checks that iptables rules of the family refer to symroute's ipset. If another program has flushed the
/// table, the set remains without a reference.
fn check_rules(socket: &mut Socket, family: Family) -> Result<(), Surprise> {
    match ipset::references(socket, names::INSIDE.of(family))? {
        Some(1..) => Ok(()),
        Some(0) | None => Err(Surprise(format!("the {family} rules of iptables are gone"))),
    }
}

/// Proves that requests from the uplinks reach a pod on the same way as the node's own packets. An address that
/// the node does not route (macvlan) proves nothing.
pub(crate) fn reaches(ready: &Ready, kernel: &mut Kernel, pod: &[IpAddr]) -> Result<(), Surprise> {
    let sides = unmarked(pod.iter().copied());
    for chunk in sides.chunks(AT_ONCE) {
        for (side, way) in chunk.iter().zip(ways(&mut kernel.rtnetlink, chunk)?) {
            let Some(way) = way.filter(|way| way.kind == RTN_UNICAST) else { continue };
            let of_family =
                |q: &&Question| Family::of(q.outside) == Family::of(side.to) && q.link != way.link;
            for question in ready.questions.iter().filter(of_family) {
                let request = request_lookup(question, side.to);
                let found = ways(&mut kernel.rtnetlink, &[request])?.into_iter().next().flatten();
                if found.is_none_or(|found| found.link != way.link) {
                    return Err(Surprise(describe_answer(question, &request, found.as_ref())));
                }
            }
        }
    }
    Ok(())
}

/// Proves that the kernel's set of hairpin pods has these addresses.
pub(crate) fn accepts_hairpin(
    ready: &Ready,
    kernel: &mut Kernel,
    pod: &[IpAddr],
) -> Result<(), Surprise> {
    let socket = &mut kernel.netfilter;
    for &address in pod {
        let family = Family::of(address);
        let found = match ready.marker {
            Marker::Nftables => {
                table::element(socket, names::HAIRPIN.of(family), &sets::address_key(address))?
                    .is_some()
            }
            Marker::Iptables(_) => {
                ipset::contains(socket, names::HAIRPIN_SET.of(family), &chains::member(address))?
            }
        };
        if !found {
            return Err(Surprise(format!("{address} is not among the pods that accept hairpin")));
        }
    }
    Ok(())
}

/// Errors of a look-up that mean: no route, a martian, or a host that does not answer.
const NOWHERE: [Errno; 6] = [ENETUNREACH, EINVAL, EHOSTUNREACH, EACCES, EXDEV, ENODEV];

/// Where the kernel would send each packet; none where it would send it nowhere.
pub(crate) fn ways(
    rtnetlink: &mut Socket,
    questions: &[Lookup],
) -> Result<Vec<Option<Way>>, Error> {
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let way = |answer: Result<Way, Error>| match answer {
        Ok(way) => Ok(Some(way)),
        Err(error) if NOWHERE.contains(&error.errno) => Ok(None),
        Err(error) => Err(error),
    };
    lookups(rtnetlink, questions)?.into_iter().map(way).collect()
}
