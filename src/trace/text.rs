//! Reads lines of the kernel's `trace_pipe`.
//!
//! Formats: `include/trace/events/{fib,fib6,skb,sock}.h`, and `trace_print_lat_context` and
//! `trace_print_context` of `kernel/trace/trace_output.c`. The reader ignores lines of other forms.

use std::net::IpAddr;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Event(Stamp, Event),
    /// Number of events that the kernel dropped because its buffer was full.
    Lost(u64),
}

/// Processor and time of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) cpu: u32,
    /// Time of the monotonic clock.
    pub(crate) at: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The kernel tried a routing table.
    Lookup(Lookup),
    /// The kernel dropped a packet and gave this reason.
    Dropped { reason: String },
    /// A message reached the trace's socket.
    MessageQueued,
}

/// Answer of one routing table to a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lookup {
    pub(crate) table: u32,
    /// 0, or a negative error number: the table has no route, or a route that denies.
    pub(crate) error: i32,
    /// Index of the incoming interface; 1 (`lo`) or 0 for a packet of the node.
    pub(crate) iif: u32,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// Name of the outgoing interface.
    pub(crate) nic: String,
    /// Next hop. With IPv4 an arbitrary value if the route has none; see [`super::routers`].
    pub(crate) router: Option<IpAddr>,
}

/// Reads one line.
pub(crate) fn parse(line: &str) -> Option<Line> {
    if let Some((_, rest)) = line.split_once("[LOST ") {
        let count = rest.split(' ').next()?.parse().ok()?;
        return line.trim_start().starts_with("CPU:").then_some(Line::Lost(count));
    }
    let (stamp, rest) = context(line)?;
    let (name, fields) = rest.split_once(": ")?;
    let event = match name {
        "fib_table_lookup" | "fib6_table_lookup" => Event::Lookup(lookup(fields)?),
        "kfree_skb" => {
            let (_, reason) = fields.rsplit_once("reason: ")?;
            Event::Dropped { reason: reason.trim().to_owned() }
        }
        "sk_data_ready" => Event::MessageQueued,
        _ => return None,
    };
    Some(Line::Event(stamp, event))
}

/// Reads the fields before the event: name and id of the process, processor, flags, time. Returns
/// the stamp and the rest of the line. A process name may have brackets and colons, but its 15
/// bytes are too few to look like all these fields.
fn context(line: &str) -> Option<(Stamp, &str)> {
    line.match_indices(" [").find_map(|(start, _)| {
        let (cpu, rest) = line[start + 2..].split_once("] ")?;
        let (head, rest) = rest.split_once(": ")?;
        let at = head.split(' ').next_back().and_then(seconds)?;
        Some((Stamp { cpu: cpu.parse().ok()?, at }, rest))
    })
}

fn seconds(text: &str) -> Option<Duration> {
    let (whole, part) = text.split_once('.')?;
    let micros: u64 = (part.len() == 6).then(|| part.parse().ok()).flatten()?;
    Duration::from_secs(whole.parse().ok()?).checked_add(Duration::from_micros(micros))
}

fn lookup(fields: &str) -> Option<Lookup> {
    let (asked, said) = fields.split_once(" ==> dev ")?;
    let asked: Vec<&str> = asked.split_whitespace().collect();
    let after = |word: &str| {
        let at = asked.iter().position(|other| *other == word)?;
        asked.get(at + 1)?.parse::<i64>().ok()
    };
    let arrow = asked.iter().position(|word| *word == "->")?;
    let address = |word: Option<&&str>| -> Option<IpAddr> {
        let word = word?;
        word.rsplit_once('/').map_or(*word, |(ip, _)| ip).parse().ok()
    };
    let from = address(asked.get(arrow.checked_sub(1)?))?;
    let to = address(asked.get(arrow + 1))?;
    let said: Vec<&str> = said.split_whitespace().collect();
    let [nic, "gw", router, "err", error] = said[..] else { return None };
    // IPv4: `A/B`, a next hop of IPv4 and one of IPv6 (RFC 5549). One of the two is unspecified.
    let routers = router.split('/').filter_map(|ip| ip.parse().ok());
    let router = { routers }.find(|ip: &IpAddr| !ip.is_unspecified());
    Some(Lookup {
        table: after("table")?.try_into().ok()?,
        error: error.parse().ok()?,
        iif: after("iif")?.try_into().ok()?,
        from,
        to,
        nic: nic.to_owned(),
        router,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as Linux 6.18 prints them.
    const LINES: &str = "\
         python3-11106   [001] ..s1. 40033.176932: fib_table_lookup: table 255 oif 0 iif 0 proto 0 0.0.0.0/0 -> 203.0.113.9/0 tos 0 scope 0 flags 0 ==> dev eth0 gw 10.20.0.1/:: err 0
         python3-11106   [001] ..s1. 40033.176961: sk_data_ready: family=16 protocol=12 func=sock_def_readable
          <idle>-0       [000] ..s1. 40033.176969: fib_table_lookup: table 254 oif 0 iif 2 proto 6 203.0.113.9/36332 -> 10.21.0.10/99 tos 0 scope 0 flags 0 ==> dev eth1 gw 0.234.255.255/8053:7d0a:ea:ffff:c0b2:8b04:ea:ffff err 0
    kworker/u8:2-4463    [000] b.s1. 40033.549373: fib6_table_lookup: table 255 oif 0 iif 1 proto 6 2001:db8:21::10/99 -> 2001:db8:21::9/48834 flowlabel 0x0 tos 0 scope 0 flags 0 ==> dev lo gw :: err -113
 Web Content [2]-4463    [003] b.s1. 40033.549374: fib6_table_lookup: table 47002 oif 0 iif 1 proto 0 2001:db8:21::10/0 -> 2001:db8:21::9/0 flowlabel 0x0 tos 0 scope 0 flags 0 ==> dev eth1 gw fe80::1 err 0
         python3-11106   [001] ..s1. 40033.177011: kfree_skb: skbaddr=00000000eff89973 rx_sk=0000000000000000 protocol=2048 location=ip_rcv_finish_core+0x91/0x13f0 reason: IP_RPFILTER
CPU:1 [LOST 12 EVENTS]
";

    #[test]
    fn lines_of_a_kernel() {
        let all: Vec<_> = LINES.lines().map(|line| parse(line).expect(line)).collect();
        let lookup = |at: usize| match &all[at] {
            Line::Event(stamp, Event::Lookup(lookup)) => (stamp.cpu, lookup.clone()),
            other => panic!("{other:?}"),
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (cpu, plain) = lookup(2);
        assert_eq!((cpu, plain.table, plain.error, plain.iif), (0, 254, 0, 2));
        assert_eq!((plain.from, plain.to), (ip("203.0.113.9"), ip("10.21.0.10")));
        assert_eq!((plain.nic.as_str(), plain.router), ("eth1", Some(ip("0.234.255.255"))));
        assert_eq!(lookup(3).1.error, -113);
        let (cpu, last) = lookup(4);
        assert_eq!((cpu, last.table, last.router), (3, 47002, Some(ip("fe80::1"))));
        let stamp = Stamp { cpu: 1, at: Duration::from_micros(40_033_176_961) };
        assert_eq!(all[1], Line::Event(stamp, Event::MessageQueued));
        let reason = "IP_RPFILTER".to_owned();
        let stamp = Stamp { cpu: 1, at: Duration::from_micros(40_033_177_011) };
        assert_eq!(all[5], Line::Event(stamp, Event::Dropped { reason }));
        assert_eq!(all[6], Line::Lost(12));
    }

    #[test]
    fn no_part_of_a_line_is_an_event() {
        for line in LINES.lines() {
            for end in 0..line.len() {
                if let Some(Line::Event(_, Event::Lookup(_))) = parse(&line[..end]) {
                    assert!(line[..end].contains("err "), "{}", &line[..end]);
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = parse(&text);
        }

        #[test]
        fn any_fields_are_read(name in "fib6?_table_lookup|kfree_skb", fields: String) {
            let _ = parse(&format!("x-1 [000] ..s1. 1.000000: {name}: {fields}"));
            let _ = parse(&format!("x-1 [000] ..s1. 1.000000: {name}: table {fields} -> ==> dev {fields}"));
        }
    }
}
