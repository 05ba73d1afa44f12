//! The fast path: what an ADD costs on a node where everything is in place. A handful of
//! requests that each read or write one object; no dump, no lock, nothing executed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use crate::apply::Kernel;
use crate::config::Settings;
use crate::facts::{ElementData, Family};
use crate::gather::has_ipvs;
use crate::names;
use crate::netlink::nft::{self, Batch};
use crate::netlink::route::{Lookup, Way, lookup};
use crate::netlink::uapi::RTN_UNICAST;
use crate::netlink::{Error, Socket, ipset};
use crate::ruleset::sets::{address_key, hairpin_set, number_key, pods_set};
use crate::state::{Attachment, Marking};
use crate::xtables::build::{inside_set, ipset as ipset_named, member};
use crate::xtables::notes;

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

/// Where the addresses of pods and the ids of uplinks are kept.
#[derive(Debug)]
pub struct Enrolled<'a> {
    marking: Marking,
    socket: &'a mut Socket,
}

/// Proves that the node state serves pods with these addresses: the settings are in force, and
/// for the uplink by which the pod's own packets leave, a reply that is bound to it finds its
/// table and gateway, and a request that came in by it passes the reverse path filter and finds
/// the pod.
pub fn prove(
    kernel: &mut Kernel,
    marking: Marking,
    settings: &Settings,
    pod: &[IpAddr],
) -> Result<(), Surprise> {
    let Kernel { rtnetlink, netfilter, .. } = kernel;
    let mut enrolled = Enrolled::at(marking, netfilter);
    let ids = enrolled.ids(settings.fingerprint(has_ipvs()))?;
    for &address in pod {
        enrolled.check_rules(Family::of(address))?;
        prove_address(rtnetlink, &mut enrolled, &ids, settings, address)?;
    }
    Ok(())
}

fn prove_address(
    rtnetlink: &mut Socket,
    enrolled: &mut Enrolled<'_>,
    ids: &Ids,
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
    let Some(id) = enrolled.id(ids, settings, out.link)? else {
        return Err(Surprise(format!("interface #{} is not known yet", out.link)));
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

/// The ids of the uplinks.
enum Ids {
    /// In a map of the table, of which one element is asked for.
    InTable,
    /// Read with the few notes of the node.
    Noted(BTreeMap<u32, u32>),
}

impl<'a> Enrolled<'a> {
    /// In the table or in ipsets.
    pub fn at(marking: Marking, socket: &'a mut Socket) -> Self {
        Self { marking, socket }
    }

    /// The ids, if the settings with this fingerprint are in force.
    fn ids(&mut self, fingerprint: u32) -> Result<Ids, Surprise> {
        let ids = match self.marking {
            Marking::Nftables => {
                let key = number_key(fingerprint);
                nft::element(self.socket, names::IN_FORCE, &key)?.map(|_| Ids::InTable)
            }
            Marking::Iptables => ipset::set(self.socket, names::NODE_SET)?
                .map(|set| notes::read(&set.members))
                .filter(|notes| notes.in_force == Some(fingerprint))
                .map(|notes| Ids::Noted(notes.ids)),
        };
        ids.ok_or_else(|| Surprise("these settings are not in force".into()))
    }

    /// The id of an interface; 0 for one that is no uplink by the settings.
    fn id(&mut self, ids: &Ids, settings: &Settings, link: u32) -> Result<Option<u32>, Surprise> {
        match ids {
            Ids::Noted(ids) => Ok(ids.get(&link).copied()),
            Ids::InTable => Ok(match nft::element(self.socket, names::IDS, &number_key(link))? {
                Some(ElementData::Value(mark)) => {
                    let bytes = mark.as_slice().try_into().unwrap_or_default();
                    Some(settings.field.id(u32::from_ne_bytes(bytes)))
                }
                _ => None,
            }),
        }
    }

    /// With iptables the rules live apart from what they look into. Somebody who flushes the
    /// table leaves a set that no rule refers to.
    fn check_rules(&mut self, family: Family) -> Result<(), Surprise> {
        if self.marking == Marking::Nftables {
            return Ok(());
        }
        match ipset::references(self.socket, inside_set(family))? {
            Some(1..) => Ok(()),
            Some(0) => Err(Surprise(format!("the {family} rules of iptables are gone"))),
            None => Err(Surprise(format!("{family} is not in use yet"))),
        }
    }

    /// Whether an address is in a set.
    pub fn contains(&mut self, set: &str, ip: IpAddr) -> Result<bool, Error> {
        match self.marking {
            Marking::Nftables => Ok(nft::element(self.socket, set, &address_key(ip))?.is_some()),
            Marking::Iptables => ipset::contains(self.socket, ipset_named(set), &member(ip)),
        }
    }

    /// The name of a set, for a person.
    #[must_use]
    pub fn name(&self, set: &str) -> String {
        match self.marking {
            Marking::Nftables => format!("set {set} of table inet symroute"),
            Marking::Iptables => format!("ipset {}", ipset_named(set)),
        }
    }

    /// Enrolls addresses: only adds, so it costs the same on an empty and a full node.
    pub fn enroll(&mut self, members: &[Membership]) -> Result<(), Error> {
        match self.marking {
            Marking::Nftables => {
                let mut batch = Batch::default();
                for (set, ip) in members {
                    batch.add_elements(set, &[(address_key(*ip), ElementData::None)]);
                }
                batch.commit(self.socket)
            }
            Marking::Iptables => members.iter().try_for_each(|(set, ip)| {
                ipset::add(self.socket, ipset_named(set), &[member(*ip)])
            }),
        }
    }

    /// Takes addresses out again. What is not enrolled, or has no set any more, is no error.
    pub fn withdraw(&mut self, members: &[Membership]) -> Result<(), Error> {
        if self.marking == Marking::Nftables {
            return self.withdraw_elements(members);
        }
        members.iter().try_for_each(|(set, ip)| {
            match ipset::remove(self.socket, ipset_named(set), &[member(*ip)]) {
                Err(error) if error.errno == Errno::ENOENT => Ok(()),
                other => other,
            }
        })
    }

    fn withdraw_elements(&mut self, members: &[Membership]) -> Result<(), Error> {
        let mut batch = Batch::default();
        for (set, ip) in members {
            batch.delete_elements(set, &[(address_key(*ip), ElementData::None)]);
        }
        match batch.commit(self.socket) {
            // One element that is not there fails the whole batch.
            Err(error) if error.errno == Errno::ENOENT && members.len() > 1 => {
                members.iter().try_for_each(|member| self.withdraw_elements(&[*member]))
            }
            Err(error) if error.errno == Errno::ENOENT => Ok(()),
            other => other,
        }
    }
}
