//! Sends packets that come from no socket through a NIC to the node. A probe on the node counts
//! their fates.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;

use super::forge::{self, MARKER, TTL};
use super::netns::Netns;
use super::node::Node;
use super::router::Router;

const PATIENT: Duration = Duration::from_secs(15);
/// Number of marker packets, sent one after the other. A packet may cross the node, a pod may
/// answer, and the node may first ask for the router's hardware address. Each step joins the end of
/// the queue in which the markers wait.
const ROUNDS: u64 = 8;

/// What the node did with forged packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// Packets forwarded, or delivered to the node itself.
    pub(crate) passed: u64,
    /// Packets dropped by strict `rp_filter`.
    pub(crate) strict: u64,
}

pub(crate) struct Wire<'a> {
    router: &'a Router,
    node: &'a Node,
}

impl<'a> Wire<'a> {
    /// Installs the probe on the node, where it stays. Its rules use conntrack, as those of every
    /// cluster do, so that the plugin does not switch that on.
    pub(crate) fn new(router: &'a Router, node: &'a Node) -> Self {
        let forwarded = TTL - 1;
        node.ns.nft(&format!(
            "table inet probe
            delete table inet probe
            table inet probe {{
                counter marker {{ }}
                counter arrived {{ }}
                counter new {{ }}
                counter passed {{ }}
                chain first {{
                    type filter hook prerouting priority -450; policy accept;
                    ip ttl {MARKER} counter name marker drop
                    ip ttl {TTL} counter name arrived
                    ip6 hoplimit {TTL} counter name arrived
                }}
                chain tracked {{
                    type filter hook prerouting priority -190; policy accept;
                    ct state new counter name new
                }}
                chain forwarded {{
                    type filter hook forward priority 300; policy accept;
                    ip ttl {forwarded} counter name passed
                    ip6 hoplimit {forwarded} counter name passed
                }}
                chain delivered {{
                    type filter hook input priority 300; policy accept;
                    ip ttl {TTL} counter name passed
                    ip6 hoplimit {TTL} counter name passed
                }}
            }}"
        ));
        Self { router, node }
    }

    /// Sends packets to the node through a NIC. Returns when the node has handled them and their
    /// consequences.
    pub(crate) fn send(&self, nic: &str, packets: &[Vec<u8>]) -> Seen {
        let (arrived, before) = (self.counter("arrived"), self.seen());
        self.deliver((&self.router.ns, nic, self.router.peer_mac(nic)), packets, ROUNDS);
        let sent = u64::try_from(packets.len()).expect("few packets");
        assert_eq!(self.counter("arrived"), arrived + sent, "forged packets came in by {nic}");
        let now = self.seen();
        Seen { passed: now.passed - before.passed, strict: now.strict - before.strict }
    }

    /// Sends packets through an interface of any namespace to this hardware address of the node.
    /// The kernel may drop some before the probe. After one round the node has handled the packets,
    /// and after more rounds their consequences.
    pub(super) fn deliver(
        &self,
        (from, port, mac): (&Netns, &str, &str),
        packets: &[Vec<u8>],
        rounds: u64,
    ) {
        from.run(|| {
            stay_on_one_processor();
            let wire = packet_socket();
            for packet in packets {
                put(&wire, port, mac, packet);
            }
            let seen = self.counter("marker");
            for round in 1..=rounds {
                put(&wire, port, mac, &forge::marker());
                self.await_marker(seen + round);
            }
        });
    }

    fn seen(&self) -> Seen {
        Seen { passed: self.counter("passed"), strict: self.node.rp_filter_drops() }
    }

    fn counter(&self, name: &str) -> u64 {
        self.node.ns.counter("probe", name)
    }

    fn await_marker(&self, seen: u64) {
        let begin = Instant::now();
        while self.counter("marker") < seen {
            assert!(begin.elapsed() < PATIENT, "the marker did not arrive");
            thread::yield_now();
        }
    }
}

impl Netns {
    /// Packets that a counter of the inet table has seen.
    pub(crate) fn counter(&self, table: &str, name: &str) -> u64 {
        let text = self.exec(&["nft", "list", "counter", "inet", table, name], "");
        let mut words = text.split_whitespace();
        words.find(|word| *word == "packets").expect("a count");
        words.next().expect("a value").parse().expect("a number")
    }
}

/// Keeps this thread on one processor. Its packets then share one queue, so the node gets them in
/// the order of sending.
fn stay_on_one_processor() {
    let (this, all) = (Pid::from_raw(0), CpuSet::count());
    let allowed = sched_getaffinity(this).expect("the processors of this thread");
    let first = (0..all).find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).expect("a processor");
    let mut one = CpuSet::new();
    one.set(first).expect("a processor");
    sched_setaffinity(this, &one).expect("stay on a processor");
}

fn packet_socket() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Packet, SockType::Datagram, flags, None).expect("a packet socket")
}

/// Sends a packet on the wire, past the routes and rules of the thread's namespace.
fn put(wire: &OwnedFd, port: &str, to: &str, packet: &[u8]) {
    let protocol = if packet[0] >> 4 == 4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
    let mut mac = [0; 8];
    for (byte, text) in mac.iter_mut().zip(to.split(':')) {
        *byte = u8::from_str_radix(text, 16).expect("a hardware address");
    }
    let index = if_nametoindex(port).expect("a port");
    send_frame(wire, index, protocol, mac, packet);
}

/// Sends the payload of a frame to a hardware address, through a packet socket.
pub(super) fn send_frame(
    socket: &OwnedFd,
    index: u32,
    protocol: libc::c_int,
    mac: [u8; 8],
    data: &[u8],
) {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("small"),
        sll_protocol: u16::try_from(protocol).expect("small").to_be(),
        sll_ifindex: i32::try_from(index).expect("an index"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: mac,
    };
    let size = u32::try_from(size_of_val(&address)).expect("small");
    let (bytes, length) = (data.as_ptr().cast(), data.len());
    // SAFETY: both pointers are to live values of the sizes given, which the kernel only reads.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), bytes, length, 0, (&raw const address).cast(), size)
    };
    assert_eq!(usize::try_from(sent), Ok(length), "{}", std::io::Error::last_os_error());
}
