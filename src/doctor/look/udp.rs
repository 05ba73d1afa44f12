//! Reads UDP connections from connection tracking, and finds the program that has a socket.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use crate::doctor::Finding;
use crate::doctor::udp::{Unreplied, astray, finding, wildcard_inodes};
use crate::model::Facts;
use crate::netlink::conntrack::{self, Connection};
use crate::netlink::uapi::{IPPROTO_UDP, IPS_SEEN_REPLY};
use crate::netlink::{Error, Socket};

/// A finding for each server that replies from another address; none if connection tracking can't be read.
pub(super) fn findings(netfilter: &mut Socket, facts: &Facts) -> Vec<Finding> {
    let connections = unreplied(netfilter).unwrap_or_default();
    let own: BTreeSet<IpAddr> = facts.addresses.iter().map(|address| address.ip).collect();
    let found = astray(&connections, &own).into_iter();
    found.map(|one| finding(&one, program(one.asked.port()).as_deref())).collect()
}

fn unreplied(netfilter: &mut Socket) -> Result<Vec<Unreplied>, Error> {
    let is_unreplied =
        |one: &Connection| one.original.protocol == IPPROTO_UDP && one.status & IPS_SEEN_REPLY == 0;
    let found = conntrack::list(netfilter, is_unreplied)?.into_iter();
    Ok(found.map(|one| Unreplied { from: one.original.from, to: one.original.to }).collect())
}

/// Name and process id of the program that has a socket on the wildcard address with this port.
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
