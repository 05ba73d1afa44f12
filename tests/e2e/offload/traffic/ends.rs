//! How offloaded connections end, rest and are counted in conntrack.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::flowtable::{Forwarded, is_offloaded, kernel_has_flowtables, line_of, offload};
use crate::lab::netns::Netns;
use crate::lab::talk::Talk;
use crate::lab::two_nics::{POD, POD6, two_nics};

use super::super::settings;
use super::{assert_all_bypass_rules, begin, offload_all};

const PATIENT: Duration = Duration::from_secs(12);
const POD1: [&str; 2] = [POD[1], POD6[1]];

/// Waits until the `conntrack -L` line with this client port fulfils the condition, and returns the
/// line.
fn await_conntrack_line(
    node: &Netns,
    port: u16,
    what: &str,
    condition: impl Fn(&str) -> bool,
) -> String {
    let (begin, port) = (Instant::now(), format!(" sport={port} "));
    loop {
        let lines = ["ipv4", "ipv6"].map(|f| node.exec(&["conntrack", "-L", "-f", f], ""));
        let found = lines.iter().flat_map(|lines| lines.lines()).find(|line| line.contains(&port));
        let line = found.unwrap_or_default();
        if condition(line) {
            return line.to_owned();
        }
        assert!(begin.elapsed() < PATIENT, "{what}: {line}");
    }
}

/// Seconds until conntrack forgets the connection without a packet.
fn seconds(line: &str) -> u64 {
    let mut words = line.split_whitespace().skip(2);
    words.find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// Closes both ends at once, so that the first one sends an RST.
fn reset(talk: Talk) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let [client, server] = talk.sockets();
    for end in [client, server] {
        setsockopt(&end.as_fd(), sockopt::Linger, &linger).expect("a socket");
    }
    drop(talk);
}

#[test]
fn fin_and_rst_end_it() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node.ns;
    layout.node.up(&settings());
    for is_reset in [false, true] {
        let mut talks = begin(&layout.client, &layout.pods[1].ns, &POD1);
        talks.truncate(2);
        offload_all(&layout.node, &mut talks);
        for talk in talks {
            let port = talk.client().port();
            // Conntrack has missed packets. In Linux 6.12 it therefore distrusts an RST and waits
            // for an answer.
            let (states, most) =
                if is_reset { (["CLOSE", "ESTABLISHED"], 300) } else { (["TIME_WAIT"; 2], 120) };
            if is_reset {
                reset(talk);
            } else {
                drop(talk);
            }
            let ended = |line: &str| {
                !line.contains("[OFFLOAD]") && states.iter().any(|state| line.contains(state))
            };
            let line = await_conntrack_line(node, port, "ends", ended);
            assert!(seconds(&line) <= most, "{line}");
        }
    }
    layout.node.down();
}

#[test]
fn what_rests_goes_back_to_the_rules_and_comes_again() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node.ns;
    let keep_for = |seconds| {
        for protocol in ["tcp", "udp"] {
            node.sysctl(&format!("netfilter/nf_flowtable_{protocol}_timeout"), seconds);
        }
    };
    keep_for("1");
    let forwarded = Forwarded::watch(node);
    layout.node.up(&settings());
    let mut talks = begin(&layout.client, &layout.pods[1].ns, &POD1);
    offload_all(&layout.node, &mut talks);
    for talk in &talks {
        let rests = |line: &str| !line.is_empty() && !line.contains("[OFFLOAD]");
        let line = await_conntrack_line(node, talk.client().port(), "rests", rests);
        let sane = if line.contains("tcp") { 3600..=432_000 } else { 20..=180 };
        assert!(sane.contains(&seconds(&line)), "{line}");
        assert!(line.contains("[ASSURED]"), "{line}");
    }
    keep_for("30");
    for talk in &mut talks {
        assert!(!is_offloaded(node, talk), "at rest");
        offload(node, talk);
    }
    assert_all_bypass_rules(&forwarded, &mut talks, "after a rest");
    layout.node.down();
}

/// Packets that conntrack has counted in each direction.
fn counted(node: &Netns, talk: &Talk) -> [u64; 2] {
    let line = line_of(node, talk);
    let counts = line.split_whitespace().filter_map(|word| word.strip_prefix("packets="));
    let counts: Vec<u64> = counts.map(|count| count.parse().expect("a number")).collect();
    counts.try_into().unwrap_or_else(|_| panic!("no two counts: {line}"))
}

#[test]
fn conntrack_counts_its_packets() {
    if !kernel_has_flowtables() {
        return;
    }
    let layout = two_nics();
    let node = &layout.node.ns;
    node.sysctl("netfilter/nf_conntrack_acct", "1");
    let forwarded = Forwarded::watch(node);
    layout.node.up(&settings());
    let mut talks = begin(&layout.client, &layout.pods[1].ns, &POD1);
    offload_all(&layout.node, &mut talks);
    for talk in &mut talks {
        let before = counted(node, talk);
        forwarded.assert_bypasses_rules(talk, "counted");
        let after = counted(node, talk);
        for (before, after) in before.into_iter().zip(after) {
            assert!(after >= before + 5, "{before} packets, then {after}");
        }
    }
    layout.node.down();
}
