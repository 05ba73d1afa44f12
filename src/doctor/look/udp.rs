//! Reads UDP connections from connection tracking, and which program has a socket.
//!
//! Layouts: `linux/netfilter/nfnetlink_conntrack.h`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use crate::doctor::Finding;
use crate::doctor::udp::{Unreplied, astray, finding, wildcard_inodes};
use crate::model::Facts;
use crate::netlink::uapi::*;
use crate::netlink::wire::{Writer, be32_at, find, ip};
use crate::netlink::{Error, Socket};

/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// Servers that reply from the wrong address. A kernel that does not tell has none.
pub(super) fn findings(netfilter: &mut Socket, facts: &Facts) -> Vec<Finding> {
    let connections = unreplied(netfilter).unwrap_or_default();
    let own: BTreeSet<IpAddr> = facts.addresses.iter().map(|address| address.ip).collect();
    let found = astray(&connections, &own).into_iter();
    found.map(|one| finding(&one, program(one.asked.port()).as_deref())).collect()
}

fn unreplied(netfilter: &mut Socket) -> Result<Vec<Unreplied>, Error> {
    let mut request = Writer::with_capacity(64);
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
    request.message(kind, NLM_F_REQUEST | NLM_F_DUMP, &[0; NFGENMSG]);
    netfilter.dump(&mut request, |body| parse(body.get(NFGENMSG..)?))
}

/// A UDP connection without a reply; none for any other.
fn parse(attributes: &[u8]) -> Option<Unreplied> {
    let tuple = find(attributes, CTA_TUPLE_ORIG)?;
    let protocol = find(tuple, CTA_TUPLE_PROTO)?;
    if find(protocol, CTA_PROTO_NUM)? != [IPPROTO_UDP] {
        return None;
    }
    let status = be32_at(find(attributes, CTA_STATUS)?, 0)?;
    let addresses = find(tuple, CTA_TUPLE_IP)?;
    let side = |v4, v6, port| {
        let address = find(addresses, v4).or_else(|| find(addresses, v6)).and_then(ip)?;
        let port: [u8; 2] = find(protocol, port)?.try_into().ok()?;
        Some(SocketAddr::new(address, u16::from_be_bytes(port)))
    };
    let from = side(CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT)?;
    let to = side(CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT)?;
    (status & IPS_SEEN_REPLY == 0).then_some(Unreplied { from, to })
}

/// The program that has a socket on the wildcard address at this port, with its process id.
fn program(port: u16) -> Option<String> {
    // A thread may be in another network namespace than its process.
    let files = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"];
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let inodes: Vec<u64> = texts.flat_map(|text| wildcard_inodes(&text, port)).collect();
    let links: Vec<_> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has = |process: &fs::DirEntry| {
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut targets = open.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let is_process = |entry: &fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok())
    };
    let process = processes.filter(is_process).find(has)?;
    let name = fs::read_to_string(process.path().join("comm")).ok()?;
    Some(format!("{} (process {})", name.trim(), process.file_name().to_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(protocol: u8, status: u32) -> Vec<u8> {
        let mut message = Writer::default();
        message.nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_IP, |addresses| {
                addresses.attr(CTA_IP_V4_SRC, &[203, 0, 113, 9]);
                addresses.attr(CTA_IP_V4_DST, &[10, 21, 0, 10]);
            });
            tuple.nest(CTA_TUPLE_PROTO, |ports| {
                ports.attr(CTA_PROTO_NUM, &[protocol]);
                ports.attr(CTA_PROTO_SRC_PORT, &4711_u16.to_be_bytes());
                ports.attr(CTA_PROTO_DST_PORT, &53_u16.to_be_bytes());
            });
        });
        message.be32(CTA_STATUS, status);
        message.as_bytes().to_vec()
    }

    #[test]
    fn connections_without_a_reply() {
        let found = parse(&message(IPPROTO_UDP, 0)).unwrap();
        assert_eq!(found.from, "203.0.113.9:4711".parse().unwrap());
        assert_eq!(found.to, "10.21.0.10:53".parse().unwrap());
        assert_eq!(parse(&message(IPPROTO_UDP, IPS_SEEN_REPLY)), None);
        assert_eq!(parse(&message(6, 0)), None);
        assert_eq!(parse(&[]), None);
    }
}
