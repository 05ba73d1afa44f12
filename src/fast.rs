//! The fast path: what an ADD costs on a node where everything is in place. A handful of
//! requests that each read or write one object; no dump, no lock, nothing executed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use crate::apply::Kernel;
use crate::config::Settings;
use crate::facts::{ElementData, Family};
use crate::names;
use crate::netlink::nft::{self, Batch};
use crate::netlink::route::{Lookup, Way, lookup};
use crate::netlink::uapi::RTN_UNICAST;
use crate::netlink::{Error, Socket};
use crate::ruleset::sets::{address_key, hairpin_set, number_key, pods_set};
use crate::state::Attachment;

/// Addresses outside of any cluster (RFC 5737, RFC 3849), to ask for the way to the outside.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Why the fast path does not do: the slow one has to look.
#[derive(Debug, PartialEq, Eq)]
pub struct Surprise(pub String);

impl From<Error> for Surprise {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// Proves that the node state serves pods with these addresses: the settings are in force, and
/// for the uplink by which the pod's own packets leave, a reply that is bound to it finds its
/// table and gateway, and a request that came in by it passes the reverse path filter and finds
/// the pod.
pub fn prove(kernel: &mut Kernel, settings: &Settings, pod: &[IpAddr]) -> Result<(), Surprise> {
    let Kernel { rtnetlink, nftables } = kernel;
    let in_force = number_key(settings.fingerprint());
    if nft::element(nftables, names::IN_FORCE, &in_force)?.is_none() {
        return Err(Surprise("these settings are not in force".into()));
    }
    for &address in pod {
        prove_address(rtnetlink, nftables, settings, address)?;
    }
    Ok(())
}

fn prove_address(
    rtnetlink: &mut Socket,
    nftables: &mut Socket,
    settings: &Settings,
    pod: IpAddr,
) -> Result<(), Surprise> {
    // A pod that is not routed by this node (macvlan, a route still to come) proves nothing.
    let Some(side) = way(rtnetlink, &Lookup { to: pod, from: None, mark: 0 })? else {
        return Ok(());
    };
    let outside = match Family::of(pod) {
        Family::V4 => IpAddr::V4(OUTSIDE.0),
        Family::V6 => IpAddr::V6(OUTSIDE.1),
    };
    let from = Some((pod, side.link));
    let Some(out) = way(rtnetlink, &Lookup { to: outside, from, mark: 0 })? else {
        return Ok(());
    };
    // A pod that is reached by the very interface it leaves by (macvlan) does not cross the node.
    if out.link == side.link {
        return Ok(());
    }
    let id = match nft::element(nftables, names::IDS, &number_key(out.link))? {
        Some(ElementData::Value(mark)) => {
            let bytes = mark.as_slice().try_into().unwrap_or_default();
            settings.field.id(u32::from_ne_bytes(bytes))
        }
        _ => {
            return Err(Surprise(format!("interface #{} is not known yet", out.link)));
        }
    };
    // Known, and no uplink by these settings.
    if id == 0 {
        return Ok(());
    }
    let bound = way(rtnetlink, &Lookup { to: outside, from, mark: settings.field.of(id) })?;
    match bound {
        Some(bound) if bound.link == out.link && bound.table == settings.table(id) => {}
        other => return Err(Surprise(format!("a reply bound to uplink {id} goes {other:?}"))),
    }
    // The request on its way in. The kernel checks the way back too, as strict rp_filter would.
    let from = Some((outside, out.link));
    match way(rtnetlink, &Lookup { to: pod, from, mark: settings.field.of(id) })? {
        Some(request) if request.link == side.link => Ok(()),
        other => Err(Surprise(format!("a request from uplink {id} goes {other:?}"))),
    }
}

/// Where the kernel would send it; none where it would not.
fn way(rtnetlink: &mut Socket, question: &Lookup) -> Result<Option<Way>, Error> {
    match lookup(rtnetlink, question) {
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
    }
}

/// An address in one of the pods' sets.
pub type Membership = (&'static str, IpAddr);

/// The sets that an attachment's addresses belong in.
#[must_use]
pub fn memberships(attachment: &Attachment) -> Vec<Membership> {
    attachment.addresses.iter().flat_map(|&ip| memberships_of(ip, attachment.hairpin)).collect()
}

/// The sets that an address belongs in.
pub fn memberships_of(ip: IpAddr, hairpin: bool) -> impl Iterator<Item = Membership> {
    let family = Family::of(ip);
    let extra = hairpin.then(|| (hairpin_set(family), ip));
    std::iter::once((pods_set(family), ip)).chain(extra)
}

/// Whether an address is in a set.
pub fn is_enrolled(nftables: &mut Socket, set: &str, ip: IpAddr) -> Result<bool, Error> {
    Ok(nft::element(nftables, set, &address_key(ip))?.is_some())
}

/// Enrolls addresses: one batch that only adds, so it costs the same on an empty and a full node.
pub fn enroll(nftables: &mut Socket, members: &[Membership]) -> Result<(), Error> {
    let mut batch = Batch::default();
    for (set, ip) in members {
        batch.add_elements(set, &[(address_key(*ip), ElementData::None)]);
    }
    batch.commit(nftables)
}

/// Takes addresses out again. What is not enrolled, or has no table any more, is no error.
pub fn withdraw(nftables: &mut Socket, members: &[Membership]) -> Result<(), Error> {
    let mut batch = Batch::default();
    for (set, ip) in members {
        batch.delete_elements(set, &[(address_key(*ip), ElementData::None)]);
    }
    match batch.commit(nftables) {
        // One element that is not there fails the whole batch.
        Err(error) if error.errno == Errno::ENOENT && members.len() > 1 => {
            members.iter().try_for_each(|member| withdraw(nftables, &[*member]))
        }
        Err(error) if error.errno == Errno::ENOENT => Ok(()),
        other => other,
    }
}
