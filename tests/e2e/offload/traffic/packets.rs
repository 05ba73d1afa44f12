//! Packets that the flowtable leaves to the rules, and what a sender hears of them: those that are too large for the
//! path, at the end of their time to live, fragments, those with options.

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

use super::{assert_pass_by, begin, count_by, offload_all};

const PATIENT: Duration = Duration::from_secs(8);
const POD1: [&str; 2] = [POD[1], POD6[1]];

/// Notes the ICMP errors that come to a host: from where, and which.
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

/// What has been noted, and not been forgotten.
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

fn errors_to(ns: &Netns) -> BTreeSet<String> {
    let begin = Instant::now();
    loop {
        let found = errors(ns);
        if !found.is_empty() {
            return found;
        }
        assert!(begin.elapsed() < PATIENT, "no ICMP error");
    }
}

/// A node with the plugin, and connections by eth1 to pod1.
fn talking(offload: bool, prepare: impl Fn(&TwoNics)) -> (TwoNics, Vec<Talk>) {
    let layout = two_nics();
    // From where the router says what it has to say.
    layout.router.ns.ip("addr add 2001:db8::1/128 dev lo nodad");
    // The node says what it has to say with the address of eth0.
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

/// The errors that each connection led to: to the client, and to the pod.
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

/// When both ends of a link begin to take smaller packets only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    First,
    /// TCP has agreed on larger ones by then.
    Begun,
    /// Over IPv6 the kernel keeps the MTU that an offloaded connection had at first, so the plugin has to see it.
    Offloaded,
}

/// Connections by a path that is narrow at this link.
fn narrowed(offload: bool, link: fn(&TwoNics) -> Link<'_>, when: When) -> (TwoNics, Vec<Talk>) {
    let narrow = |layout: &TwoNics| {
        for (ns, device) in link(layout) {
            ns.ip(&format!("link set {device} mtu 1300"));
        }
    };
    match when {
        When::First => talking(offload, narrow),
        When::Begun => {
            let (layout, mut talks) = talking(false, |_| {});
            narrow(&layout);
            layout.node.up(&json!({"uplinks": NICS, "offload": offload}));
            if offload {
                offload_all(&layout.node, &mut talks);
            }
            (layout, talks)
        }
        When::Offloaded => {
            let (layout, talks) = talking(offload, |_| {});
            narrow(&layout);
            layout.node.up(&json!({"uplinks": NICS, "offload": offload}));
            (layout, talks)
        }
    }
}

/// Large data both ways, and the errors that come of it.
fn carried(offload: bool, link: fn(&TwoNics) -> Link<'_>, when: When) -> Heard {
    let (layout, mut talks) = narrowed(offload, link, when);
    let ends = [&layout.client, &layout.pods[1].ns];
    let capture = Capture::start(&layout.router.ns);
    let mut heard = Vec::new();
    for talk in &mut talks {
        // Over UDP one datagram in one packet, and one in fragments.
        for bytes in [1440, 6000] {
            talk.carry(bytes)
                .unwrap_or_else(|error| panic!("{}: {bytes} bytes: {error}", talk.client()));
        }
        heard.push(ends.map(errors));
        // What the sender has learned of the path is not of one connection alone.
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
        assert_pass_by(&forwarded, &mut talks, "large data");
    }
    heard
}

/// `to`: who is to hear of it, the client or the pod.
fn too_large(to: usize, link: fn(&TwoNics) -> Link<'_>, when: When) {
    if !kernel_has_flowtables() {
        return;
    }
    let without = carried(false, link, when);
    assert!(without.iter().all(|errors| !errors[to].is_empty()), "{without:?}");
    assert_eq!(carried(true, link, when), without, "the errors with offload, and without");
}

#[test]
fn too_large_for_the_clients_link() {
    too_large(1, clients_link, When::Begun);
}

#[test]
fn too_large_for_the_uplink() {
    too_large(1, uplink, When::First);
}

#[test]
fn too_large_for_an_uplink_that_changes() {
    too_large(1, uplink, When::Offloaded);
}

#[test]
fn too_large_for_the_pods_link() {
    too_large(0, pods_link, When::Begun);
}

fn set_ttl(socket: BorrowedFd<'_>, is_v4: bool, hops: i32) {
    if is_v4 {
        setsockopt(&socket, sockopt::Ipv4Ttl, &hops).expect("a TTL");
    } else {
        setsockopt(&socket, sockopt::Ipv6Ttl, &hops).expect("a hop limit");
    }
}

/// What the client hears of packets that end at the node, and the pod.
fn time_exceeded(offload: bool) -> Heard {
    let (layout, mut talks) = talking(offload, |_| {});
    let ends = [&layout.client, &layout.pods[1].ns];
    let capture = Capture::start(&layout.router.ns);
    let mut heard = Vec::new();
    for talk in &mut talks {
        let is_v4 = talk.client().is_ipv4();
        // The router takes one from the client's.
        let errors = [(0, 2), (1, 1)].map(|(end, hops)| {
            set_ttl(talk.sockets()[end], is_v4, hops);
            // As long as a word, and none.
            let sent = send(talk.sockets()[end].as_raw_fd(), &[255; 4], MsgFlags::empty());
            assert_eq!(sent, Ok(4));
            let errors = errors_to(ends[end]);
            set_ttl(talk.sockets()[end], is_v4, 64);
            errors
        });
        heard.push(errors);
        talk.assert_goes_on("the end of a time to live");
        // Of what TCP has repeated, some may have ended there, too.
        ends.into_iter().for_each(forget_errors);
    }
    let packets = capture.stop();
    assert_eq!(count_by(&packets, &["eth0"]), 0, "by eth0");
    heard
}

#[test]
fn the_end_of_the_time_to_live() {
    if kernel_has_flowtables() {
        let without = time_exceeded(false);
        assert!(
            without.iter().flatten().flatten().all(|one| one.contains("time-exceeded")),
            "{without:?}"
        );
        assert_eq!(time_exceeded(true), without, "the errors with offload, and without");
    }
}

/// Has all packets of a socket carry an option that says nothing.
fn set_option(socket: BorrowedFd<'_>, is_v4: bool) {
    let (level, name, option): (_, _, &[u8]) = if is_v4 {
        (libc::IPPROTO_IP, libc::IP_OPTIONS, &[1; 4])
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0])
    };
    let size = libc::socklen_t::try_from(option.len()).expect("small");
    let (socket, bytes) = (socket.as_raw_fd(), option.as_ptr().cast());
    // SAFETY: the kernel reads as many bytes of a live slice as it has.
    let result = unsafe { libc::setsockopt(socket, level, name, bytes, size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn options_are_left_to_the_rules() {
    if !kernel_has_flowtables() {
        return;
    }
    let (layout, mut talks) = talking(true, |_| {});
    let forwarded = Forwarded::watch(&layout.node.ns);
    assert_pass_by(&forwarded, &mut talks, "without options");
    let capture = Capture::start(&layout.router.ns);
    for talk in &mut talks {
        for socket in talk.sockets() {
            set_option(socket, talk.client().is_ipv4());
        }
        forwarded.assert_seen(talk, "with options");
    }
    let packets = capture.stop();
    assert_eq!(count_by(&packets, &["eth0"]), 0, "by eth0");
}
