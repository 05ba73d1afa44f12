//! ARP that a load balancer sends from its own packet socket, past the node's kernel. MetalLB's
//! speaker answers for an address that is on no NIC. MetalLB and kube-vip announce an address that
//! has moved.

use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket,
};

use super::netns::Netns;
use super::wire::send_frame;

type Mac = [u8; 6];

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const BROADCAST: Mac = [0xff; 6];
/// Hardware type, protocol type and address lengths of ARP for Ethernet and IPv4 (RFC 826).
const HEADER: [u8; 7] = [0, 1, 8, 0, 6, 4, 0];
const LENGTH: usize = 28;

/// Answers the ARP requests for one address that arrive on one NIC, until it is dropped.
pub(crate) struct Speaker {
    stop: UnixStream,
    answering: Option<JoinHandle<()>>,
}

impl Speaker {
    /// Announces the address, then answers requests for it.
    pub(crate) fn start(ns: &Netns, nic: &str, address: &str) -> Self {
        let (stop, stopped) = UnixStream::pair().expect("a pair of sockets");
        let address: Ipv4Addr = address.parse().expect("an IPv4 address");
        let socket = PacketSocket::of(ns, nic, address);
        socket.announce();
        let answering = Some(thread::spawn(move || socket.answer_until(&stopped)));
        Self { stop, answering }
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.stop.shutdown(Shutdown::Both);
        if let Some(answering) = self.answering.take() {
            let _ = answering.join();
        }
    }
}

/// Announces an address that was just added to the NIC, as kube-vip does.
pub(crate) fn announce(ns: &Netns, nic: &str, address: &str) {
    PacketSocket::of(ns, nic, address.parse().expect("an IPv4 address")).announce();
}

/// A packet socket in the namespace, with the NIC that it sends through and the address that it
/// announces.
struct PacketSocket {
    socket: OwnedFd,
    index: u32,
    mac: Mac,
    address: Ipv4Addr,
}

impl PacketSocket {
    fn of(ns: &Netns, nic: &str, address: Ipv4Addr) -> Self {
        let text = ns.mac(nic);
        let mut mac = [0; 6];
        for (byte, text) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(text, 16).expect("a hardware address");
        }
        let (socket, index) = ns.run(|| {
            let (flags, all) = (SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
            let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, all);
            (socket.expect("a packet socket"), if_nametoindex(nic).expect("the NIC"))
        });
        Self { socket, index, mac, address }
    }

    /// Sends a request and a reply, because some hosts learn from only one of them.
    fn announce(&self) {
        self.say(REQUEST, BROADCAST, [0; 6], self.address);
        self.say(REPLY, BROADCAST, self.mac, self.address);
    }

    fn answer_until(&self, stopped: &UnixStream) {
        let mut buffer = [0; 2048];
        loop {
            let mut ready = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            poll(&mut ready, PollTimeout::NONE).expect("wait for requests");
            if ready[1].any().unwrap_or(false) {
                return;
            }
            let (length, from) = recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer)
                .expect("read what came by");
            let by = from.and_then(|from| u32::try_from(from.ifindex()).ok());
            let message = &buffer[..length.min(buffer.len())];
            if by == Some(self.index)
                && let Some((mac, address)) = asker(message, self.address)
            {
                self.say(REPLY, mac, mac, address);
            }
        }
    }

    /// Sends an ARP message that the address is at this NIC. `to` is the receiver's hardware
    /// address.
    fn say(&self, operation: u8, to: Mac, target: Mac, target_address: Ipv4Addr) {
        let mut message = HEADER.to_vec();
        message.push(operation);
        message.extend(self.mac);
        message.extend(self.address.octets());
        message.extend(target);
        message.extend(target_address.octets());
        send(&self.socket, self.index, to, &message);
    }
}

/// Hardware and IPv4 address of the host that asks, if this is a request for `address`.
fn asker(message: &[u8], address: Ipv4Addr) -> Option<(Mac, Ipv4Addr)> {
    let message = message.get(..LENGTH)?;
    let asks = message[..7] == HEADER && message[7] == REQUEST && message[24..] == address.octets();
    let mac = message[8..14].try_into().ok()?;
    let from: [u8; 4] = message[14..18].try_into().ok()?;
    asks.then_some((mac, from.into()))
}

fn send(socket: &OwnedFd, index: u32, to: Mac, message: &[u8]) {
    let mut mac = [0; 8];
    mac[..6].copy_from_slice(&to);
    send_frame(socket, index, libc::ETH_P_ARP, mac, message);
}
