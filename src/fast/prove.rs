//! The proof that a pod is served as the node is, in questions about single objects: three messages
//! to rtnetlink and one to netfilter, however many addresses the pod has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use super::{Enrolled, Surprise};
use crate::apply::Kernel;
use crate::config::Settings;
use crate::facts::Family;
use crate::netlink::route::{Lookup, Way, lookups};
use crate::netlink::uapi::RTN_UNICAST;
use crate::netlink::{Error, Socket};
use crate::state::Marking;

/// Addresses outside of any cluster (RFC 5737, RFC 3849), to ask for the way to the outside.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Proves that the node state serves pods with these addresses: the settings are in force, and
/// for the uplink by which the pod's own packets leave, a reply that is bound to it finds its
/// table and gateway, and a request that came in by it passes the reverse path filter and finds
/// the pod.
///
/// The settings may be in force in any of the forms that `in_force` names; see
/// [`Settings::fingerprint`].
pub fn prove(
    kernel: &mut Kernel,
    marking: Marking,
    settings: &Settings,
    in_force: &[u32],
    pod: &[IpAddr],
) -> Result<(), Surprise> {
    let Kernel { rtnetlink, netfilter, .. } = kernel;
    let crossings = crossings(rtnetlink, pod)?;
    let mut enrolled = Enrolled::at(marking, netfilter);
    let links: Vec<u32> = crossings.iter().map(|crossing| crossing.out).collect();
    let ids = enrolled.ids(settings, in_force, &links)?;
    for &address in pod {
        enrolled.check_rules(Family::of(address))?;
    }
    let mut bound = Vec::new();
    for (crossing, id) in crossings.into_iter().zip(ids) {
        match id {
            Some(0) => {}
            Some(id) => bound.push((crossing, id)),
            None => return Err(Surprise(format!("interface #{} is not known yet", crossing.out))),
        }
    }
    prove_bound(rtnetlink, settings, &bound)
}

/// How a pod's packets cross the node.
struct Crossing {
    pod: IpAddr,
    /// An address outside, of the same family.
    outside: IpAddr,
    /// Index of the interface towards the pod.
    side: u32,
    /// Index of the interface by which its packets leave.
    out: u32,
}

/// The ways of those addresses that can prove something: not of a pod that is not routed by this
/// node (macvlan, a route still to come), or is reached by the very interface it leaves by.
fn crossings(rtnetlink: &mut Socket, pod: &[IpAddr]) -> Result<Vec<Crossing>, Error> {
    let to_pod = pod.iter().map(|&to| Lookup { to, from: None, mark: 0 });
    let sides = ways(rtnetlink, to_pod)?;
    let routed = pod.iter().zip(sides).filter_map(|(&pod, side)| {
        let outside = match Family::of(pod) {
            Family::V4 => IpAddr::V4(OUTSIDE.0),
            Family::V6 => IpAddr::V6(OUTSIDE.1),
        };
        Some(Crossing { pod, outside, side: side?.link, out: 0 })
    });
    let routed: Vec<Crossing> = routed.collect();
    let outs = ways(rtnetlink, routed.iter().map(|crossing| crossing.reply(0)))?;
    let crossings = routed.into_iter().zip(outs);
    let crossings = crossings.filter_map(|(c, out)| Some(Crossing { out: out?.link, ..c }));
    Ok(crossings.filter(|crossing| crossing.out != crossing.side).collect())
}

impl Crossing {
    /// A packet from the pod to the outside.
    fn reply(&self, mark: u32) -> Lookup {
        Lookup { to: self.outside, from: Some((self.pod, self.side)), mark }
    }

    /// A packet from the outside to the pod. The kernel checks the way back too, as strict
    /// `rp_filter` would.
    fn request(&self, mark: u32) -> Lookup {
        Lookup { to: self.pod, from: Some((self.outside, self.out)), mark }
    }
}

/// For pods that leave by the uplinks with these ids.
fn prove_bound(
    rtnetlink: &mut Socket,
    settings: &Settings,
    bound: &[(Crossing, u32)],
) -> Result<(), Surprise> {
    let questions = bound.iter().flat_map(|(crossing, id)| {
        let mark = settings.field.of(*id);
        [crossing.reply(mark), crossing.request(mark)]
    });
    let found = ways(rtnetlink, questions)?;
    for ((crossing, id), found) in bound.iter().zip(found.chunks(2)) {
        match found.first() {
            Some(Some(reply))
                if reply.link == crossing.out && reply.table == settings.table(*id) => {}
            other => return Err(Surprise(format!("a reply bound to uplink {id} goes {other:?}"))),
        }
        match found.get(1) {
            Some(Some(request)) if request.link == crossing.side => {}
            other => return Err(Surprise(format!("a request from uplink {id} goes {other:?}"))),
        }
    }
    Ok(())
}

/// Where the kernel would send each; none where it would not.
fn ways(
    rtnetlink: &mut Socket,
    questions: impl Iterator<Item = Lookup>,
) -> Result<Vec<Option<Way>>, Error> {
    let questions: Vec<Lookup> = questions.collect();
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let way = |answer: Result<Way, Error>| match answer {
        Ok(way) => Ok((way.kind == RTN_UNICAST).then_some(way)),
        Err(error)
            if matches!(
                error.errno,
                // No route; a martian; a host that does not answer.
                Errno::ENETUNREACH
                    | Errno::EINVAL
                    | Errno::EHOSTUNREACH
                    | Errno::EACCES
                    | Errno::EXDEV
                    | Errno::ENODEV
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    };
    lookups(rtnetlink, &questions)?.into_iter().map(way).collect()
}
