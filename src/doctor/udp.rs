//! UDP servers on the wildcard address that reply from an address other than the one the client asked.
//!
//! The kernel chooses the source of such a reply by the node's own routing, before any hook. Connection
//! tracking shows this: the request has no reply, and a second connection goes from the same port of another
//! address of the node to the client.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::{Finding, Severity, UDP};

/// A UDP connection that has had no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Unreplied {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// A request, and the reply that came from another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Astray {
    pub(crate) client: SocketAddr,
    /// The address that the client asked.
    pub(crate) asked: SocketAddr,
    /// The address that replied.
    pub(crate) answered: IpAddr,
}

/// One request for each server port that replies from another address. `own`: the node's addresses.
pub(crate) fn astray(connections: &[Unreplied], own: &BTreeSet<IpAddr>) -> Vec<Astray> {
    let known: BTreeSet<_> = connections.iter().copied().collect();
    let mut found: Vec<Astray> = Vec::new();
    for &Unreplied { from: client, to: asked } in connections {
        if !own.contains(&asked.ip()) || own.contains(&client.ip()) {
            continue;
        }
        if found.iter().any(|one| one.asked.port() == asked.port()) {
            continue;
        }
        let replies = |ip: &&IpAddr| {
            let from = SocketAddr::new(**ip, asked.port());
            **ip != asked.ip() && known.contains(&Unreplied { from, to: client })
        };
        if let Some(&answered) = own.iter().find(replies) {
            found.push(Astray { client, asked, answered });
        }
    }
    found
}

/// The finding for such a server. `program`: the program that has the socket, if known.
pub(crate) fn finding(astray: &Astray, program: Option<&str>) -> Finding {
    let Astray { client, asked, answered } = astray;
    let port = asked.port();
    Finding {
        id: UDP,
        severity: Severity::Warning,
        what: format!(
            "the UDP server on port {port} replies from another address than the one asked"
        ),
        evidence: vec![
            format!("{client} has asked {asked}"),
            format!("the reply went out from {answered}:{port}, which the client does not expect"),
            match program {
                Some(program) => format!("the socket is that of {program}"),
                None => "cannot see which program has the socket".into(),
            },
        ],
        remedy: format!(
            "have the server listen on {} itself, or use IP_PKTINFO: marks can't change the source that \
             the kernel has chosen",
            asked.ip()
        ),
    }
}

/// Inodes of the sockets on the wildcard address with this port. `text`: `/proc/net/udp` or `/proc/net/udp6`.
pub(crate) fn wildcard_inodes(text: &str, port: u16) -> Vec<u64> {
    let inode = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (address, of) = words.get(1)?.rsplit_once(':')?;
        let is_wildcard = address.bytes().all(|byte| byte == b'0');
        let is_here = u16::from_str_radix(of, 16) == Ok(port);
        (is_wildcard && is_here).then(|| words.get(9)?.parse().ok())?
    };
    text.lines().skip(1).filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> BTreeSet<IpAddr> {
        ["10.20.0.10", "10.21.0.10"].map(|ip| ip.parse().unwrap()).into()
    }

    fn connection(from: &str, to: &str) -> Unreplied {
        Unreplied { from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    #[test]
    fn a_reply_from_another_address() {
        let request = connection("203.0.113.9:4711", "10.21.0.10:53");
        let reply = connection("10.20.0.10:53", "203.0.113.9:4711");
        let found = astray(&[request, reply], &own());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].answered, reply.from.ip());
        let words = finding(&found[0], Some("dnsd (4)"));
        assert!(words.what.contains("port 53"), "{words:?}");
        assert!(words.evidence[2].ends_with("dnsd (4)"));
        // A second client of the same port adds no finding.
        let more = [
            connection("203.0.113.8:4711", "10.21.0.10:53"),
            connection("10.20.0.10:53", "203.0.113.8:4711"),
        ];
        assert_eq!(astray(&[&[request, reply][..], &more].concat(), &own()).len(), 1);
    }

    #[test]
    fn what_is_no_such_reply() {
        let request = connection("203.0.113.9:4711", "10.21.0.10:53");
        for other in [
            connection("10.20.0.10:54", "203.0.113.9:4711"),
            connection("10.20.0.10:53", "203.0.113.9:4712"),
            connection("10.21.0.10:53", "203.0.113.9:4711"),
            connection("10.22.0.10:53", "203.0.113.9:4711"),
        ] {
            assert_eq!(astray(&[request, other], &own()), [], "{other:?}");
        }
        assert_eq!(astray(&[request], &own()), []);
    }

    #[test]
    fn sockets_by_port() {
        let text = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            \x20 40: 00000000:280A 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0000000000000000 0\n\
            \x20 41: 0A00150A:280A 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4243 2 0000000000000000 0\n\
            short\n";
        assert_eq!(wildcard_inodes(text, 10250), [4242]);
        assert_eq!(wildcard_inodes(text, 53), [0; 0]);
    }
}
