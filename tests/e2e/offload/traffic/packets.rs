//! Packets that the flowtable leaves to the rules, and the ICMP errors that their senders get.
//! These are packets that are too large for the path or at the end of their TTL, fragments, and
//! packets with options.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use serde_json::json;

use crate::lab::capture::Capture;
use crate::lab::flowtable::{Forwarded, kernel_has_flowtables};
use crate::lab::netns::Netns;
use crate::lab::talk::Talk;
use crate::lab::two_nics::{NICS, POD, POD6, TwoNics, two_nics};

use super::{assert_all_bypass_rules, begin, count_by, offload_all};

const PATIENT: Duration = Duration::from_secs(8);
const POD1: [&str; 2] = [POD[1], POD6[1]];

/// Records source and type of the ICMP errors that reach a host.
fn note_errors(ns: &Netns) {
    ns.nft(
        "table inet errors {
            set seen4 { type ipv4_addr . icmp_type; flags dynamic; size 64; }
            set seen6 { type ipv6_addr . icmpv6_type; flags dynamic; size 64; }
            chain input {
                type filter hook input priority 0
                icmp type { destination-unreachable, time-exceeded } add @seen4 { ip saddr . icmp type }
                icmpv6 type { packet-too-big, time-exceeded } add @seen6 { ip6 saddr . icmpv6 type }
            }
        }",
    );
}

/// The ICMP errors recorded since the last [`forget_errors`].
fn errors(ns: &Netns) -> BTreeSet<String> {
    let text = ns.exec(&["nft", "list", "table", "inet", "errors"], "");
    let elements = text.split("elements = {").skip(1).filter_map(|rest| rest.split('}').next());
    elements.flat_map(|some| some.split(',')).map(|one| one.trim().to_owned()).collect()
}

fn forget_errors(ns: &Netns) {
    ns.nft(
        "flush set inet errors seen4
         flush set inet errors seen6",
    );
}

fn await_errors(ns: &Netns) -> BTreeSet<String> {
    let begin = Instant::now();
    loop {
        let found = errors(ns);
        if !found.is_empty() {
            return found;
        }
        assert!(begin.elapsed() < PATIENT, "no ICMP error");
    }
}

/// A node with the plugin, and connections through eth1 to pod1.
fn begin_talks(offload: bool, prepare: impl Fn(&TwoNics)) -> (TwoNics, Vec<Talk>) {
    let layout = two_nics();
    // Source address of the router's IPv6 errors.
    layout.router.ns.ip("addr add 2001:db8::1/128 dev lo nodad");
    // The node sends errors from eth0's address, which the source check would drop on eth1.
    layout.router.check_sources(&[]);
    prepare(&layout);
    for ns in [&layout.client, &layout.pods[1].ns] {
        note_errors(ns);
    }
    layout.node.up(&json!({"uplinks": NICS, "offload": offload}));
    let mut talks = begin(&layout.client, &layout.pods[1].ns, &POD1);
    if offload {
        offload_all(&layout.node, &mut talks);
    }
    (layout, talks)
}

/// The ICMP errors of each connection: those to the client, and those to the pod.
type Heard = Vec<[BTreeSet<String>; 2]>;

type Link<'a> = [(&'a Netns, &'static str); 2];

fn clients_link(layout: &TwoNics) -> Link<'_> {
    [(&layout.router.ns, "client"), (&layout.client, "eth0")]
}

fn uplink(layout: &TwoNics) -> Link<'_> {
    [(&layout.router.ns, "eth1"), (&layout.node.ns, "eth1")]
}

fn pods_link(layout: &TwoNics) -> Link<'_> {
    [(&layout.node.ns, "enipod1"), (&layout.pods[1].ns, "eth0")]
}

/// When both ends of a link get a smaller MTU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    First,
    /// After TCP has agreed on larger segments.
    Begun,
    /// After the connection was offloaded. Over IPv6 the kernel keeps the MTU of that moment, so
    /// the plugin has to notice the change.
    Offloaded,
}

/// Connections on a path with a smaller MTU at this link.
fn begin_narrowed_talks(
    offload: bool,
    link: fn(&TwoNics) -> Link<'_>,
    when: When,
) -> (TwoNics, Vec<Talk>) {
    let narrow = |layout: &TwoNics| {
        for (ns, device) in link(layout) {
            ns.ip(&format!("link set {device} mtu 1300"));
        }
    };
    match when {
        When::First => begin_talks(offload, narrow),
        When::Begun => {
            let (layout, mut talks) = begin_talks(false, |_| {});
            narrow(&layout);
            layout.node.up(&json!({"uplinks": NICS, "offload": offload}));
            if offload {
                offload_all(&layout.node, &mut talks);
            }
            (layout, talks)
        }
        When::Offloaded => {
            let (layout, talks) = begin_talks(offload, |_| {});
            narrow(&layout);
            layout.node.up(&json!({"uplinks": NICS, "offload": offload}));
            (layout, talks)
        }
    }
}

/// Sends large data both ways and returns the ICMP errors.
fn errors_of_large_data(offload: bool, link: fn(&TwoNics) -> Link<'_>, when: When) -> Heard {
    let (layout, mut talks) = begin_narrowed_talks(offload, link, when);
    let ends = [&layout.client, &layout.pods[1].ns];
    let capture = Capture::start(&layout.router.ns);
    let mut heard = Vec::new();
    for talk in &mut talks {
        // Over UDP these are a datagram in one packet and one in fragments.
        for bytes in [1440, 6000] {
            talk.carry(bytes)
                .unwrap_or_else(|error| panic!("{}: {bytes} bytes: {error}", talk.client()));
        }
        heard.push(ends.map(errors));
        // What the sender has learned about the path also affects other connections.
        for ns in ends {
            ns.ip("route flush cache");
            ns.ip6("route flush cache");
        }
        talk.assert_goes_on("large data");
        ends.into_iter().for_each(forget_errors);
    }
    let packets = capture.stop();
    assert_eq!(count_by(&packets, &["eth0"]), 0, "packets by eth0");
    if offload {
        offload_all(&layout.node, &mut talks);
        let forwarded = Forwarded::watch(&layout.node.ns);
        assert_all_bypass_rules(&forwarded, &mut talks, "large data");
    }
    heard
}

/// Asserts that the same ICMP errors arrive with and without offload. `to` is the end that gets
/// them: 0 for the client, 1 for the pod.
fn assert_same_errors(to: usize, link: fn(&TwoNics) -> Link<'_>, when: When) {
    if !kernel_has_flowtables() {
        return;
    }
    let without = errors_of_large_data(false, link, when);
    assert!(without.iter().all(|errors| !errors[to].is_empty()), "{without:?}");
    assert_eq!(
        errors_of_large_data(true, link, when),
        without,
        "the errors with offload, and without"
    );
}

#[test]
fn too_large_for_the_clients_link() {
    assert_same_errors(1, clients_link, When::Begun);
}

#[test]
fn too_large_for_the_uplink() {
    assert_same_errors(1, uplink, When::First);
}

#[test]
fn too_large_for_an_uplink_that_changes() {
    assert_same_errors(1, uplink, When::Offloaded);
}

#[test]
fn too_large_for_the_pods_link() {
    assert_same_errors(0, pods_link, When::Begun);
}

fn set_ttl(socket: BorrowedFd<'_>, is_v4: bool, hops: i32) {
    if is_v4 {
        setsockopt(&socket, sockopt::Ipv4Ttl, &hops).expect("a TTL");
    } else {
        setsockopt(&socket, sockopt::Ipv6Ttl, &hops).expect("a hop limit");
    }
}

/// The errors that client and pod get about packets whose TTL ends at the node.
fn errors_of_short_ttl(offload: bool) -> Heard {
    let (layout, mut talks) = begin_talks(offload, |_| {});
    let ends = [&layout.client, &layout.pods[1].ns];
    let capture = Capture::start(&layout.router.ns);
    let mut heard = Vec::new();
    for talk in &mut talks {
        let is_v4 = talk.client().is_ipv4();
        // The router decrements the TTL of the client's packets first.
        let errors = [(0, 2), (1, 1)].map(|(end, hops)| {
            set_ttl(talk.sockets()[end], is_v4, hops);
            // A datagram as long as a word that no end waits for.
            let sent = send(talk.sockets()[end].as_raw_fd(), &[255; 4], MsgFlags::empty());
            assert_eq!(sent, Ok(4));
            let errors = await_errors(ends[end]);
            set_ttl(talk.sockets()[end], is_v4, 64);
            errors
        });
        heard.push(errors);
        talk.assert_goes_on("the end of a time to live");
        // Segments that TCP repeated may have ended there, too.
        ends.into_iter().for_each(forget_errors);
    }
    let packets = capture.stop();
    assert_eq!(count_by(&packets, &["eth0"]), 0, "by eth0");
    heard
}

#[test]
fn the_end_of_the_time_to_live() {
    if kernel_has_flowtables() {
        let without = errors_of_short_ttl(false);
        assert!(
            without.iter().flatten().flatten().all(|one| one.contains("time-exceeded")),
            "{without:?}"
        );
        assert_eq!(errors_of_short_ttl(true), without, "the errors with offload, and without");
    }
}

/// Adds an option without effect to all packets of a socket.
fn set_option(socket: BorrowedFd<'_>, is_v4: bool) {
    let (level, name, option): (_, _, &[u8]) = if is_v4 {
        (libc::IPPROTO_IP, libc::IP_OPTIONS, &[1; 4])
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0])
    };
    let size = libc::socklen_t::try_from(option.len()).expect("small");
    let (socket, bytes) = (socket.as_raw_fd(), option.as_ptr().cast());
    // SAFETY: the kernel reads no more bytes than the slice has, and the slice is alive.
    let result = unsafe { libc::setsockopt(socket, level, name, bytes, size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn options_are_left_to_the_rules() {
    if !kernel_has_flowtables() {
        return;
    }
    let (layout, mut talks) = begin_talks(true, |_| {});
    let forwarded = Forwarded::watch(&layout.node.ns);
    assert_all_bypass_rules(&forwarded, &mut talks, "without options");
    let capture = Capture::start(&layout.router.ns);
    for talk in &mut talks {
        for socket in talk.sockets() {
            set_option(socket, talk.client().is_ipv4());
        }
        forwarded.assert_passes_rules(talk, "with options");
    }
    let packets = capture.stop();
    assert_eq!(count_by(&packets, &["eth0"]), 0, "by eth0");
}
