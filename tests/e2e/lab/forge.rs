//! Packets that no ordinary socket sends, as bytes from the IP header on: forged sources, wrong
//! flags, errors about packets of other hosts.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};

/// Time to live that marks forged packets for a probe. A node that forwards a packet decrements it.
pub(crate) const TTL: u8 = 77;

/// Time to live of the marker packet, which follows those that a test sends.
pub(crate) const MARKER: u8 = TTL + 1;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;

/// Kind of an ICMP error.
#[derive(Clone, Copy)]
pub(crate) enum Complaint {
    /// The host is unreachable: an error that a socket survives.
    Unreachable,
    /// A packet may have at most this many bytes.
    TooBig(u16),
}

/// A random number without a seed.
pub(crate) fn random() -> u32 {
    let bytes = RandomState::new().build_hasher().finish().to_be_bytes();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// A TCP segment with these flags and random sequence and acknowledgement numbers.
pub(crate) fn tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    numbered_tcp(from, to, flags, [random(), random()])
}

/// TCP segments with numbers from all parts of the number space. Conntrack compares these numbers
/// with the connection's, so some segments lie before them and some after.
pub(crate) fn all_kinds_of_tcp(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<Vec<u8>> {
    let (parts, offset) = ([0, 1 << 30, 2 << 30, 3 << 30], random());
    let numbers = parts.into_iter().flat_map(|sequence: u32| {
        parts.map(|acknowledged| [sequence, acknowledged].map(|part| offset.wrapping_add(part)))
    });
    numbers.map(|numbers| numbered_tcp(from, to, flags, numbers)).collect()
}

fn numbered_tcp(from: SocketAddr, to: SocketAddr, flags: u8, numbers: [u32; 2]) -> Vec<u8> {
    let mut segment = ports(from, to);
    segment.extend(numbers.into_iter().flat_map(u32::to_be_bytes));
    segment.extend_from_slice(&[0x50, flags, 0xfa, 0, 0, 0, 0, 0]);
    fill_checksum(&mut segment, 16, &pseudo_header(from.ip(), to.ip(), TCP, 20));
    packet(from.ip(), to.ip(), TCP, &segment)
}

pub(crate) fn udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut datagram = ports(from, to);
    datagram.extend_from_slice(&length(data.len() + 8));
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    let bytes = datagram.len();
    fill_checksum(&mut datagram, 6, &pseudo_header(from.ip(), to.ip(), UDP, bytes));
    packet(from.ip(), to.ip(), UDP, &datagram)
}

/// The marker packet: the probe counts and drops it before anything else on the node handles it.
pub(crate) fn marker() -> Vec<u8> {
    let end = SocketAddr::from(([192, 0, 2, 1], 9));
    let mut marker = udp(end, end, b"marker");
    marker[8] = MARKER;
    fill_header_checksum(&mut marker);
    marker
}

/// Writes a number into a packet: the identification of IPv4, the flow label of IPv6.
pub(crate) fn stamp(packet: &mut [u8], number: u16) {
    let bytes = number.to_be_bytes();
    if packet[0] >> 4 == 4 {
        packet[4..6].copy_from_slice(&bytes);
        fill_header_checksum(packet);
    } else {
        packet[2..4].copy_from_slice(&bytes);
    }
}

/// The first fragment of a TCP packet whose other fragments never arrive.
pub(crate) fn fragment(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let whole = tcp(from, to, SYN);
    if from.is_ipv6() {
        let mut payload = vec![TCP, 0, 0, 1];
        payload.extend_from_slice(&random().to_be_bytes());
        payload.extend_from_slice(&whole[40..56]);
        return packet(from.ip(), to.ip(), FRAGMENT, &payload);
    }
    let mut first = whole[..36].to_vec();
    first[2..4].copy_from_slice(&length(36));
    first[6] = 0x20;
    fill_header_checksum(&mut first);
    first
}

/// An ICMP error from `from` to the sender of the packet `about`.
pub(crate) fn icmp_error(from: IpAddr, complaint: Complaint, about: &[u8]) -> Vec<u8> {
    let to = source(about);
    let (kind, code, value) = match (complaint, to.is_ipv4()) {
        (Complaint::Unreachable, true) => (3, 1, 0),
        (Complaint::TooBig(mtu), true) => (3, 4, mtu),
        (Complaint::Unreachable, false) => (1, 3, 0),
        (Complaint::TooBig(mtu), false) => (2, 0, mtu),
    };
    let mut error = vec![kind, code, 0, 0, 0, 0];
    error.extend_from_slice(&value.to_be_bytes());
    error.extend_from_slice(about);
    let (protocol, pseudo) = if to.is_ipv4() {
        (ICMP, Vec::new())
    } else {
        (ICMPV6, pseudo_header(from, to, ICMPV6, error.len()))
    };
    fill_checksum(&mut error, 2, &pseudo);
    packet(from, to, protocol, &error)
}

/// The source address of a packet.
fn source(packet: &[u8]) -> IpAddr {
    if packet[0] >> 4 == 4 {
        <[u8; 4]>::try_from(&packet[12..16]).expect("four bytes").into()
    } else {
        <[u8; 16]>::try_from(&packet[8..24]).expect("sixteen bytes").into()
    }
}

fn ports(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    [from.port().to_be_bytes(), to.port().to_be_bytes()].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("a small packet").to_be_bytes()
}

fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = if from.is_ipv4() {
        let ([high, low], id) = (length(payload.len() + 20), random().to_be_bytes());
        vec![0x45, 0, high, low, id[0], id[1], 0, 0, TTL, protocol, 0, 0]
    } else {
        let [high, low] = length(payload.len());
        vec![0x60, 0, 0, 0, high, low, protocol, TTL]
    };
    header.extend_from_slice(&octets(from));
    header.extend_from_slice(&octets(to));
    if from.is_ipv4() {
        fill_checksum(&mut header, 10, &[]);
    }
    header.extend_from_slice(payload);
    header
}

/// Fills in the checksum of an IPv4 header.
fn fill_header_checksum(packet: &mut [u8]) {
    packet[10..12].copy_from_slice(&[0, 0]);
    fill_checksum(&mut packet[..20], 10, &[]);
}

/// The pseudo header that TCP, UDP and `ICMPv6` add to their checksum.
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, bytes: usize) -> Vec<u8> {
    let [high, low] = length(bytes);
    [octets(from), octets(to), vec![0, protocol, high, low]].concat()
}

/// Fills in the checksum at offset `at`, where the bytes are still zero.
fn fill_checksum(bytes: &mut [u8], at: usize, pseudo: &[u8]) {
    let sum = checksum(&[pseudo, bytes].concat());
    bytes[at..at + 2].copy_from_slice(&sum);
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}
