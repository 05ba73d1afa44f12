//! A packet capture of one namespace, and the proof that replies leave through the request's NIC.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use std::{env, fmt, thread};

use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};

use super::netns::Netns;

/// Destination on `lo` of the packet that ends a capture.
const MARKER: &str = "127.0.0.1:9";
const OUTGOING: u8 = 4; // PACKET_OUTGOING of linux/if_packet.h

#[derive(Clone)]
pub(crate) struct Packet {
    pub(crate) port: String,
    /// The namespace sent the packet instead of receiving it.
    pub(crate) outgoing: bool,
    pub(crate) protocol: u8,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) tcp_flags: u8,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.outgoing { "out" } else { "in " };
        let Self { port, protocol, from, to, tcp_flags, .. } = self;
        write!(f, "{port:>8} {way} protocol {protocol:>2} {from} > {to} flags {tcp_flags:#04x}")
    }
}

pub(crate) struct Capture<'a> {
    ns: &'a Netns,
    packets: Receiver<Vec<Packet>>,
}

impl<'a> Capture<'a> {
    /// Captures every packet of the namespace from its return on.
    pub(crate) fn start(ns: &'a Netns) -> Self {
        let (sender, packets) = mpsc::channel();
        let (armed, is_armed) = mpsc::channel();
        let handle = ns.handle();
        thread::spawn(move || {
            handle.enter();
            let socket = socket(
                AddressFamily::Packet,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )
            .expect("a packet socket");
            setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).expect("a large buffer");
            armed.send(()).expect("the test waits");
            let _ = sender.send(read_until_marker(&socket));
        });
        is_armed.recv().expect("the capture starts");
        Self { ns, packets }
    }

    /// Ends the capture and returns every packet so far, in order.
    pub(crate) fn stop(self) -> Vec<Packet> {
        // The capture may lose a marker where a slow machine cannot read all packets.
        let ended = (0..30).find_map(|_| {
            send_marker(self.ns);
            self.packets.recv_timeout(Duration::from_secs(2)).ok()
        });
        let packets = ended.expect("the capture ends at its marker");
        if env::var_os("SYMROUTE_CAPTURE").is_some_and(|value| value == "1") {
            for packet in &packets {
                println!("{packet}");
            }
        }
        packets
    }
}

fn send_marker(ns: &Netns) {
    ns.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket on lo");
        socket.send_to(b"end", MARKER).expect("send the marker");
    });
}

fn read_until_marker(socket: &OwnedFd) -> Vec<Packet> {
    let mut packets = Vec::new();
    let mut names = BTreeMap::new();
    let mut buffer = [0; 2048];
    loop {
        let (length, address) =
            recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer).expect("read a packet");
        let address = address.expect("a link-layer address");
        let index = u32::try_from(address.ifindex()).expect("an interface index");
        let port = names.entry(index).or_insert_with(|| {
            if_indextoname(index)
                .map_or_else(|_| format!("gone{index}"), |name| name.to_string_lossy().into_owned())
        });
        let length = length.min(buffer.len());
        let Some(packet) = parse(&buffer[..length], port, address.pkttype() == OUTGOING) else {
            continue;
        };
        if packet.to.to_string() == MARKER {
            return packets;
        }
        packets.push(packet);
    }
}

/// Parses the headers of an IPv4 or IPv6 packet; `None` for everything else, for instance ARP.
fn parse(bytes: &[u8], port: &str, outgoing: bool) -> Option<Packet> {
    let (protocol, from, to, payload): (u8, IpAddr, IpAddr, &[u8]) = match bytes.first()? >> 4 {
        4 => {
            let header = usize::from(bytes[0] & 15) * 4;
            let address =
                |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
            (*bytes.get(9)?, address(12)?, address(16)?, bytes.get(header..)?)
        }
        6 => {
            let address =
                |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
            (*bytes.get(6)?, address(8)?, address(24)?, bytes.get(40..)?)
        }
        _ => return None,
    };
    let has_ports = protocol == 6 || protocol == 17;
    let number = |at: usize| match payload.get(at..at + 2) {
        Some(&[high, low]) if has_ports => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    let tcp_flags = if protocol == 6 { payload.get(13).copied().unwrap_or(0) } else { 0 };
    let (from, to) = (SocketAddr::new(from, number(0)), SocketAddr::new(to, number(2)));
    Some(Packet { port: port.to_owned(), outgoing, protocol, from, to, tcp_flags })
}

/// Asserts that each flow with packets both ways on `ports` used a single port for all of them.
/// Returns the number of such flows.
///
/// `towards_node` gives the direction of a packet to the node: outgoing in a capture of the router,
/// incoming in a capture of the node itself.
pub(crate) fn assert_replies_symmetric(
    packets: &[Packet],
    ports: &[&str],
    towards_node: bool,
) -> usize {
    let mut requests: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    let mut replies: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for packet in packets.iter().filter(|packet| ports.contains(&packet.port.as_str())) {
        let (table, node, peer) = if packet.outgoing == towards_node {
            (&mut requests, packet.to, packet.from)
        } else {
            (&mut replies, packet.from, packet.to)
        };
        table.entry((packet.protocol, node, peer)).or_default().insert(&packet.port);
    }
    let mut flows = 0;
    for (flow, left_by) in &replies {
        let (protocol, node, peer) = flow;
        if is_local_chatter(node.ip()) || is_local_chatter(peer.ip()) {
            continue;
        }
        if let Some(came_by) = requests.get(flow) {
            assert!(
                came_by == left_by && left_by.len() == 1,
                "protocol {protocol} {peer} > {node}: came by {came_by:?}, left by {left_by:?}"
            );
            flows += 1;
        }
    }
    flows
}

/// Whether an address is one of neighbour discovery or multicast membership, which belong to a link
/// and not to a flow.
pub(crate) fn is_local_chatter(address: IpAddr) -> bool {
    address.is_multicast()
        || match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local() || address.is_unspecified(),
        }
}
