//! Samples arriving IPv4 packets: their sources and destinations, never their payload.
//!
//! A packet socket for one protocol gets packets before the source check (`ip_rcv`, `net/ipv4/ip_input.c`), and
//! none that the node sends. Only IPv4 has a reverse path filter.

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

/// Maximum number of bytes that are read of each packet. They hold an IPv4 header.
const SNAP: usize = 64;
/// Maximum number of packets that are read.
const MAX_PACKETS: u64 = 100_000;
/// Maximum number of address pairs that are counted.
const MAX_ARRIVALS: usize = 1024;

/// A packet socket, which gets packets from the moment it is opened.
#[derive(Debug)]
pub(super) struct Sampler(OwnedFd);

impl Sampler {
    /// Opens the socket. Error: `EPERM` without `CAP_NET_RAW`.
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // A datagram socket gets packets without the link-layer header.
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, SockProtocol::EthIp)?;
        Ok(Self(fd))
    }

    /// Counts arriving packets by source, destination and interface. Takes as long as `watched`.
    pub(super) fn collect(self, watched: Duration) -> BTreeMap<Arrival, u64> {
        let end = Instant::now() + watched;
        let mut found = BTreeMap::new();
        let mut packets = 0;
        while packets < MAX_PACKETS {
            match self.receive() {
                Ok(arrival) => {
                    packets += 1;
                    note(&mut found, arrival);
                }
                // The kernel reports an interface that goes down once.
                Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(Errno::EAGAIN) if self.wait(end) => {}
                Err(_) => break,
            }
        }
        // Close the socket before the wait, so that the kernel no longer queues packets.
        drop(self);
        thread::sleep(end.saturating_duration_since(Instant::now()));
        found
    }

    /// Waits until the socket is readable. False if `end` came first.
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
        // In promiscuous mode the socket also gets packets for other hosts.
        let is_for_host = from.pkttype() == libc::PACKET_HOST;
        let link = u32::try_from(from.ifindex()).unwrap_or(0);
        Ok(parse(&packet[..length.min(SNAP)], link).filter(|_| is_for_host))
    }
}

/// Counts an arrival; ignores a new one if the map is full.
fn note(found: &mut BTreeMap<Arrival, u64>, arrival: Option<Arrival>) {
    let is_full = found.len() >= MAX_ARRIVALS;
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
        assert_eq!((found.len(), found[&arrival(7)]), (MAX_ARRIVALS, 2));
    }
}
