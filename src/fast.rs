//! The fast path: what an ADD costs on a node where everything is in place. A handful of
//! requests that each read or write one object; no dump, no lock, nothing executed.

use std::net::IpAddr;

use nix::errno::Errno;

use crate::config::Settings;
use crate::facts::{ElementData, Family};
use crate::names;
use crate::netlink::nft::{self, Batch};
use crate::netlink::{Error, Socket, ipset};
use crate::ruleset::sets::{address_key, hairpin_set, number_key, pods_set};
use crate::state::{Attachment, Marking};
use crate::xtables::build::{inside_set, ipset as ipset_named, member};
use crate::xtables::notes;

mod prove;

pub use prove::prove;

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

impl<'a> Enrolled<'a> {
    /// In the table or in ipsets.
    pub fn at(marking: Marking, socket: &'a mut Socket) -> Self {
        Self { marking, socket }
    }

    /// The id of each of these interfaces, if one of these forms of the settings is in force: 0 for
    /// one that is no uplink by them, none for one that is not known.
    fn ids(
        &mut self,
        settings: &Settings,
        in_force: &[u32],
        links: &[u32],
    ) -> Result<Vec<Option<u32>>, Surprise> {
        let ids = match self.marking {
            Marking::Nftables => self.ids_in_table(settings, in_force, links)?,
            Marking::Iptables => ipset::set(self.socket, names::NODE_SET)?
                .map(|set| notes::read(&set.members))
                .filter(|notes| notes.in_force.is_some_and(|it| in_force.contains(&it)))
                .map(|notes| links.iter().map(|link| notes.ids.get(link).copied()).collect()),
        };
        ids.ok_or_else(|| Surprise("these settings are not in force".into()))
    }

    fn ids_in_table(
        &mut self,
        settings: &Settings,
        in_force: &[u32],
        links: &[u32],
    ) -> Result<Option<Vec<Option<u32>>>, Error> {
        let keys = |numbers: &[u32]| numbers.iter().map(|&n| number_key(n)).collect::<Vec<_>>();
        let (forms, links) = (keys(in_force), keys(links));
        let forms_in = forms.iter().map(|form| (names::IN_FORCE, form.as_slice()));
        let questions = forms_in.chain(links.iter().map(|link| (names::IDS, link.as_slice())));
        let questions: Vec<_> = questions.collect();
        let mut answers = nft::look_up(self.socket, &questions)?.into_iter();
        let mut found = false;
        for answer in answers.by_ref().take(forms.len()) {
            found |= answer?.is_some();
        }
        if !found {
            return Ok(None);
        }
        let id = |answer: Result<Option<ElementData>, Error>| {
            Ok(match answer? {
                Some(ElementData::Value(mark)) => {
                    let bytes = mark.as_slice().try_into().unwrap_or_default();
                    Some(settings.field.id(u32::from_ne_bytes(bytes)))
                }
                _ => None,
            })
        };
        answers.map(id).collect::<Result<_, Error>>().map(Some)
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
