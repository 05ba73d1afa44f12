//! Packets that the reverse path filter drops while `doctor` runs, and their sources.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{DROPS, Finding, Severity, TUNNEL};
use crate::model::Link;

/// Maximum number of sources that a finding names.
const MAX_SOURCES: usize = 5;

/// Addresses and interface of an IPv4 packet that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrival {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    /// Index of the interface.
    pub(crate) link: u32,
}

impl Arrival {
    /// Whether the kernel runs the source check for these addresses.
    pub(crate) fn is_checked(&self) -> bool {
        let no_source =
            self.from.is_unspecified() || self.from.is_loopback() || self.from.is_multicast();
        !no_source && !self.to.is_multicast() && !self.to.is_broadcast()
    }
}

/// Packets of one source on one interface that the filter drops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) from: Ipv4Addr,
    /// One of their destinations.
    pub(crate) to: Ipv4Addr,
    pub(crate) link: Link,
    pub(crate) is_uplink: bool,
    pub(crate) packets: u64,
}

/// The kernel's drop counter before and after, and the packets that were sampled in between. `dropped` is the
/// reason if no sample could be taken.
pub(crate) struct Watched {
    pub(crate) before: u64,
    pub(crate) after: u64,
    /// The setting "uplinks".
    pub(crate) uplinks: Vec<String>,
    pub(crate) dropped: Result<Vec<Dropped>, String>,
}

/// Findings about dropped packets; none if the counter did not grow, even if the sample has such packets.
pub(crate) fn findings(watched: &Watched) -> Vec<Finding> {
    let drops = watched.after.saturating_sub(watched.before);
    if drops == 0 {
        return Vec::new();
    }
    let seen = watched.dropped.as_deref().unwrap_or_default();
    let mut evidence = vec![format!(
        "TcpExtIPReversePathFilter grew by {drops} while doctor looked, to {}",
        watched.after
    )];
    match &watched.dropped {
        Err(why) => evidence.push(format!("cannot see the sources: {why}")),
        Ok(none) if none.is_empty() => {
            evidence.push("cannot name the sources: no such packet was in the sample".into());
        }
        Ok(_) => evidence.extend(sources(seen)),
    }
    let remedy = match seen.iter().max_by_key(|one| one.packets) {
        Some(one) => format!(
            "symroutectl explain --from {} --to {} --in {} says which look-up decides, and what to change",
            one.from, one.to, one.link.name
        ),
        None => "symroutectl explain --from CLIENT --to ADDRESS says which look-up decides, and what to change".into(),
    };
    let what = "rp_filter drops packets at this moment".into();
    let mut found =
        vec![Finding { id: DROPS, severity: Severity::Problem, what, evidence, remedy }];
    found.extend(tunnels(seen, &watched.uplinks));
    found
}

/// Lines for the sources with the most packets.
fn sources(seen: &[Dropped]) -> Vec<String> {
    let mut seen: Vec<_> = seen.iter().collect();
    seen.sort_by_key(|one| (Reverse(one.packets), one.from));
    let mut lines: Vec<_> = seen
        .iter()
        .take(MAX_SOURCES)
        .map(|one| {
            let packets = if one.packets == 1 { "packet" } else { "packets" };
            format!(
                "seen meanwhile: {} by {}, {} {packets}, for instance to {}",
                one.from, one.link.name, one.packets, one.to
            )
        })
        .collect();
    if seen.len() > MAX_SOURCES {
        lines.push(format!("and {} more sources", seen.len() - MAX_SOURCES));
    }
    lines
}

/// A problem for each tunnel that is not an uplink: the reply to a packet from a tunnel has to go back into it.
fn tunnels(seen: &[Dropped], uplinks: &[String]) -> Vec<Finding> {
    let mut by_name: BTreeMap<&str, Vec<Dropped>> = BTreeMap::new();
    for one in seen.iter().filter(|one| !one.is_uplink && one.link.is_tunnel()) {
        by_name.entry(&one.link.name).or_default().push(one.clone());
    }
    let finding = |(name, seen): (&str, Vec<Dropped>)| {
        let kept =
            uplinks.iter().map(String::as_str).filter(|word| word.strip_prefix('!') != Some(name));
        let named: Vec<_> = kept.chain([name]).collect();
        Finding {
            id: TUNNEL,
            severity: Severity::Problem,
            what: format!(
                "rp_filter drops packets that come out of the tunnel {name}, which is no uplink"
            ),
            evidence: sources(&seen),
            remedy: format!("name it: \"uplinks\": {named:?}, then symroutectl up"),
        }
    };
    by_name.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::uapi::IFF_POINTOPOINT;

    fn dropped(name: &str, kind: Option<&str>, from: u8, packets: u64) -> Dropped {
        // A tunnel; bridges and interfaces without a kind are not.
        let flags = if matches!(kind, None | Some("bridge")) { 0 } else { IFF_POINTOPOINT };
        let link = Link { name: name.into(), kind: kind.map(Into::into), flags, ..Link::default() };
        let (from, to) = (Ipv4Addr::new(203, 0, 113, from), Ipv4Addr::new(10, 0, 0, 1));
        Dropped { from, to, link, is_uplink: kind.is_none(), packets }
    }

    fn ids(watched: &Watched) -> Vec<&'static str> {
        findings(watched).iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn only_a_counter_that_grows_is_a_finding() {
        let dropped = Ok(vec![dropped("wg0", Some("wireguard"), 9, 3)]);
        let mut watched =
            Watched { before: 7, after: 7, uplinks: vec!["auto".into(), "!wg0".into()], dropped };
        assert_eq!(ids(&watched), [""; 0]);
        watched.after = 10;
        assert_eq!(ids(&watched), [DROPS, TUNNEL]);
        assert!(findings(&watched)[1].remedy.contains(r#"["auto", "wg0"]"#));
        watched.dropped = Err("no CAP_NET_RAW".into());
        assert_eq!(ids(&watched), [DROPS]);
        assert!(findings(&watched)[0].evidence[1].contains("no CAP_NET_RAW"));
    }

    #[test]
    fn the_busiest_sources_are_named() {
        let seen: Vec<_> = (1..=7).map(|n| dropped("eth1", None, n, n.into())).collect();
        let watched = Watched { before: 0, after: 28, uplinks: Vec::new(), dropped: Ok(seen) };
        let found = findings(&watched);
        assert_eq!(found.len(), 1, "eth1 is no tunnel");
        let lines = &found[0].evidence;
        assert_eq!(lines.len(), 1 + MAX_SOURCES + 1);
        assert!(lines[1].contains("203.0.113.7 by eth1, 7 packets"), "{lines:?}");
        assert_eq!(lines[6], "and 2 more sources");
        assert!(found[0].remedy.contains("--from 203.0.113.7 --to 10.0.0.1 --in eth1"));
    }

    #[test]
    fn a_bridge_is_no_tunnel_and_an_uplink_needs_no_name() {
        let mut uplink = dropped("tun0", Some("tun"), 1, 1);
        uplink.is_uplink = true;
        let seen = vec![dropped("cni0", Some("bridge"), 2, 1), uplink];
        let watched = Watched { before: 0, after: 2, uplinks: Vec::new(), dropped: Ok(seen) };
        assert_eq!(ids(&watched), [DROPS]);
    }

    #[test]
    fn packets_that_the_filter_does_not_look_at() {
        let checked = |from: [u8; 4], to: [u8; 4]| {
            Arrival { from: from.into(), to: to.into(), link: 1 }.is_checked()
        };
        assert!(checked([203, 0, 113, 9], [10, 0, 0, 1]));
        assert!(!checked([0; 4], [255; 4]) && !checked([10, 0, 0, 1], [224, 0, 0, 18]));
    }
}
