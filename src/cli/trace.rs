//! `symroutectl trace`: follows the packets of a client's connections through this node.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use clap::Args;

use super::explain::{End, address, protocol};
use super::{EXIT_UNHEALTHY, Failure};
use crate::model::Family;
use crate::names;
use crate::netlink::uapi::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP};
use crate::process;
use crate::trace::{self, Cannot, Flow, Options, Summary, link_name};

/// Version of the JSON report, raised when a key changes its meaning or is removed.
const VERSION: u32 = 1;
/// `trace` saw no packet of the flow.
const EXIT_NOTHING_SEEN: u8 = 5;

const ABOUT: &str = "\
For each packet of a client's connections and for the replies, the tool shows the NIC of
arrival, the marks and what sets them, DNAT, each routing table that the kernel tries, a drop by
rp_filter, and the NIC through which the packet leaves. The node needs neither symroute nor BPF.
The tool adds an nftables table that asks for trace messages of these packets and changes none,
and a tracefs instance. The kernel removes the table when the tool ends. If the tool is killed,
a second process removes the instance.
The tool prints \"ready\" to standard error when it listens.
With iptables-legacy, the kernel may also log these packets, as for the target TRACE.
The tool needs root, nf_tables and Linux 5.12, and Linux 6.4 to show routing tables and drops.

";

pub(super) fn tail() -> String {
    let codes = [
        (0, "packets were seen, and each reply left through the NIC of its request"),
        (
            EXIT_UNHEALTHY,
            "a packet was dropped or undeliverable, or a reply left through another NIC",
        ),
        (EXIT_NOTHING_SEEN, "no packet was seen"),
    ];
    let examples = [
        "trace --from 203.0.113.9 --to 10.21.0.10",
        "trace --from 203.0.113.9 --to 10.21.0.10:30080 --for 1m",
        "trace --from 203.0.113.9 --to 10.21.0.10 --proto icmp --json",
    ];
    super::tail(ABOUT, &codes, &examples)
}

#[derive(Debug, PartialEq, Eq, Args)]
pub(super) struct Words {
    /// Address of the client
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = address)]
    from: End,
    /// Address that the client calls, before DNAT
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = address)]
    to: End,
    /// tcp, udp, icmp, sctp or a number [default: tcp with a port, else all]
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    proto: Option<u8>,
    /// Trace for this long
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = super::duration)]
    time: Duration,
    /// Print one JSON object per packet and line, then a summary object
    #[arg(long)]
    json: bool,
}

impl Words {
    fn flow(&self) -> Result<Flow, Failure> {
        let (End { ip: from, port: from_port }, End { ip: to, port: to_port }) =
            (self.from, self.to);
        if Family::of(from) != Family::of(to) {
            let text = format!("--from {from} and --to {to}: one is IPv4 and the other IPv6");
            return Err(Failure::Failed(text));
        }
        let has_port = from_port.or(to_port).is_some();
        let protocol = match self.proto.or(has_port.then_some(IPPROTO_TCP)) {
            Some(IPPROTO_ICMP | IPPROTO_ICMPV6) if has_port => {
                let text = "--proto icmp: ICMP has no ports; give addresses alone";
                return Err(Failure::Failed(text.into()));
            }
            Some(IPPROTO_ICMP) if from.is_ipv6() => Some(IPPROTO_ICMPV6),
            other => other,
        };
        Ok(Flow { from, from_port, to, to_port, protocol })
    }
}

/// How long a trace ran, in whole seconds. `wanted`: its time if no signal ended it.
fn ran_for(elapsed: Duration, wanted: Duration) -> Duration {
    if elapsed >= wanted { wanted } else { Duration::from_secs(elapsed.as_secs()) }
}

/// Runs the command and prints each packet. Returns the summary text and the exit code.
pub(super) fn run(words: &Words) -> Result<(String, u8), Failure> {
    let flow = words.flow()?;
    let (mut summary, mut begin) = (Summary::default(), None);
    let (mut cannot_see, mut started) = (Vec::new(), Instant::now());
    let ready = |unseen: &[String]| {
        let mut stderr = io::stderr().lock();
        for what in unseen {
            let _ = writeln!(stderr, "{}: cannot see: {what}", names::TOOL);
        }
        cannot_see = unseen.to_vec();
        let _ = writeln!(stderr, "ready");
        started = Instant::now();
    };
    let options = Options { flow, time: words.time };
    let missed = trace::run(options, ready, |packet| {
        let since = packet.at.saturating_sub(*begin.get_or_insert(packet.at));
        summary.take(&flow, packet, &link_name);
        let text = if words.json {
            format!("{}\n", packet.to_json(&flow, since, &link_name))
        } else {
            packet.to_text(since, &link_name)
        };
        process::print(process::without_control_characters(&text).as_bytes()).is_ok()
    });
    cannot_see.extend(missed.map_err(|Cannot(why)| Failure::Failed(why))?);
    let code = match (summary.packets, summary.is_well()) {
        (0, _) => EXIT_NOTHING_SEEN,
        (_, true) => 0,
        (_, false) => EXIT_UNHEALTHY,
    };
    let text = if words.json {
        format!("{}\n", summary.to_json(VERSION, &cannot_see))
    } else {
        summary.to_text(ran_for(started.elapsed(), words.time), &cannot_see)
    };
    Ok((text, code))
}

#[cfg(test)]
mod tests {
    use super::super::Command;
    use super::*;

    fn parsed(line: &str) -> Result<Words, String> {
        match super::super::tests::parsed(&format!("trace {line}"))? {
            Command::Trace(words) => Ok(words),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_time_of_a_trace() {
        let ran = |millis, wanted| ran_for(Duration::from_millis(millis), wanted);
        let wanted = Duration::from_millis(2500);
        assert_eq!(ran(2600, wanted), wanted);
        assert_eq!(ran(1400, wanted).as_millis(), 1000, "a signal ended it");
    }

    #[test]
    fn command_lines() {
        let flow = |line: &str| parsed(line).unwrap().flow().ok();
        let found = flow("--from 192.0.2.1 --to 192.0.2.2:80").unwrap();
        assert_eq!((found.to_port, found.protocol), (Some(80), Some(IPPROTO_TCP)));
        let found = flow("--from [2001:db8::1]:53 --to 2001:db8::2 --proto udp").unwrap();
        assert_eq!((found.from_port, found.protocol), (Some(53), Some(17)));
        let found = flow("--from 2001:db8::1 --to [2001:db8::2] --proto icmp").unwrap();
        assert_eq!(found.protocol, Some(IPPROTO_ICMPV6));
        assert_eq!(flow("--from 192.0.2.1 --to 192.0.2.2").unwrap().protocol, None);
        assert!(flow("--from 192.0.2.1 --to 2001:db8::1").is_none());
        assert!(flow("--from 192.0.2.1 --to 192.0.2.2:80 --proto icmp").is_none());
        assert_eq!(parsed("--from 192.0.2.1 --to 192.0.2.2").unwrap().time.as_secs(), 10);
        for wrong in [
            "",
            "--from 192.0.2.1",
            "--from host --to 192.0.2.1",
            "--from 192.0.2.1 --to 192.0.2.2 --proto tcpp",
            "--from 192.0.2.1 --to 192.0.2.2 --for ever",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
