//! Tests with events in the order that the kernel sends them.

use proptest::prelude::*;
use serde_json::json;

use super::super::{Flow, Summary};
use super::*;

const CLIENT: &str = "203.0.113.9:40000";
const TIME: Duration = Duration::from_secs(10);
const NODE: &str = "10.21.0.10:10250";

fn at(micros: u64) -> Duration {
    Duration::from_micros(1_000_000 + micros)
}

fn headers(from: &str, to: &str) -> Headers {
    let [from, to] = [from, to].map(|end| end.parse::<SocketAddr>().unwrap());
    let ports = Some((from.port(), to.port()));
    Headers { from: from.ip(), to: to.ip(), protocol: 6, ports, flags: Some(2), icmp: None }
}

fn lookup(table: u32, error: i32, iif: u32, from: &str, to: &str, nic: &str) -> Lookup {
    let ip = |end: &str| end.parse::<SocketAddr>().unwrap().ip();
    let (from, to, nic) = (ip(from), ip(to), nic.to_owned());
    Lookup { table, error, iif, from, to, nic, router: None }
}

/// Sends events on processor 0, one each microsecond.
struct Events {
    join: Join,
    micros: u64,
    /// Type and code if the packets are ICMP.
    icmp: Option<(u8, u8)>,
}

impl Events {
    fn new() -> Self {
        Self { join: Join::new("trace"), micros: 0, icmp: None }
    }

    fn stamp(&mut self) -> Stamp {
        self.micros += 1;
        Stamp { cpu: 0, at: at(self.micros) }
    }

    fn send(&mut self, id: u32, chain: &str, kind: Kind, mark: u32, ends: Option<[&str; 2]>) {
        let is_in = chain.starts_with("pre") || chain.starts_with("input");
        let message = Message {
            id,
            table: if chain.contains('-') { "inet trace" } else { "ip other" }.into(),
            chain: chain.into(),
            kind,
            mark,
            iif: is_in.then_some(3),
            oif: (!is_in).then_some(2),
            headers: ends.map(|[from, to]| match self.icmp {
                None => headers(from, to),
                icmp => {
                    Headers { protocol: 1, ports: None, flags: None, icmp, ..headers(from, to) }
                }
            }),
        };
        let stamp = self.stamp();
        self.join.message(stamp.at, Some(stamp.cpu), &message);
    }

    /// A packet passes a hook: a rule of the first chain matches, and the packet reaches the end of
    /// the last chain.
    fn pass(&mut self, id: u32, hook: &str, ends: [&str; 2]) {
        let rule = Kind::Rule { handle: 1, drops: false };
        self.send(id, &format!("{hook}-first"), rule, 0, Some(ends));
        self.send(id, &format!("{hook}-first"), Kind::End { drops: false }, 0, None);
        self.end(id, &format!("{hook}-last"), ends);
    }

    fn end(&mut self, id: u32, chain: &str, ends: [&str; 2]) {
        self.send(id, chain, Kind::Other, 0, Some(ends));
        self.send(id, chain, Kind::End { drops: false }, 0, None);
    }

    fn tried(&mut self, lookup: Lookup) {
        let stamp = self.stamp();
        self.join.lookup(stamp, lookup);
    }

    /// Look-ups of a packet from outside: its route, and the way back for the reverse path filter.
    fn checked(&mut self, nic: &str) {
        self.tried(lookup(255, 0, 3, CLIENT, NODE, "eth1"));
        self.tried(lookup(255, -11, 1, NODE, CLIENT, "-"));
        self.tried(lookup(254, 0, 1, NODE, CLIENT, nic));
    }

    fn dropped(&mut self, reason: &str) {
        let stamp = self.stamp();
        self.join.dropped(stamp, reason);
    }

    /// The text of each packet, and the summary's.
    fn text(self) -> (String, String) {
        let (packets, summary) = self.sum();
        (packets, summary.to_text(TIME, &[]))
    }

    fn summary(self) -> Summary {
        self.sum().1
    }

    /// The text of each packet, and the summary.
    fn sum(mut self) -> (String, Summary) {
        let [from, to] = [CLIENT, NODE].map(|end| end.parse::<SocketAddr>().unwrap().ip());
        let flow = Flow { from, from_port: None, to, to_port: None, protocol: None };
        let name = |link: u32| format!("eth{link}");
        let (mut packets, mut summary) = (String::new(), Summary::default());
        for packet in self.join.done(Duration::MAX) {
            summary.take(&flow, &packet, &name);
            packets += &packet.to_text(Duration::ZERO, &name);
        }
        (packets, summary)
    }

    /// The steps of each packet as short words.
    fn story(mut self) -> Vec<String> {
        let short = |step: &Step| match step {
            Step::Came { .. } => "came".to_owned(),
            Step::Sent { .. } => "sent".into(),
            Step::Marked { to, .. } => format!("mark {to}"),
            Step::DestinationNat(to) => format!("dnat {to}"),
            Step::SourceNat(from) => format!("snat {from}"),
            Step::Table { asked: Asked::Route, lookup } => lookup.table.to_string(),
            Step::Table { asked: Asked::WayBack, lookup } => format!("back {}", lookup.table),
            Step::Table { asked: Asked::Rule, .. } => "rule".into(),
            Step::Delivered => "delivered".into(),
            Step::Left { link } => format!("left {link}"),
            Step::Dropped { reason } => reason.clone(),
            Step::Denied(_) => "denied".into(),
        };
        let packets = self.join.done(Duration::MAX);
        let one = |p: &Packet| p.steps.iter().map(short).collect::<Vec<_>>().join(", ");
        packets.iter().map(one).collect()
    }
}

#[test]
fn a_request_is_dropped_and_another_answered() {
    let mut events = Events::new();
    // Another network namespace routed the packet before it arrived here, and asked the way back.
    events.tried(lookup(254, 0, 9, CLIENT, NODE, "eth1"));
    events.tried(lookup(254, 0, 1, NODE, CLIENT, "c0"));
    events.pass(1, "prerouting", [CLIENT, NODE]);
    events.checked("eth0");
    events.dropped(RP_FILTER);
    events.pass(1, "prerouting", [CLIENT, NODE]);
    events.checked("eth1");
    events.end(1, "input-last", [CLIENT, NODE]);
    events.tried(lookup(254, 0, 1, NODE, CLIENT, "eth0"));
    events.pass(2, "output", [NODE, CLIENT]);
    events.end(2, "postrouting-last", [NODE, CLIENT]);
    assert_eq!(
        events.story(),
        [
            "came, 255, back 255, back 254, IP_RPFILTER",
            "came, 255, back 255, back 254, delivered",
            "sent, 254, left 2"
        ]
    );
}

#[test]
fn packets_of_one_list() {
    let mut events = Events::new();
    for id in 1..=3 {
        events.pass(id, "prerouting", [CLIENT, NODE]);
    }
    for id in 1..=3 {
        events.checked("eth0");
        if id == 2 {
            events.dropped(RP_FILTER);
        }
    }
    for id in [1, 3] {
        events.end(id, "input-last", [CLIENT, NODE]);
    }
    let well = "came, 255, back 255, back 254, delivered";
    assert_eq!(events.story(), [well, "came, 255, back 255, back 254, IP_RPFILTER", well]);
}

#[test]
fn the_drop_of_another_packet() {
    let mut events = Events::new();
    events.pass(1, "prerouting", [CLIENT, NODE]);
    // No look-up of the way back: this drop is that of another packet.
    events.dropped(RP_FILTER);
    events.checked("eth1");
    // The dropped packet is the next one of a list and not one of the flow.
    events.dropped(RP_FILTER);
    events.end(1, "input-last", [CLIENT, NODE]);
    events.dropped("NO_SOCKET");
    assert_eq!(events.story(), ["came, 255, back 255, back 254, delivered"]);
}

#[test]
fn what_rules_do() {
    let mut events = Events::new();
    let pod = "10.20.0.50:8080";
    let first = Kind::Rule { handle: 1, drops: false };
    events.send(1, "prerouting-first", first, 0, Some([CLIENT, NODE]));
    events.tried(lookup(254, 0, 1, NODE, CLIENT, "eth0"));
    let rule = Kind::Rule { handle: 9, drops: false };
    events.send(1, "mangle", rule, 512, Some([CLIENT, NODE]));
    events.send(1, "prerouting-last", Kind::Other, 512, Some([CLIENT, pod]));
    events.send(1, "prerouting-last", Kind::End { drops: false }, 512, None);
    events.tried(lookup(254, 0, 3, CLIENT, pod, "enipod0"));
    let rule = Kind::Rule { handle: 9, drops: true };
    events.send(1, "filter", rule, 512, Some([CLIENT, pod]));
    // No rule of this trace matched the packet; another trace asked for its messages.
    events.send(7, "prerouting-first", Kind::End { drops: false }, 0, Some([CLIENT, NODE]));
    let dnat = "dnat 10.20.0.50:8080";
    assert_eq!(events.story(), [format!("came, rule, mark 512, {dnat}, 254, denied")]);
}

/// The number of a rule is its handle, not its place in the chain.
#[test]
fn a_rule_is_named_by_its_handle() {
    let mut events = Events::new();
    events.pass(1, "prerouting", [CLIENT, NODE]);
    let rule = |drops| Kind::Rule { handle: 9, drops };
    events.send(1, "mangle", rule(false), 512, Some([CLIENT, NODE]));
    events.send(1, "filter", rule(true), 512, None);
    events.send(2, "output-first", rule(false), 0, Some([NODE, CLIENT]));
    events.send(2, "filter", rule(true), 0, Some([NODE, CLIENT]));
    let (packets, summary) = events.text();
    for line in [
        "mark 0x0 -> 0x200 by the rule with handle 9 of chain mangle in nftables table ip other\n",
        "dropped by the rule with handle 9 of chain filter in nftables table ip other\n",
    ] {
        assert!(packets.contains(line), "{packets}");
    }
    for chain in ["mangle", "filter"] {
        let line = format!("  \"nft -a list chain ip other {chain}\" shows the rule\n");
        assert_eq!(summary.matches(&line).count(), 1, "{summary}");
    }
    let dropped = "by the rule with handle 9 of chain filter in nftables table ip other\n";
    assert!(summary.contains(&format!("  2 packets dropped {dropped}")), "{summary}");
}

#[test]
fn nothing_was_seen() {
    let missed = ["some packets".to_owned()];
    assert_eq!(
        Events::new().summary().to_text(TIME, &missed),
        "no packet seen in 10s: did the client send? If so, netfilter did not get it, and \
         \"symroutectl doctor\" may know why\n  \
         not seen: some packets\n"
    );
}

#[test]
fn the_summary_has_each_reason() {
    let mut events = Events::new();
    for reason in ["NO_SOCKET", RP_FILTER, "NO_SOCKET"] {
        events.pass(1, "prerouting", [CLIENT, NODE]);
        events.checked("eth0");
        events.dropped(reason);
    }
    let summary = events.summary();
    assert_eq!(
        summary.to_text(TIME, &[]),
        "3 packets seen\n  \
         3 packets of the client came in by eth3\n  \
         rp_filter dropped 1 packet at eth3\n  \
         2 packets dropped: the kernel says NO_SOCKET\n"
    );
    let json = &summary.to_json(1, &[])["summary"];
    assert_eq!(json["dropped"], 2);
    assert_eq!(json["droppedBy"], json!([{"reason": "NO_SOCKET", "packets": 2}]));
}

#[test]
fn tables_have_the_names_that_explain_uses() {
    let mut events = Events::new();
    events.pass(1, "prerouting", [CLIENT, NODE]);
    events.checked("eth0");
    events.end(1, "input-last", [CLIENT, NODE]);
    events.tried(lookup(254, 0, 1, NODE, CLIENT, "eth0"));
    events.pass(2, "output", [NODE, CLIENT]);
    events.end(2, "postrouting-last", [NODE, CLIENT]);
    let (packets, summary) = events.text();
    let ways = "  table local says: eth1\n  \
                the way back to 203.0.113.9: table local says: no route\n  \
                the way back to 203.0.113.9: table main says: eth0\n";
    assert!(packets.contains(ways), "{packets}");
    assert!(summary.contains("1 packet to the client left by eth2, by table main\n"), "{summary}");
}

/// The node could not deliver a reply of the pod to the gateway.
#[test]
fn an_icmp_error_to_the_pod_is_no_reply() {
    const POD: &str = "10.20.0.50:0";
    let sum = |icmp: (u8, u8), ends: [&str; 2], hooks: [&str; 2]| {
        let mut events = Events { icmp: Some(icmp), ..Events::new() };
        events.pass(1, hooks[0], ends);
        events.end(1, hooks[1], ends);
        events.sum()
    };
    let by_node = ["output", "postrouting-last"];
    let said = "ICMP error from the node to 10.20.0.50: its packet could not be delivered\n";
    let (packets, summary) = sum((3, 1), [NODE, POD], by_node);
    assert!(packets.contains(&format!("\n  {said}  the node sends it")), "{packets}");
    assert!(!summary.is_well());
    assert_eq!(summary.to_text(TIME, &[]), format!("1 packet seen\n  1 {said}"));
    let json = &summary.to_json(1, &[])["summary"];
    assert_eq!((&json["undelivered"], &json["leftBy"]), (&json!({"10.20.0.50": 1}), &json!([])));
    // A packet that is too big, an error of a router, the copy of an error on `lo`.
    for (icmp, ends, hooks) in [
        ((3, 4), [NODE, POD], by_node),
        ((3, 1), ["192.0.2.1:0", POD], ["prerouting", "postrouting-last"]),
        ((3, 1), [NODE, NODE], ["prerouting", "input-last"]),
    ] {
        let (packets, summary) = sum(icmp, ends, hooks);
        assert!(!packets.contains("delivered\n"), "{packets}");
        assert_eq!(
            (summary.is_well(), summary.to_text(TIME, &[])),
            (true, "1 packet seen\n".into())
        );
    }
    // The client gets this one, by some NIC.
    let (packets, summary) = sum((3, 1), [NODE, CLIENT], by_node);
    assert!(packets.contains("the node to 203.0.113.9: its packet could not"), "{packets}");
    assert!(summary.is_well() && summary.left.len() == 1, "{summary:?}");
}

/// The end of a chain shows a drop by the policy, and a mark that something before it set.
#[test]
fn a_policy_drops_but_does_not_mark() {
    let mut events = Events::new();
    events.pass(1, "prerouting", [CLIENT, NODE]);
    events.send(1, "filter", Kind::End { drops: true }, 512, Some([CLIENT, NODE]));
    let (packets, summary) = events.text();
    let dropped = "by the policy of chain filter in nftables table ip other\n";
    assert_eq!(
        summary,
        format!(
            "1 packet seen\n  1 packet of the client came in by eth3\n  1 packet dropped {dropped}"
        )
    );
    assert!(
        packets.ends_with(
            "  mark 0x0 -> 0x200 before the end of chain filter in nftables table ip other\n  \
             dropped by the policy of chain filter in nftables table ip other\n"
        ),
        "{packets}"
    );
}

#[test]
fn a_packet_of_the_node_is_routed_again() {
    let mut events = Events::new();
    let rule = Kind::Rule { handle: 1, drops: false };
    // An older look-up, which found a route.
    events.tried(lookup(254, 0, 1, NODE, CLIENT, "eth0"));
    events.tried(lookup(255, -11, 1, NODE, CLIENT, "-"));
    events.tried(lookup(254, 0, 1, NODE, CLIENT, "eth0"));
    events.send(1, "output-first", rule, 0, Some([NODE, CLIENT]));
    events.send(1, "mangle", rule, 512, Some([NODE, CLIENT]));
    events.tried(lookup(47002, 0, 1, NODE, CLIENT, "eth1"));
    events.send(1, "output-last", Kind::End { drops: false }, 512, None);
    events.end(1, "postrouting-last", [NODE, CLIENT]);
    assert_eq!(events.story(), ["sent, 255, 254, mark 512, 47002, mark 0, left 2"]);
}

#[test]
fn iptables_legacy_has_it_routed_again() {
    let mut events = Events::new();
    let rule = Kind::Rule { handle: 1, drops: false };
    events.tried(lookup(254, 0, 1, NODE, CLIENT, "eth0"));
    events.send(1, "output-first", rule, 0, Some([NODE, CLIENT]));
    events.tried(lookup(254, 0, 1, NODE, CLIENT, "eth0"));
    events.tried(lookup(255, -11, 1, NODE, CLIENT, "-"));
    events.tried(lookup(47002, 0, 1, NODE, CLIENT, "eth1"));
    events.send(1, "output-last", Kind::End { drops: false }, 512, None);
    assert_eq!(events.story(), ["sent, 254, rule, mark 512, 255, 47002"]);
}

#[test]
fn what_had_no_end_is_not_judged_where_messages_were_lost() {
    let mut events = Events::new();
    events.join.gap();
    events.pass(1, "prerouting", [CLIENT, NODE]);
    events.dropped("QUEUE_PURGE");
    events.pass(2, "prerouting", [CLIENT, NODE]);
    events.checked("eth0");
    events.dropped(RP_FILTER);
    assert_eq!(events.story(), ["came, 255, back 255, back 254, IP_RPFILTER"]);
}

#[test]
fn a_packet_is_handed_on_when_nothing_more_comes() {
    let mut events = Events::new();
    events.pass(1, "prerouting", [CLIENT, NODE]);
    assert_eq!(events.join.done(at(100)), []);
    assert!(events.join.follows_one_of(at(100)) && !events.join.follows_one_of(Duration::ZERO));
    let done = events.join.done(at(1_000_000));
    assert!(done.len() == 1 && done[0].is_lost());
    assert!(!events.join.follows_one_of(at(1_000_000)));
    assert_eq!(events.join.done(Duration::MAX), []);
}

proptest! {
    #[test]
    fn any_order_of_events_is_taken(
        all in prop::collection::vec((0..8_u8, 0..3_u32, 0..3_u32, any::<bool>()), 0..200)
    ) {
        let chains = [
            "prerouting-first", "prerouting-last", "input-last", "output-first",
            "postrouting-last", "other",
        ];
        let mut events = Events::new();
        for (what, id, mark, flag) in all {
            let ends = if flag { [CLIENT, NODE] } else { [NODE, CLIENT] };
            match what {
                6 => events.tried(lookup(254, -i32::from(flag), id, ends[0], ends[1], "eth0")),
                7 => events.dropped(if flag { RP_FILTER } else { "NO_SOCKET" }),
                chain => {
                    let chain = chains[usize::from(chain)];
                    let rule = Kind::Rule { handle: 1, drops: mark == 2 };
                    let kind = if flag { rule } else { Kind::End { drops: false } };
                    events.send(id, chain, kind, mark, (mark > 0).then_some(ends));
                }
            }
        }
        for story in events.story() {
            let begins = story.starts_with("came") || story.starts_with("sent");
            prop_assert!(begins, "{story}");
        }
    }
}
