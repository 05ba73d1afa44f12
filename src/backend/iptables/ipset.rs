//! Messages of ipset: creates, lists, changes and destroys sets.
//!
//! Layouts: `linux/netfilter/ipset/ip_set.h`. Numbers and addresses are in network byte order, and
//! their attributes have to say so (`NLA_F_NET_BYTEORDER`).

use std::net::IpAddr;

use nix::errno::Errno;

use super::rules::{Ipset, Kind};
use crate::model::{FoundIpset, Member, host_length};
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, attrs, be32_at, find, ip, string};
use crate::netlink::{Error, Socket};

const NFGENMSG: usize = 4;
/// Maximum number of elements in a message: their list has to stay below 64 KiB.
const CHUNK: usize = 256;
/// Maximum number of members of a set. The kernel's default is 65536.
const MAXELEM: u32 = 1 << 20;
/// Revision of both set types: the first with comments in both (Linux 3.19, `ip_set_hash_ip.c`,
/// `ip_set_hash_net.c`).
const REVISION: u8 = 4;

fn request(command: u16, flags: u16, set: Option<&str>) -> Writer {
    let mut request = Writer::with_capacity(128);
    let family = NFPROTO_IPV4;
    let kind = NFNL_SUBSYS_IPSET << 8 | command;
    request.message(kind, NLM_F_REQUEST | flags, &[family, 0, 0, 0]);
    request.attr(IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
    if let Some(set) = set {
        request.str(IPSET_ATTR_SETNAME, set);
    }
    request
}

/// Returns an error if the kernel has no ipset.
pub(crate) fn require(socket: &mut Socket) -> Result<(), Error> {
    socket.query(&mut request(IPSET_CMD_PROTOCOL, 0, None), |_| Some(()))
}

pub(crate) fn names(socket: &mut Socket) -> Result<Vec<String>, Error> {
    let mut request = request(IPSET_CMD_LIST, NLM_F_DUMP, None);
    request.be32(IPSET_ATTR_FLAGS | NLA_F_NET_BYTEORDER, IPSET_FLAG_LIST_SETNAME);
    let name = |body: &[u8]| find(body.get(NFGENMSG..)?, IPSET_ATTR_SETNAME).map(string);
    match socket.dump(&mut request, name) {
        Err(error) if error.errno == Errno::EINVAL => Ok(Vec::new()),
        other => other,
    }
}

/// Reads a set with its members. `None` if the set does not exist, or the kernel has no ipset.
pub(crate) fn set(socket: &mut Socket, name: &str) -> Result<Option<FoundIpset>, Error> {
    let parts = socket.dump(&mut request(IPSET_CMD_LIST, NLM_F_DUMP, Some(name)), |body| {
        Some(parse(body.get(NFGENMSG..)?))
    });
    let parts = match parts {
        // EINVAL: the kernel has no nfnetlink subsystem of this number.
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EINVAL) => return Ok(None),
        other => other?,
    };
    Ok(parts.into_iter().reduce(|mut all, part| {
        all.members.extend(part.members);
        if !part.kind.is_empty() {
            (all.kind, all.family, all.references) = (part.kind, part.family, part.references);
        }
        all
    }))
}

fn parse(body: &[u8]) -> FoundIpset {
    let mut found = FoundIpset::default();
    for (attr, payload) in attrs(body) {
        match attr {
            IPSET_ATTR_TYPENAME => found.kind = string(payload),
            IPSET_ATTR_FAMILY => found.family = payload.first().copied().unwrap_or(0),
            IPSET_ATTR_DATA => {
                found.references =
                    find(payload, IPSET_ATTR_REFERENCES).and_then(|p| be32_at(p, 0)).unwrap_or(0);
            }
            IPSET_ATTR_ADT => {
                found.members.extend(attrs(payload).filter_map(|(_, data)| parse_member(data)));
            }
            _ => {}
        }
    }
    found
}

fn parse_member(data: &[u8]) -> Option<Member> {
    let nested = find(data, IPSET_ATTR_IP)?;
    let address = attrs(nested).next().and_then(|(_, payload)| ip(payload))?;
    let prefix = find(data, IPSET_ATTR_CIDR).and_then(|p| p.first().copied());
    let flags = find(data, IPSET_ATTR_CADT_FLAGS).and_then(|p| be32_at(p, 0)).unwrap_or(0);
    Some(Member {
        address,
        prefix: prefix.unwrap_or(host_length(address)),
        nomatch: flags & IPSET_FLAG_NOMATCH != 0,
        comment: find(data, IPSET_ATTR_COMMENT).map(string),
    })
}

/// Number of rules that refer to a set; `None` if the set does not exist. Reads only the header of
/// the set, so its size does not matter.
pub(crate) fn references(socket: &mut Socket, name: &str) -> Result<Option<u32>, Error> {
    let mut request = request(IPSET_CMD_LIST, NLM_F_DUMP, Some(name));
    request.be32(IPSET_ATTR_FLAGS | NLA_F_NET_BYTEORDER, IPSET_FLAG_LIST_HEADER);
    match socket.dump(&mut request, |body| Some(parse(body.get(NFGENMSG..)?))) {
        Err(error) if matches!(error.errno, Errno::ENOENT | Errno::EINVAL) => Ok(None),
        other => Ok(other?.first().map(|found| found.references)),
    }
}

pub(crate) fn create(socket: &mut Socket, set: &Ipset) -> Result<(), Error> {
    let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
    let mut request = request(IPSET_CMD_CREATE, flags, Some(set.name));
    request.str(IPSET_ATTR_TYPENAME, set.kind.name());
    request.attr(IPSET_ATTR_REVISION, &[REVISION]);
    request.attr(IPSET_ATTR_FAMILY, &[set.family.number()]);
    request.nest(IPSET_ATTR_DATA, |w| {
        w.be32(IPSET_ATTR_MAXELEM | NLA_F_NET_BYTEORDER, MAXELEM);
        if set.kind == Kind::Notes {
            w.be32(IPSET_ATTR_CADT_FLAGS | NLA_F_NET_BYTEORDER, IPSET_FLAG_WITH_COMMENT);
        }
    });
    socket.acknowledged(&mut request)
}

/// Destroys a set to which no rule refers any more. A set that does not exist is no error.
pub(crate) fn destroy(socket: &mut Socket, name: &str) -> Result<(), Error> {
    match socket.acknowledged(&mut request(IPSET_CMD_DESTROY, NLM_F_ACK, Some(name))) {
        Err(error) if error.errno == Errno::ENOENT => Ok(()),
        other => other,
    }
}

/// Adds members. If a member exists, the kernel replaces its comment.
pub(crate) fn add(socket: &mut Socket, set: &str, members: &[Member]) -> Result<(), Error> {
    change(socket, IPSET_CMD_ADD, set, members)
}

/// Removes members. A member that does not exist is no error.
pub(crate) fn remove(socket: &mut Socket, set: &str, members: &[Member]) -> Result<(), Error> {
    change(socket, IPSET_CMD_DEL, set, members)
}

pub(crate) fn contains(socket: &mut Socket, set: &str, member: &Member) -> Result<bool, Error> {
    let mut request = request(IPSET_CMD_TEST, NLM_F_ACK, Some(set));
    request.nest(IPSET_ATTR_DATA, |w| write_member(w, member));
    match socket.acknowledged(&mut request) {
        Ok(()) => Ok(true),
        Err(error) if error.errno == Errno::EEXIST => Ok(false),
        Err(error) => Err(error),
    }
}

fn change(socket: &mut Socket, command: u16, set: &str, members: &[Member]) -> Result<(), Error> {
    for chunk in members.chunks(CHUNK) {
        // Without NLM_F_EXCL the kernel accepts members that exist (add) or do not exist (remove).
        let mut request = request(command, NLM_F_ACK, Some(set));
        // The kernel requires it with a list: the line of a script to which an error belongs.
        request.u32(IPSET_ATTR_LINENO, 0);
        request.nest(IPSET_ATTR_ADT, |w| {
            for member in chunk {
                w.nest(IPSET_ATTR_DATA, |w| write_member(w, member));
            }
        });
        socket.acknowledged(&mut request)?;
    }
    Ok(())
}

fn write_member(w: &mut Writer, member: &Member) {
    w.nest(IPSET_ATTR_IP, |w| {
        let kind = match member.address {
            IpAddr::V4(_) => IPSET_ATTR_IPADDR_IPV4,
            IpAddr::V6(_) => IPSET_ATTR_IPADDR_IPV6,
        };
        w.ip(kind | NLA_F_NET_BYTEORDER, member.address);
    });
    if member.prefix != host_length(member.address) {
        w.attr(IPSET_ATTR_CIDR, &[member.prefix]);
    }
    if member.nomatch {
        w.be32(IPSET_ATTR_CADT_FLAGS | NLA_F_NET_BYTEORDER, IPSET_FLAG_NOMATCH);
    }
    if let Some(comment) = &member.comment {
        w.str(IPSET_ATTR_COMMENT, comment);
    }
}
