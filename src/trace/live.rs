//! Runs a trace: listens to the kernel and passes each packet to the caller.

use std::collections::VecDeque;
use std::fmt::Display;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Uid;

use super::Flow;
use super::instance::own_suffix;
use super::join::{Join, Packet};
use super::message::{self, Message};
use super::routers::Routers;
use super::ruleset;
use super::text::{Event, Line, Stamp, parse};
use super::tracepoints::Tracepoints;
use crate::doctor::look::flowtables;
use crate::model::Family;
use crate::names::TRACE_TABLE;
use crate::netlink::Socket;
use crate::netlink::listener::{Heard, Listener};
use crate::netlink::uapi::NFNLGRP_NFTRACE;
use crate::netlink::wire::messages;
use crate::node::observe::is_missing;
use crate::process;

/// Receive buffer for trace messages, in bytes.
const RECEIVE_BUFFER: usize = 32 << 20;
/// Maximum time between two calls that pass on packets.
const BEAT: Duration = Duration::from_millis(50);
/// Maximum time for which an ending trace follows packets that have not reached their end.
const MAX_FINISH: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) flow: Flow,
    /// Duration of the trace.
    pub(crate) time: Duration,
}

/// Message with the reason why the trace failed, and the remedy.
#[derive(Debug)]
pub(crate) struct Cannot(pub(crate) String);

/// Passes each packet to `take` until the time is over, a signal arrives or `take` returns false.
/// Calls `ready` when the trace listens, with what it can't see and why. Returns what it missed.
pub(crate) fn run(
    options: Options,
    ready: impl FnOnce(&[String]),
    mut take: impl FnMut(&Packet) -> bool,
) -> Result<Vec<String>, Cannot> {
    let signals =
        process::ending_signals().map_err(|errno| Cannot(format!("wait for signals: {errno}")))?;
    let mut trace = Trace::arm(&options.flow)?;
    ready(&trace.unseen);
    let end = Instant::now() + options.time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || trace.wait(Some(&signals), left.min(BEAT))? {
            break;
        }
        trace.pump()?;
        if !trace.join.done(now()).iter().all(&mut take) {
            return Ok(trace.missed);
        }
    }
    trace.finish(take)?;
    Ok(trace.missed)
}

/// Name of an interface, or `#INDEX` if the interface no longer exists.
pub(crate) fn link_name(link: u32) -> String {
    let name = if_indextoname(link).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("#{link}"))
}

/// Time of the monotonic clock, which the tracepoints use as well.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// A running trace.
#[derive(Debug)]
struct Trace {
    listener: Listener,
    /// `None` if the kernel has no usable tracepoints.
    tracepoints: Option<Tracepoints>,
    /// Owns the table: the kernel removes the table when this socket closes.
    _owner: Socket,
    join: Join,
    routers: Routers,
    /// Datagrams whose tracepoint line has not arrived yet; `None` for one without a trace message.
    messages: VecDeque<Option<Message>>,
    /// Whether events were lost. Until all queues are empty, the order of messages and look-ups is
    /// unknown.
    is_adrift: bool,
    /// What the trace can't see, and why.
    unseen: Vec<String>,
    /// What the trace missed, and why.
    missed: Vec<String>,
}

impl Trace {
    fn arm(flow: &Flow) -> Result<Self, Cannot> {
        let cannot = |what: &str, error: &dyn Display| {
            let remedy = if Uid::effective().is_root() {
                "\"symroutectl explain\" says where packets go without following them"
            } else {
                "run it as root"
            };
            Cannot(format!("{what}: {error}; {remedy}"))
        };
        let mut listener = Listener::netfilter(RECEIVE_BUFFER)
            .map_err(|errno| cannot("listen to netfilter", &errno.desc()))?;
        let mut unseen = Vec::new();
        let tracepoints = Tracepoints::arm(&mut listener, flow);
        let tracepoints = tracepoints
            .map_err(|why| {
                unseen.push(format!("routing tables and the reasons of drops, because: {why}"));
            })
            .ok();
        unseen.extend(offloaded());
        listener.join(NFNLGRP_NFTRACE).map_err(|e| cannot("listen to nftables", &e.desc()))?;
        let mut owner =
            Socket::netfilter().map_err(|error| cannot("open a socket to nftables", &error))?;
        let table = format!("{TRACE_TABLE}{}", own_suffix());
        ruleset::install(&mut owner, &table, flow).map_err(|error| {
            let what = if is_missing(&error) {
                "make the trace's nftables table (the kernel lacks nf_tables, or is older than 5.12)"
            } else {
                "make the trace's nftables table"
            };
            cannot(what, &error)
        })?;
        let (messages, missed) = (VecDeque::new(), Vec::new());
        let join = Join::new(&table);
        let routers = Socket::route().map_err(|error| cannot("open a socket", &error))?;
        let routers = Routers::read(&mut { routers }, Family::of(flow.from));
        let routers = routers.map_err(|error| cannot("look at the node", &error))?;
        Ok(Self {
            listener,
            routers,
            tracepoints,
            _owner: owner,
            join,
            messages,
            is_adrift: false,
            unseen,
            missed,
        })
    }

    /// Waits until there is something to read. Returns whether one of these signals arrived.
    fn wait(&self, signals: Option<&SignalFd>, time: Duration) -> Result<bool, Cannot> {
        let mut asked = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if let Some(pipe) = self.tracepoints.as_ref().and_then(Tracepoints::pipe) {
            asked.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        asked.extend(signals.map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN)));
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
        match poll(&mut asked, time) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Cannot(format!("wait for packets: {}", errno.desc()))),
        }
        let last = asked.last().filter(|_| signals.is_some());
        Ok(last.and_then(PollFd::any).unwrap_or(false))
    }

    /// Follows the packets that began before now to their end. Otherwise they would count as lost.
    fn finish(&mut self, mut take: impl FnMut(&Packet) -> bool) -> Result<(), Cannot> {
        // Messages that wait get their time when they are read, where no tracepoint reports them.
        self.pump()?;
        let end = now();
        loop {
            let at = now();
            // After `MAX_FINISH`, a packet without an end is lost.
            let at = if at < end + MAX_FINISH { at } else { Duration::MAX };
            let done = self.join.done(at);
            if !done.iter().filter(|packet| packet.at <= end).all(&mut take)
                || !self.join.follows_one_of(end)
            {
                return Ok(());
            }
            self.wait(None, BEAT)?;
            self.pump()?;
        }
    }

    /// Reads all available lines and messages and passes them to the join.
    fn pump(&mut self) -> Result<(), Cannot> {
        // Lines first: the kernel queues a message in the socket before the tracepoint reports it.
        let lines = self.tracepoints.as_mut().map(Tracepoints::lines).transpose();
        let lines = lines.map_err(|error| Cannot(format!("read the tracepoints: {error}")))?;
        self.receive_messages()?;
        let lines: Vec<_> = lines.into_iter().flatten().filter_map(|line| parse(&line)).collect();
        let concerns_messages =
            |line: &Line| matches!(line, Line::Event(_, Event::MessageQueued) | Line::Lost(_));
        let is_drained = self.tracepoints.as_ref().is_some_and(Tracepoints::is_drained);
        if is_drained && self.messages.is_empty() && !lines.iter().any(concerns_messages) {
            self.is_adrift = false;
        }
        for line in lines {
            match line {
                Line::Lost(_) => self.lost_events(),
                Line::Event(stamp, event) if !self.is_adrift => self.event(stamp, event),
                Line::Event(..) => {}
            }
        }
        if self.tracepoints.is_none() || self.is_adrift {
            let at = now();
            for message in self.messages.drain(..).flatten() {
                self.join.message(at, None, &message);
            }
        }
        Ok(())
    }

    fn event(&mut self, stamp: Stamp, event: Event) {
        match event {
            Event::MessageQueued => {
                if let Some(message) = self.messages.pop_front().flatten() {
                    self.join.message(stamp.at, Some(stamp.cpu), &message);
                }
            }
            Event::Lookup(mut lookup) => {
                if lookup.to.is_ipv4() {
                    lookup.router = self.routers.of(&lookup, link_name);
                }
                self.join.lookup(stamp, lookup);
            }
            Event::Dropped { reason } => self.join.dropped(stamp, &reason),
        }
    }

    fn lost_events(&mut self) {
        self.is_adrift = true;
        self.miss("tables and drops of some packets, because: the kernel's buffer was full");
    }

    fn miss(&mut self, what: &str) {
        if !self.missed.iter().any(|known| known == what) {
            self.missed.push(what.to_owned());
        }
    }

    fn receive_messages(&mut self) -> Result<(), Cannot> {
        loop {
            match self.listener.hear() {
                Ok(Heard::Nothing) => return Ok(()),
                Ok(Heard::Datagram(bytes)) => {
                    self.messages.push_back(messages(bytes).find_map(message::parse));
                }
                Ok(Heard::Lost) => {
                    self.join.gap();
                    self.miss("some packets, because: they came faster than they were read");
                }
                Err(errno) => {
                    return Err(Cannot(format!("read trace messages: {}", errno.desc())));
                }
            }
        }
    }
}

/// Says that the trace can't see packets in flowtables, if there are flowtables.
fn offloaded() -> Option<String> {
    let found = flowtables::all(&mut Socket::netfilter().ok()?).ok()?;
    let names: Vec<_> = found.iter().map(|f| format!("{} of table {}", f.name, f.table)).collect();
    (!names.is_empty())
        .then(|| format!("packets of connections that are in a flowtable ({})", names.join(", ")))
}
