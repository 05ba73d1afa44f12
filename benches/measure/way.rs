//! A path from a client through a router and the node to a pod, with traffic in both directions.
//!
//! client 203.0.113.9 -- router -- eth0 node eni0 -- pod 10.99.0.2. All of it runs on one core: a
//! veth passes each packet on in the context of its sender. So the time of a burst divided by its
//! packets is the cost of the whole path.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::Netns;
use crate::traffic::{self, PAYLOAD};

pub(crate) const POD: &str = "10.99.0.2";
pub(crate) const CLIENT: &str = "203.0.113.9";
/// An address of a Service of type `LoadBalancer` whose one backend is the pod.
const SERVICE: &str = "198.51.100.10";
/// Minimum duration of a burst. Short, because other work on the machine lasts longer than a burst
/// and so disturbs only some of them.
const BURST: Duration = Duration::from_millis(10);
/// The pod's port for short connections.
const SHORT: u16 = 11;

/// How the node's kernel treats connections.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Conntrack {
    /// The kernel does not track connections.
    Without,
    /// The kernel tracks connections.
    Alone,
    /// The kernel tracks connections and keeps established ones in a flowtable.
    Offload,
}

/// Connects the router directly to the pod. The path then costs what the node does not cause.
pub(crate) fn without_node(node: &Netns, pod: &Netns) {
    node.ip(&format!("link del eni0\nlink set eth0 netns {}\n", pod.name));
    pod.ip(&format!(
        "addr add 10.0.0.10/24 dev eth0\naddr add {POD}/16 dev eth0\nlink set eth0 up\n\
         route add default via 10.0.0.1\n"
    ));
}

/// The path of one candidate, with its open connections.
pub(crate) struct Way {
    pub(crate) label: String,
    conntrack: Conntrack,
    /// UDP sockets of client and pod, for a flow to the pod's address.
    direct: [UdpSocket; 2],
    /// UDP sockets of client and pod, for a flow to the Service's address.
    service: Option<[UdpSocket; 2]>,
    /// Client's end of a connection whose pod's end echoes each byte.
    talk: TcpStream,
    /// Client's end of a connection whose pod's end counts and discards.
    bulk: TcpStream,
    /// Bytes that the client wrote to `bulk`.
    written: u64,
    /// Bytes that the pod read from `bulk`.
    read: Arc<AtomicU64>,
    client: Netns,
    node: Netns,
    pod: Netns,
    /// Exists as long as the path.
    _router: Netns,
}

impl Way {
    /// Creates the path, with the rules of a kube-proxy unless it is without conntrack. `prepare`
    /// gets node and pod.
    pub(crate) fn new(label: &str, conntrack: Conntrack, prepare: impl Fn(&Netns, &Netns)) -> Self {
        let tracked = conntrack != Conntrack::Without;
        let [client, router, node, pod] = ["client", "router", "node", "pod"].map(Netns::new);
        connect([&client, &router, &node, &pod]);
        if tracked {
            node.exec("nft", &["-f", "-"], &kube_proxy());
        }
        prepare(&node, &pod);
        let direct = traffic::udp(&client, &pod, 5000, (POD, 5000));
        let service = tracked.then(|| traffic::udp(&client, &pod, 5001, (SERVICE, 53)));
        let talk = traffic::tcp(&client, &pod, 7, traffic::echo);
        let read = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&read);
        let bulk = traffic::tcp(&client, &pod, 9, move |stream| traffic::discard(stream, &count));
        talk.set_nodelay(true).expect("no delay");
        traffic::answer(&pod, SHORT);
        for netns in [&client, &router, &node, &pod] {
            keep_neighbours(netns);
        }
        let label = label.into();
        let written = 0;
        Self {
            label,
            conntrack,
            direct,
            service,
            talk,
            bulk,
            written,
            read,
            client,
            node,
            pod,
            _router: router,
        }
    }

    /// Sends a packet in each direction of each lasting connection.
    pub(crate) fn exchange(&mut self) {
        for socket in self.direct.iter().chain(self.service.iter().flatten()) {
            // A full queue at the other end does not matter.
            let _ = socket.send(&PAYLOAD);
        }
        self.talk();
        self.send_bulk(&[0]);
    }

    /// Whether all lasting connections are established, or in the flowtable. UDP is established two
    /// seconds after its first packet.
    /// Error: the entries of the node's conntrack.
    pub(crate) fn settled(&self) -> Result<(), String> {
        let mark = match self.conntrack {
            Conntrack::Without => return Ok(()),
            Conntrack::Alone => "[ASSURED]",
            Conntrack::Offload => "[OFFLOAD]",
        };
        let list = self.node.run(|| {
            let output = Command::new("conntrack").arg("-L").output().expect("start conntrack");
            String::from_utf8(output.stdout).expect("text")
        });
        let short = format!("dport={SHORT} ");
        let wanted = |line: &&str| line.contains(mark) && !line.contains(&short);
        // Two of UDP and two of TCP.
        if list.lines().filter(wanted).count() == 4 {
            return Ok(());
        }
        Err(format!("{}: the number of {mark} connections is not four:\n{list}", self.label))
    }

    /// Nanoseconds for each request that arrived.
    pub(crate) fn request(&self) -> f64 {
        self.burst(&self.direct[0], &self.pod)
    }

    /// Nanoseconds for each reply that arrived.
    pub(crate) fn reply(&self) -> f64 {
        self.burst(&self.direct[1], &self.client)
    }

    /// Nanoseconds for each request to the Service that arrived. `None` without conntrack, which
    /// DNAT needs.
    pub(crate) fn dnated_request(&self) -> Option<f64> {
        Some(self.burst(&self.service.as_ref()?[0], &self.pod))
    }

    /// Nanoseconds for each reply from the Service that arrived. `None` without conntrack.
    pub(crate) fn dnated_reply(&self) -> Option<f64> {
        Some(self.burst(&self.service.as_ref()?[1], &self.client))
    }

    /// Nanoseconds of a burst for each packet that arrived.
    fn burst(&self, from: &UdpSocket, to: &Netns) -> f64 {
        let (before, begin) = (traffic::received(to), Instant::now());
        let (mut sent, mut took) = (0, Duration::ZERO);
        // At least one batch: another process may have had the core until now.
        while sent == 0 || took < BURST {
            sent += traffic::send_many(from);
            took = begin.elapsed();
        }
        let arrived = traffic::received(to) - before;
        assert!(arrived * 100 >= sent * 99, "{}: {arrived} of {sent} packets arrived", self.label);
        took.as_secs_f64() * 1e9 / as_float(arrived)
    }

    fn talk(&mut self) {
        let mut byte = [0];
        self.talk.write_all(&byte).expect("write");
        self.talk.read_exact(&mut byte).expect("read");
    }

    /// Microseconds in which one byte goes to the pod and back.
    pub(crate) fn round_trip(&mut self) -> f64 {
        let (begin, mut turns) = (Instant::now(), 0);
        while turns == 0 || begin.elapsed() < BURST {
            self.talk();
            turns += 1;
        }
        begin.elapsed().as_secs_f64() * 1e6 / f64::from(turns)
    }

    /// Gbit/s of one TCP connection; sender and receiver share the core.
    pub(crate) fn throughput(&mut self) -> f64 {
        let (begin, before, chunk) = (Instant::now(), self.written, vec![0; 1 << 16]);
        while before == self.written || begin.elapsed() < BURST {
            self.send_bulk(&chunk);
        }
        let took = begin.elapsed();
        // Packets still under way must not disturb the next measurement.
        while self.read.load(Ordering::Relaxed) < self.written {
            thread::yield_now();
        }
        as_float(self.written - before) * 8.0 / 1e9 / took.as_secs_f64()
    }

    fn send_bulk(&mut self, bytes: &[u8]) {
        self.bulk.write_all(bytes).expect("write");
        self.written += bytes.len() as u64;
    }

    /// Microseconds of a connection with one request and one reply.
    pub(crate) fn short_connection(&self) -> f64 {
        traffic::short_connections(&self.client, SHORT)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn as_float(number: u64) -> f64 {
    number as f64
}

/// Creates links, addresses and routes.
fn connect([client, router, node, pod]: [&Netns; 4]) {
    router.sysctl("ipv4/ip_forward", "1");
    node.sysctl("ipv4/ip_forward", "1");
    node.sysctl("ipv4/conf/all/rp_filter", "1");
    router.ip(&format!(
        "link add down0 type veth peer name eth0 netns {}\nlink add up0 type veth peer name eth0 netns {}\n\
         addr add 10.0.0.1/24 dev down0\naddr add 203.0.113.1/24 dev up0\n\
         link set down0 up\nlink set up0 up\nroute add 10.99.0.0/16 via 10.0.0.10 dev down0 onlink\n\
         route add {SERVICE} via 10.0.0.10 dev down0 onlink\n",
        node.name, client.name
    ));
    client.ip(&format!(
        "addr add {CLIENT}/24 dev eth0\nlink set eth0 up\nroute add default via 203.0.113.1\n"
    ));
    node.ip(&format!(
        "link add eni0 type veth peer name eth0 netns {}\naddr add 10.0.0.10/24 dev eth0\n\
         addr add 10.99.0.1/16 dev eni0\nlink set eth0 up\nlink set eni0 up\n\
         route add default via 10.0.0.1\n",
        pod.name
    ));
    pod.ip(&format!(
        "addr add {POD}/16 dev eth0\nlink set eth0 up\nroute add default via 10.99.0.1\n"
    ));
}

/// Minimal rules of a kube-proxy in nftables mode. They DNAT packets to the Service and make the
/// kernel track connections, which empty chains would not do.
fn kube_proxy() -> String {
    format!(
        "table ip kube-proxy {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip daddr {SERVICE} udp dport 53 dnat to {POD}:5001;
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                meta mark & 0x4000 != 0 masquerade;
            }}
        }}"
    )
}

/// Makes all neighbour entries permanent, so that no ARP disturbs a burst.
fn keep_neighbours(netns: &Netns) {
    let text = netns.run(|| {
        let output = Command::new("ip").args(["-4", "neigh", "show"]).output().expect("start ip");
        String::from_utf8(output.stdout).expect("text")
    });
    let mut batch = String::new();
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        if let [address, "dev", device, "lladdr", link, ..] = words[..] {
            let _ =
                writeln!(batch, "neigh replace {address} dev {device} lladdr {link} nud permanent");
        }
    }
    netns.ip(&batch);
}
