//! Builds packets from events.
//!
//! A packet stays on its processor while it passes a hook and the kernel routes it. So events of
//! that processor between two of its trace messages are about this packet. A driver may deliver
//! several packets as a list (`ip_list_rcv`). Then all of them pass prerouting before the kernel
//! routes the first, and the packets wait for their look-ups.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::message::{Headers, IcmpError, Kind, Message};
use super::ruleset::Point;
use super::text::{Lookup, Stamp};

/// Time without an event after which a packet with an end is done.
const SETTLED: Duration = Duration::from_millis(100);
/// Maximum time from the look-up for a packet of the node to the packet's first chain.
const FRESH: Duration = Duration::from_millis(10);
/// Maximum time from the last event of a packet to its drop.
const AT_ONCE: Duration = Duration::from_millis(10);
/// Maximum number of look-ups on one processor that wait for a packet of the node.
const PENDING: usize = 16;

/// One packet on its way through this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Time of the first event, by the monotonic clock.
    pub(crate) at: Duration,
    /// Sender and receiver at the first event, before any NAT on this node.
    pub(crate) headers: Headers,
    /// Steps in the order of time.
    pub(crate) steps: Vec<Step>,
    id: u32,
    /// Time of the last event.
    last: Duration,
    /// The last of the trace's own chains that the packet passed.
    point: Point,
    /// Sender and receiver after the last event.
    now: Headers,
    /// Index of the outgoing interface, if known.
    oif: Option<u32>,
    /// Packet mark after the last event.
    pub(crate) mark: u32,
}

/// One thing that happened to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The packet arrived on the interface with this index.
    Came { link: u32, mark: u32 },
    /// The node itself sends the packet.
    Sent { mark: u32 },
    /// The packet mark changed.
    Marked { from: u32, to: u32, by: Actor },
    /// The destination changed to this address and port.
    DestinationNat(SocketAddr),
    /// The source changed to this address and port.
    SourceNat(SocketAddr),
    /// The kernel tried a routing table.
    Table { asked: Asked, lookup: Lookup },
    /// The kernel routed the packet to the node itself.
    Delivered,
    /// The kernel passed the packet to the interface with this index.
    Left { link: u32 },
    /// The kernel dropped the packet and gave this reason.
    Dropped { reason: String },
    /// A rule or the policy of a chain dropped the packet.
    Denied(Actor),
}

/// What changed or dropped a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actor {
    Rule {
        table: String,
        chain: String,
        handle: u64,
    },
    Policy {
        table: String,
        chain: String,
    },
    /// A part of the kernel that sends no trace messages (iptables-legacy, BPF), before this point.
    Unseen(Point),
}

/// Reason why the kernel tried a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The route of the packet.
    Route,
    /// The route back to the packet's source, for the reverse path filter.
    WayBack,
    /// A look-up by a rule of nftables.
    Rule,
}

impl Packet {
    fn is_over(&self) -> bool {
        matches!(self.point, Point::InputLast | Point::PostroutingLast) || self.is_dropped()
    }

    pub(crate) fn is_dropped(&self) -> bool {
        matches!(self.steps.last(), Some(Step::Dropped { .. } | Step::Denied(_)))
    }

    /// Whether the trace saw no end of the packet: no delivery to the node, departure or drop.
    pub(crate) fn is_lost(&self) -> bool {
        !self.is_over()
    }

    /// Sender and receiver after the last event.
    pub(crate) fn now(&self) -> &Headers {
        &self.now
    }

    /// The ICMP error, if this is one, and whether the node sends it.
    pub(crate) fn icmp_error(&self) -> Option<(IcmpError, bool)> {
        let is_sent = matches!(self.steps.first(), Some(Step::Sent { .. }));
        self.headers.icmp_error().map(|error| (error, is_sent))
    }

    /// Whether the look-up may be for the route of this packet.
    fn fits_route(&self, lookup: &Lookup) -> bool {
        lookup.to == self.now.to && (lookup.from == self.now.from || lookup.from.is_unspecified())
    }

    /// Whether the look-up may be for the way back to the source of this packet.
    fn fits_way_back(&self, lookup: &Lookup) -> bool {
        lookup.to == self.now.from && lookup.from == self.now.to
    }

    fn tried(&mut self, asked: Asked, lookup: Lookup, at: Duration) {
        self.last = at;
        self.steps.push(Step::Table { asked, lookup });
    }

    /// Whether the last table tried for this reason had no route, so that the kernel tries another.
    fn asks_next_table(&self, wanted: Asked) -> bool {
        let last = self.steps.iter().rev().find_map(|step| match step {
            Step::Table { asked, lookup } if *asked == wanted => Some(lookup.error != 0),
            _ => None,
        });
        last == Some(true)
    }

    fn was_asked(&self, wanted: Asked) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Table { asked, .. } if *asked == wanted))
    }

    /// Index of the first step of a second routing by iptables-legacy, for a packet of the node.
    /// The trace sees the new mark only at the end of the hook, after these steps. Changes their
    /// reason to [`Asked::Route`].
    fn take_second_routing(&mut self) -> Option<usize> {
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

    /// Adds steps for changes of headers and mark that this message shows.
    fn observe(&mut self, message: &Message, by: Actor) {
        if message.mark != self.mark {
            let at = if by == Actor::Unseen(Point::OutputLast) {
                self.take_second_routing()
            } else {
                None
            };
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

/// State of one processor. Packets are named by their trace id.
#[derive(Debug, Default)]
struct Processor {
    /// The packet of the last message.
    current: Option<u32>,
    /// Packets that have passed prerouting and that the kernel has not routed yet.
    waiting: VecDeque<u32>,
    /// The waiting packet of the last look-up.
    routing: Option<u32>,
    /// Look-ups that belong to no packet yet, with their times.
    pending: VecDeque<(Duration, Lookup)>,
}

/// Builds packets from events. Expects the events in the kernel's order.
#[derive(Debug)]
pub(crate) struct Join {
    /// Family and name of the trace's table.
    table: String,
    packets: VecDeque<Packet>,
    processors: BTreeMap<u32, Processor>,
    /// Whether the kernel dropped messages, so that a packet without an end is not counted as lost.
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

    /// Notes that the kernel dropped messages.
    pub(crate) fn gap(&mut self) {
        self.has_gaps = true;
    }

    /// Whether a packet that began at `until` or earlier is not done.
    pub(crate) fn follows_one_of(&self, until: Duration) -> bool {
        self.packets.iter().any(|packet| packet.at <= until)
    }

    /// Takes the packets that have no more events to expect at this time, in order.
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

    /// Takes a trace message. `cpu` is the processor, if known.
    pub(crate) fn message(&mut self, at: Duration, cpu: Option<u32>, message: &Message) {
        let own = message.table == self.table;
        let point = own.then(|| Point::of(&message.chain)).flatten();
        let asks = point.filter(|point| point.asks() && matches!(message.kind, Kind::Rule { .. }));
        if let Some(point) = asks {
            self.begin(at, cpu, point, message);
        }
        let Some(packet) = self.packet(message.id) else { return };
        packet.last = at;
        // The packet goes on, so the drop was that of another packet.
        if matches!(packet.steps.last(), Some(Step::Dropped { .. })) {
            packet.steps.pop();
        }
        let (table, chain) = (message.table.clone(), message.chain.clone());
        let by = match (point, message.kind) {
            (Some(point), _) => Actor::Unseen(point),
            (None, Kind::Rule { handle, .. }) => Actor::Rule { table, chain, handle },
            (None, _) => Actor::Policy { table, chain },
        };
        packet.observe(message, by.clone());
        // The kernel sends it only in the first message of a chain.
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

    /// Begins a packet that a rule of the trace's table matched, unless it has begun already.
    fn begin(&mut self, at: Duration, cpu: Option<u32>, point: Point, message: &Message) {
        let Some(headers) = message.headers else { return };
        let is_new = |packet: &Packet| {
            packet.is_over()
                || packet.point.is_prerouting() != point.is_prerouting()
                || {
                    // The first chain of a hook: the kernel uses the id for another packet.
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

    /// Takes a look-up in one routing table.
    pub(crate) fn lookup(&mut self, stamp: Stamp, lookup: Lookup) {
        // The kernel asks for the type of an address here, not for a route.
        if lookup.iif == 0 && lookup.from.is_unspecified() {
            return;
        }
        let processor = self.processors.entry(stamp.cpu).or_default();
        let (routing, current) = (processor.routing, processor.current);
        let waiting: Vec<u32> = processor.waiting.iter().copied().collect();
        if let Some(id) = self.packet_for(&waiting, routing, &lookup) {
            let Some(packet) = self.packet(id) else { return };
            let asked = if packet.fits_route(&lookup) { Asked::Route } else { Asked::WayBack };
            packet.tried(asked, lookup, stamp.at);
            self.processors.entry(stamp.cpu).or_default().routing = Some(id);
            return;
        }
        if let Some(packet) = current.and_then(|id| self.packet(id)).filter(|p| !p.is_over()) {
            let about = |ip: IpAddr| ip == packet.now.to || ip == packet.now.from;
            if about(lookup.to) {
                // The kernel routes a packet of the node again after a chain changed its mark.
                let marked = packet.steps.iter().any(|s| matches!(s, Step::Marked { .. }));
                let output = matches!(packet.point, Point::OutputFirst | Point::OutputTracked);
                let again = marked && output && packet.fits_route(&lookup);
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

    /// The waiting packet that the look-up is for.
    fn packet_for(
        &mut self,
        waiting: &[u32],
        routing: Option<u32>,
        lookup: &Lookup,
    ) -> Option<u32> {
        let routing = routing.filter(|id| waiting.contains(id));
        if let Some(packet) = routing.and_then(|id| self.packet(id)) {
            if packet.fits_way_back(lookup)
                || (packet.fits_route(lookup) && packet.asks_next_table(Asked::Route))
            {
                return routing;
            }
        }
        let fits = |packet: &&mut Packet| {
            packet.fits_way_back(lookup)
                || (packet.fits_route(lookup) && !packet.was_asked(Asked::Route))
        };
        let next = waiting.iter().find(|id| self.packet(**id).as_ref().is_some_and(fits));
        let last =
            routing.filter(|id| self.packet(*id).is_some_and(|packet| packet.fits_route(lookup)));
        next.copied().or(last)
    }

    /// Takes a drop. Ignores it if it may be that of another packet.
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

/// Drop reason of the reverse path filter (`include/net/dropreason-core.h`).
pub(crate) const RP_FILTER: &str = "IP_RPFILTER";

impl Processor {
    /// Notes a message of this packet on this processor.
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

    /// Takes the pending look-ups that found the route of a packet of the node that begins now.
    fn take_pending(&mut self, now: Duration, packet: &Packet) -> Vec<Lookup> {
        let mut found: Vec<Lookup> = Vec::new();
        while let Some((at, lookup)) = self.pending.pop_back() {
            let is_earlier = !found.is_empty() && lookup.error == 0;
            if is_earlier || at + FRESH < now || lookup.iif > 1 || !packet.fits_route(&lookup) {
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
