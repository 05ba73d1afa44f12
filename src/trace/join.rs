//! Makes packets of events.
//!
//! A packet in the kernel stays on its processor while it passes a hook and is routed, so what
//! happens on that processor between two of its trace messages is about it. Where several packets
//! come in as a list (`ip_list_rcv`), all pass prerouting before the first is routed: these wait.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::message::{Headers, Kind, Message};
use super::ruleset::Point;
use super::text::{Lookup, Stamp};

/// For so long after its last event a packet may have another one.
const SETTLED: Duration = Duration::from_millis(100);
/// So old is the look-up for a packet of the node, at most, when the packet meets its first chain.
const FRESH: Duration = Duration::from_millis(10);
/// So long after its last event a packet is dropped, at most.
const AT_ONCE: Duration = Duration::from_millis(10);
/// Look-ups that are kept for a packet to come.
const PENDING: usize = 16;

/// One packet on its way through this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// The first event.
    pub(crate) at: Duration,
    /// Sender and receiver, as it came.
    pub(crate) headers: Headers,
    /// In order.
    pub(crate) steps: Vec<Step>,
    id: u32,
    /// The last event.
    last: Duration,
    /// Where it was seen last, by the trace's own chains.
    point: Point,
    /// As it is now.
    now: Headers,
    /// Index of the interface that it leaves by, as far as it is known.
    oif: Option<u32>,
    pub(crate) mark: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// It came in by the interface of this index.
    Came {
        link: u32,
        mark: u32,
    },
    /// The node itself sends it.
    Sent {
        mark: u32,
    },
    Marked {
        from: u32,
        to: u32,
        by: By,
    },
    /// Its destination was changed.
    DestinationNat(SocketAddr),
    /// Its source was changed.
    SourceNat(SocketAddr),
    Table {
        asked: Asked,
        lookup: Lookup,
    },
    /// The kernel has routed it to the node itself.
    Delivered,
    /// The kernel has given it to the interface of this index.
    Left {
        link: u32,
    },
    /// For the reason that the kernel names.
    Dropped {
        reason: String,
    },
    /// A rule or the policy of a chain drops it.
    Denied(By),
}

/// What did something to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum By {
    Rule {
        table: String,
        chain: String,
        handle: u64,
    },
    Policy {
        table: String,
        chain: String,
    },
    /// Something that sends no trace message (iptables-legacy, BPF), before this place.
    Unseen(Point),
}

/// Why a table was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Where the packet goes.
    Route,
    /// Where a packet to its source would go: what the reverse path filter asks.
    WayBack,
    /// A rule of nftables has asked.
    Rule,
}

impl Packet {
    fn is_over(&self) -> bool {
        matches!(self.point, Point::InputLast | Point::PostroutingLast) || self.is_dropped()
    }

    pub(crate) fn is_dropped(&self) -> bool {
        matches!(self.steps.last(), Some(Step::Dropped { .. } | Step::Denied(_)))
    }

    /// Whether it was not seen again behind prerouting, and nothing says why.
    pub(crate) fn is_lost(&self) -> bool {
        !self.is_over()
    }

    /// Sender and receiver behind all translation.
    pub(crate) fn now(&self) -> &Headers {
        &self.now
    }

    fn goes(&self, lookup: &Lookup) -> bool {
        lookup.to == self.now.to && (lookup.from == self.now.from || lookup.from.is_unspecified())
    }

    fn comes(&self, lookup: &Lookup) -> bool {
        lookup.to == self.now.from && lookup.from == self.now.to
    }

    fn tried(&mut self, asked: Asked, lookup: Lookup, at: Duration) {
        self.last = at;
        self.steps.push(Step::Table { asked, lookup });
    }

    /// Whether the last table that was tried for this had no answer, so that the next is tried.
    fn asks_on(&self, wanted: Asked) -> bool {
        let last = self.steps.iter().rev().find_map(|step| match step {
            Step::Table { asked, lookup } if *asked == wanted => Some(lookup.error != 0),
            _ => None,
        });
        last == Some(true)
    }

    fn was_asked(&self, wanted: Asked) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Table { asked, .. } if *asked == wanted))
    }

    /// Where the look-up stands for which iptables-legacy has routed a packet of the node again. It has
    /// changed the mark, which is not seen before the end of the hook.
    fn again(&mut self) -> Option<usize> {
        let is_of_rule = |step: &Step, succeeded: bool| match step {
            Step::Table { asked: Asked::Rule, lookup } => (lookup.error == 0) == succeeded,
            _ => false,
        };
        let mut first = self.steps.len().checked_sub(1)?;
        if !is_of_rule(&self.steps[first], true) {
            return None;
        }
        while first > 0 && is_of_rule(&self.steps[first - 1], false) {
            first -= 1;
        }
        for step in &mut self.steps[first..] {
            if let Step::Table { asked, .. } = step {
                *asked = Asked::Route;
            }
        }
        Some(first)
    }

    /// Takes what a message says of headers and mark.
    fn observe(&mut self, message: &Message, by: By) {
        if message.mark != self.mark {
            let at = if by == By::Unseen(Point::OutputLast) { self.again() } else { None };
            let step = Step::Marked { from: self.mark, to: message.mark, by };
            self.steps.insert(at.unwrap_or(self.steps.len()), step);
            self.mark = message.mark;
        }
        let Some(headers) = message.headers else { return };
        if headers.receiver() != self.now.receiver() {
            self.steps.push(Step::DestinationNat(headers.receiver()));
        }
        if headers.sender() != self.now.sender() {
            self.steps.push(Step::SourceNat(headers.sender()));
        }
        self.now = headers;
    }
}

/// What happens on one processor.
#[derive(Debug, Default)]
struct Processor {
    /// The packet of the last message.
    current: Option<u32>,
    /// Packets that have passed prerouting and are not routed yet.
    waiting: VecDeque<u32>,
    /// That one of them which was routed last.
    routing: Option<u32>,
    /// Look-ups that belong to no packet yet.
    pending: VecDeque<(Duration, Lookup)>,
}

/// Makes packets of events. Events come in the order of the kernel.
#[derive(Debug)]
pub(crate) struct Join {
    /// The trace's table, with its family.
    table: String,
    packets: VecDeque<Packet>,
    processors: BTreeMap<u32, Processor>,
    /// Whether messages were lost: what no end was seen of may have had one.
    has_gaps: bool,
}

impl Join {
    pub(crate) fn new(table: &str) -> Self {
        Self {
            table: format!("inet {table}"),
            packets: VecDeque::new(),
            processors: BTreeMap::new(),
            has_gaps: false,
        }
    }

    /// Messages were lost somewhere.
    pub(crate) fn gap(&mut self) {
        self.has_gaps = true;
    }

    /// Whether one of the packets that began until then is not done.
    pub(crate) fn follows_one_of(&self, until: Duration) -> bool {
        self.packets.iter().any(|packet| packet.at <= until)
    }

    /// Packets of which nothing more is to come at this time, in order.
    pub(crate) fn done(&mut self, now: Duration) -> Vec<Packet> {
        let mut done = Vec::new();
        while let Some(first) = self.packets.front() {
            let waits = if first.is_over() { SETTLED } else { 3 * SETTLED };
            if now < first.last + waits {
                break;
            }
            let over = self.packets.pop_front();
            done.extend(over.filter(|packet| !(self.has_gaps && packet.is_lost())));
        }
        if self.packets.is_empty() {
            for processor in self.processors.values_mut() {
                processor.waiting.clear();
                (processor.current, processor.routing) = (None, None);
            }
        }
        done
    }

    /// The last packet with this id.
    fn packet(&mut self, id: u32) -> Option<&mut Packet> {
        self.packets.iter_mut().rev().find(|packet| packet.id == id)
    }

    /// A trace message. `cpu`: the processor, where it is known.
    pub(crate) fn message(&mut self, at: Duration, cpu: Option<u32>, message: &Message) {
        let own = message.table == self.table;
        let point = own.then(|| Point::of(&message.chain)).flatten();
        let asks = point.filter(|point| point.asks() && matches!(message.kind, Kind::Rule { .. }));
        if let Some(point) = asks {
            self.begin(at, cpu, point, message);
        }
        let Some(packet) = self.packet(message.id) else { return };
        packet.last = at;
        // What was taken for its end was the end of another packet.
        if matches!(packet.steps.last(), Some(Step::Dropped { .. })) {
            packet.steps.pop();
        }
        let (table, chain) = (message.table.clone(), message.chain.clone());
        let by = match (point, message.kind) {
            (Some(point), _) => By::Unseen(point),
            (None, Kind::Rule { handle, .. }) => By::Rule { table, chain, handle },
            (None, _) => By::Policy { table, chain },
        };
        packet.observe(message, by.clone());
        // Only the first message of a chain has it.
        packet.oif = message.oif.or(packet.oif);
        match (point, message.kind) {
            (_, Kind::Rule { drops: true, .. } | Kind::End { drops: true }) => {
                packet.steps.push(Step::Denied(by));
            }
            (Some(point), Kind::End { .. }) => {
                packet.point = point;
                match (point, packet.oif) {
                    (Point::InputLast, _) => packet.steps.push(Step::Delivered),
                    (Point::PostroutingLast, Some(link)) => packet.steps.push(Step::Left { link }),
                    _ => {}
                }
            }
            _ => {}
        }
        if let Some(cpu) = cpu {
            self.processors.entry(cpu).or_default().passed(message.id, point, message.kind);
        }
    }

    /// A rule of the trace's table has found a packet.
    fn begin(&mut self, at: Duration, cpu: Option<u32>, point: Point, message: &Message) {
        let Some(headers) = message.headers else { return };
        let is_new = |packet: &Packet| {
            packet.is_over()
                || packet.point.is_prerouting() != point.is_prerouting()
                || {
                    // The kernel has used the id again.
                    matches!(point, Point::PreroutingFirst | Point::OutputFirst)
                }
                || packet.point == Point::PreroutingLast
        };
        if self.packet(message.id).is_some_and(|packet| !is_new(packet)) {
            return;
        }
        let mark = message.mark;
        let first = match (point.is_prerouting(), message.iif) {
            (true, Some(link)) => Step::Came { link, mark },
            _ => Step::Sent { mark },
        };
        let id = message.id;
        let mut packet = Packet {
            at,
            headers,
            steps: vec![first],
            id,
            last: at,
            point,
            now: headers,
            oif: None,
            mark,
        };
        if let Some(processor) = cpu.and_then(|cpu| self.processors.get_mut(&cpu)) {
            if !point.is_prerouting() {
                for lookup in processor.take_pending(at, &packet) {
                    packet.tried(Asked::Route, lookup, at);
                }
            }
        }
        self.packets.push_back(packet);
    }

    /// A routing table was tried.
    pub(crate) fn lookup(&mut self, stamp: Stamp, lookup: Lookup) {
        // A question about the kind of an address.
        if lookup.iif == 0 && lookup.from.is_unspecified() {
            return;
        }
        let processor = self.processors.entry(stamp.cpu).or_default();
        let (routing, current) = (processor.routing, processor.current);
        let waiting: Vec<u32> = processor.waiting.iter().copied().collect();
        if let Some(id) = self.asker(&waiting, routing, &lookup) {
            let Some(packet) = self.packet(id) else { return };
            let asked = if packet.goes(&lookup) { Asked::Route } else { Asked::WayBack };
            packet.tried(asked, lookup, stamp.at);
            self.processors.entry(stamp.cpu).or_default().routing = Some(id);
            return;
        }
        if let Some(packet) = current.and_then(|id| self.packet(id)).filter(|p| !p.is_over()) {
            let about = |ip: IpAddr| ip == packet.now.to || ip == packet.now.from;
            if about(lookup.to) {
                // A packet of the node is routed again behind a chain that has changed its mark.
                let marked = packet.steps.iter().any(|s| matches!(s, Step::Marked { .. }));
                let output = matches!(packet.point, Point::OutputFirst | Point::OutputTracked);
                let again = marked && output && packet.goes(&lookup);
                packet.tried(if again { Asked::Route } else { Asked::Rule }, lookup, stamp.at);
                return;
            }
        }
        let processor = self.processors.entry(stamp.cpu).or_default();
        processor.pending.push_back((stamp.at, lookup));
        if processor.pending.len() > PENDING {
            processor.pending.pop_front();
        }
    }

    /// Which of the packets that wait a look-up is for.
    fn asker(&mut self, waiting: &[u32], routing: Option<u32>, lookup: &Lookup) -> Option<u32> {
        let routing = routing.filter(|id| waiting.contains(id));
        if let Some(packet) = routing.and_then(|id| self.packet(id)) {
            if packet.comes(lookup) || (packet.goes(lookup) && packet.asks_on(Asked::Route)) {
                return routing;
            }
        }
        let fits = |packet: &&mut Packet| {
            packet.comes(lookup) || (packet.goes(lookup) && !packet.was_asked(Asked::Route))
        };
        let next = waiting.iter().find(|id| self.packet(**id).as_ref().is_some_and(fits));
        let last = routing.filter(|id| self.packet(*id).is_some_and(|packet| packet.goes(lookup)));
        next.copied().or(last)
    }

    /// The kernel has dropped a packet.
    pub(crate) fn dropped(&mut self, stamp: Stamp, reason: &str) {
        let Some(processor) = self.processors.get(&stamp.cpu) else { return };
        let routing = processor.routing.filter(|id| processor.waiting.contains(id));
        let front = processor.waiting.front().copied();
        let Some(id) = routing.or(front).or(processor.current) else { return };
        let has_gaps = self.has_gaps;
        let Some(packet) = self.packet(id).filter(|packet| !packet.is_over()) else { return };
        let is_late = packet.last + AT_ONCE < stamp.at;
        let last = packet.steps.last();
        let looked_back = matches!(last, Some(Step::Table { asked: Asked::WayBack, .. }));
        let is_sure = if reason == RP_FILTER { looked_back } else { !has_gaps };
        if is_late || !is_sure {
            return;
        }
        packet.last = stamp.at;
        packet.steps.push(Step::Dropped { reason: reason.to_owned() });
        if let Some(processor) = self.processors.get_mut(&stamp.cpu) {
            processor.forget(id);
        }
    }
}

/// The reason of the reverse path filter (`include/net/dropreason-core.h`).
pub(crate) const RP_FILTER: &str = "IP_RPFILTER";

impl Processor {
    /// A message of this packet was sent here.
    fn passed(&mut self, id: u32, point: Option<Point>, kind: Kind) {
        self.pending.clear();
        self.current = Some(id);
        let waits = point == Some(Point::PreroutingLast) && matches!(kind, Kind::End { .. });
        self.forget(id);
        if waits {
            self.waiting.push_back(id);
        }
    }

    fn forget(&mut self, id: u32) {
        self.waiting.retain(|other| *other != id);
        if self.routing == Some(id) {
            self.routing = None;
        }
    }

    /// The tables that were tried, last of all, for a packet of the node that begins now.
    fn take_pending(&mut self, now: Duration, packet: &Packet) -> Vec<Lookup> {
        let mut found: Vec<Lookup> = Vec::new();
        while let Some((at, lookup)) = self.pending.pop_back() {
            let is_earlier = !found.is_empty() && lookup.error == 0;
            if is_earlier || at + FRESH < now || lookup.iif > 1 || !packet.goes(&lookup) {
                break;
            }
            found.push(lookup);
        }
        found.reverse();
        found
    }
}

#[cfg(test)]
mod tests;
