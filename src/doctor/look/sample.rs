//! Samples of the IPv4 packets that arrive: their sources and destinations, nothing of what they carry.
//!
//! A packet socket for one protocol gets what arrives before the source check does (`ip_rcv`,
//! `net/ipv4/ip_input.c`), and nothing that the node sends. The reverse path filter knows IPv4 only.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket,
};

use crate::doctor::drops::Arrival;

/// So much of each packet is read, at most: an IPv4 header.
const SNAP: usize = 64;
/// So many packets are looked at, at most.
const PACKETS: u64 = 100_000;
/// So many pairs of addresses are told apart, at most.
const ARRIVALS: usize = 1024;

/// Gets packets from the moment it is opened.
#[derive(Debug)]
pub(super) struct Sampler(OwnedFd);

impl Sampler {
    /// Error: without `CAP_NET_RAW` it is not allowed.
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Packets without their link layer's header.
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthIp)?;
        Ok(Self(fd))
    }

    /// How many packets came in, by source, destination and interface. Takes as long as `watched`.
    pub(super) fn collect(self, watched: Duration) -> BTreeMap<Arrival, u64> {
        let end = Instant::now() + watched;
        let mut found = BTreeMap::new();
        let mut packets = 0;
        while packets < PACKETS {
            match self.receive() {
                Ok(arrival) => {
                    packets += 1;
                    note(&mut found, arrival);
                }
                // An interface that goes down is an error once.
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(Errno::EAGAIN) if self.wait(end) => {}
                Err(_) => break,
            }
        }
        // It is closed while it waits.
        drop(self);
        thread::sleep(end.saturating_duration_since(Instant::now()));
        found
    }

    /// Waits for packets: whether there may be some before the end.
    fn wait(&self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let left = left.max(Duration::from_millis(1));
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, timeout), Ok(1..) | Err(Errno::EINTR))
    }

    fn receive(&self) -> Result<Option<Arrival>, Errno> {
        let mut packet = [0; SNAP];
        let (length, from) = recvfrom::<LinkAddr>(self.0.as_raw_fd(), &mut packet)?;
        let from = from.ok_or(Errno::EBADMSG)?;
        // What promiscuous mode lets in is for another host.
        let is_ours = from.pkttype() == libc::PACKET_HOST;
        let link = u32::try_from(from.ifindex()).unwrap_or(0);
        Ok(parse(&packet[..length.min(SNAP)], link).filter(|_| is_ours))
    }
}

/// Counts it, unless there are too many of them.
fn note(found: &mut BTreeMap<Arrival, u64>, arrival: Option<Arrival>) {
    let is_full = found.len() >= ARRIVALS;
    if let Some(arrival) = arrival.filter(|a| !is_full || found.contains_key(a)) {
        *found.entry(arrival).or_default() += 1;
    }
}

/// The addresses of an IPv4 header (RFC 791).
pub(crate) fn parse(packet: &[u8], link: u32) -> Option<Arrival> {
    let address = |at: usize| {
        let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(bytes))
    };
    (packet.first()? >> 4 == 4)
        .then(|| Some(Arrival { from: address(12)?, to: address(16)?, link }))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_header() {
        let mut packet = vec![0x45; 20];
        packet[12..].copy_from_slice(&[203, 0, 113, 9, 10, 21, 0, 10]);
        let found = parse(&packet, 3).unwrap();
        assert_eq!(found.from, Ipv4Addr::new(203, 0, 113, 9));
        assert_eq!((found.to, found.link), (Ipv4Addr::new(10, 21, 0, 10), 3));
        assert_eq!(parse(&packet[..19], 3), None);
        assert_eq!(parse(&[0x60; 40], 3), None);
        assert_eq!(parse(&[], 3), None);
    }

    #[test]
    fn no_more_than_so_many_are_told_apart() {
        let mut found = BTreeMap::new();
        let arrival = |from: u32| Arrival { from: from.into(), to: Ipv4Addr::LOCALHOST, link: 1 };
        for from in 0..5000 {
            note(&mut found, Some(arrival(from)));
        }
        note(&mut found, Some(arrival(7)));
        note(&mut found, None);
        assert_eq!((found.len(), found[&arrival(7)]), (ARRIVALS, 2));
    }
}
