//! Sysctls that make the kernel itself use marks.

use std::collections::BTreeSet;

use super::{Action, Entry, Mark, Place, Use};
use crate::model::Link;
use crate::node::sysctl;

/// Sysctls that copy a packet's mark to the kernel's answer, or to the socket that accepts the connection.
const COPIES: [&str; 3] = ["ipv4/fwmark_reflect", "ipv4/tcp_fwmark_accept", "ipv6/fwmark_reflect"];

/// An entry for each sysctl that is on. `ours`: interfaces on which symroute has set `src_valid_mark`.
pub(crate) fn read(links: &[Link], ours: &BTreeSet<u32>) -> Vec<Entry> {
    let entry = |name: String, action, ours| Entry {
        owner: format!("sysctl {}", name.rsplit('.').next().unwrap_or_default()),
        ours,
        place: Place::Sysctl { name },
        hooks: Vec::new(),
        usage: Use { mark: Mark::Packet, action, bits: u32::MAX, value: None },
        comment: None,
    };
    let is_on = |key: &str| sysctl::value(key).is_some_and(|value| value != 0);
    let name = |key: &str| format!("net.{}", key.replace('/', "."));
    let copies = COPIES.into_iter().filter(|key| is_on(key));
    let mut found: Vec<Entry> = copies.map(|key| entry(name(key), Action::Copies, false)).collect();
    let all = [("all", false), ("default", false)].into_iter();
    let each = links.iter().map(|link| (link.name.as_str(), ours.contains(&link.index)));
    for (interface, ours) in all.chain(each) {
        // In the path, an interface name keeps its dots; sysctl(8) writes them as slashes.
        let key = format!("ipv4/conf/{interface}/src_valid_mark");
        if is_on(&key) {
            let name = format!("net.ipv4.conf.{}.src_valid_mark", interface.replace('.', "/"));
            found.push(entry(name, Action::LooksUp, ours));
        }
    }
    found
}
