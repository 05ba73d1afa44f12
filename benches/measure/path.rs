//! What a packet costs on its way through the node.
//!
//! client 203.0.113.9 -- router -- eth0 node eni0 -- pod 10.99.0.2. All of it runs on one core: a
//! veth hands each packet over in the context of its sender, so the time that a burst takes, by its
//! packets, is what the whole way costs.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::lab::{Netns, Release};
use crate::stats::{Dice, Measured};

const POD: &str = "10.99.0.2";
const CLIENT: &str = "203.0.113.9";
/// An address of a Service of type `LoadBalancer` whose one backend is the pod.
const SERVICE: &str = "198.51.100.10";
/// A frame of 64 bytes: Ethernet's 14 and its checksum's 4, IPv4's 20, UDP's 8, and this.
const PAYLOAD: [u8; 18] = [0; 18];
const BURST: Duration = Duration::from_millis(40);

struct Way {
    label: String,
    /// Packets by UDP: from the client, and from the pod back.
    ends: [UdpSocket; 2],
    /// The client's packets to the Service.
    service: Option<UdpSocket>,
    /// One byte there and back.
    talk: TcpStream,
    bulk: TcpStream,
    client: Netns,
    pod: Netns,
    /// Alive as long as the way.
    _between: [Netns; 2],
}

impl Way {
    /// With or without the rules of a kube-proxy.
    fn new(label: &str, tracked: bool, prepare: impl Fn(&Netns, &Netns)) -> Self {
        let [client, router, node, pod] = ["client", "router", "node", "pod"].map(Netns::new);
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
        if tracked {
            node.exec("nft", &["-f", "-"], &kube_proxy());
        }
        prepare(&node, &pod);
        let ends = udp(&client, &pod, 5000, (POD, 5000));
        let service = tracked.then(|| udp(&client, &pod, 5001, (SERVICE, 53)));
        let service = service.map(|[near, _]| near);
        for netns in [&client, &router, &node, &pod] {
            keep_neighbours(netns);
        }
        let (talk, bulk) = (tcp(&client, &pod, 7, echo), tcp(&client, &pod, 9, discard));
        talk.set_nodelay(true).expect("no delay");
        Self {
            label: label.into(),
            ends,
            service,
            talk,
            bulk,
            client,
            pod,
            _between: [router, node],
        }
    }

    /// Nanoseconds per packet that arrived, in the order of [`CALLS`].
    fn bursts(&self) -> [Option<f64>; 3] {
        let [near, far] = &self.ends;
        let service = self.service.as_ref().map(|service| self.burst(service, &self.pod));
        [Some(self.burst(near, &self.pod)), Some(self.burst(far, &self.client)), service]
    }

    fn burst(&self, from: &UdpSocket, to: &Netns) -> f64 {
        let (before, begin) = (received(to), Instant::now());
        let mut sent = 0;
        while begin.elapsed() < BURST {
            sent += send_many(from);
        }
        let took = begin.elapsed();
        let arrived = received(to) - before;
        assert!(arrived * 100 >= sent * 99, "{}: {arrived} of {sent} packets arrived", self.label);
        took.as_secs_f64() * 1e9 / as_float(arrived)
    }

    /// Microseconds of one byte there and back.
    fn round_trip(&mut self) -> f64 {
        let (begin, mut turns, mut byte) = (Instant::now(), 0, [0]);
        while begin.elapsed() < BURST {
            self.talk.write_all(&byte).expect("write");
            self.talk.read_exact(&mut byte).expect("read");
            turns += 1;
        }
        begin.elapsed().as_secs_f64() * 1e6 / f64::from(turns)
    }

    /// Gbit/s of one TCP connection; sender and receiver share the core.
    fn throughput(&mut self) -> f64 {
        let (begin, mut bytes, chunk) = (Instant::now(), 0, vec![0; 1 << 16]);
        while begin.elapsed() < BURST {
            self.bulk.write_all(&chunk).expect("write");
            bytes += chunk.len() as u64;
        }
        as_float(bytes) * 8.0 / 1e9 / begin.elapsed().as_secs_f64()
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn as_float(number: u64) -> f64 {
    number as f64
}

/// What is measured, and in which unit.
const CALLS: [(&str, &str); 5] = [
    ("request, 64 bytes", "ns"),
    ("reply, 64 bytes", "ns"),
    ("DNATed request, 64 bytes", "ns"),
    ("TCP_RR", "µs"),
    ("TCP stream", "Gbit/s"),
];

pub(crate) fn measure(rounds: u32) -> Vec<Measured> {
    let mut ways = vec![
        Way::new("no plugin, no conntrack", false, |_, _| {}),
        Way::new("no plugin, conntrack", true, |_, _| {}),
        Way::new("no plugin, conntrack and an ip rule", true, |node, _| {
            node.ip("rule add pref 32000 fwmark 0x1 lookup main");
        }),
    ];
    let legacy = Netns::new("probe").can("iptables-legacy", &["-S"]);
    for release in Release::all() {
        for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
            if legacy || backend != "iptables-legacy" {
                let label = format!("{}, {backend}", release.label);
                ways.push(Way::new(&label, true, |node, pod| {
                    enroll(&release.program, node, pod, backend);
                }));
            }
        }
    }
    for (label, variant) in [
        ("AWS connmark rules, iptables-nft", "nft"),
        ("AWS connmark rules, iptables-legacy", "legacy"),
    ] {
        if legacy || variant != "legacy" {
            let tool = format!("iptables-{variant}-restore");
            ways.push(Way::new(label, true, |node, _| {
                node.exec(&tool, &["--noflush"], AWS);
                node.ip(AWS_RULES);
            }));
        }
    }
    let mut samples = vec![vec![Vec::new(); CALLS.len()]; ways.len()];
    let mut dice = Dice::new();
    for round in 0..rounds {
        crate::progress("data path", round, rounds);
        for at in dice.order(ways.len()) {
            let way = &mut ways[at];
            let [request, reply, service] = way.bursts();
            let (talk, bulk) = (Some(way.round_trip()), Some(way.throughput()));
            // The first burst fills caches.
            if round > 0 {
                let all = [request, reply, service, talk, bulk];
                samples[at].iter_mut().zip(all).for_each(|(list, one)| list.extend(one));
            }
        }
    }
    let mut measured = Vec::new();
    for (way, samples) in ways.iter().zip(samples) {
        for ((call, unit), samples) in CALLS.iter().zip(samples).filter(|(_, all)| !all.is_empty())
        {
            measured.push(Measured::of("path", &way.label, call, unit, samples));
        }
    }
    measured
}

/// The least of a kube-proxy in nftables mode: it makes the kernel track connections, which empty
/// chains do not, and DNATs what comes for the Service.
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

/// The ip rules that the AWS VPC CNI has for one pod and for its mark.
const AWS_RULES: &str =
    "rule add pref 512 to 10.99.0.2 lookup main\nrule add pref 1024 fwmark 0x80/0x80 lookup main";
/// What it writes with iptables, SNAT included.
const AWS: &str = "*mangle
-A PREROUTING -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-mark 0x80/0x80
-A PREROUTING -i eni+ -j CONNMARK --restore-mark --mask 0x80
-A PREROUTING -i vlan+ -j CONNMARK --restore-mark --mask 0x80
COMMIT
*nat
:AWS-CONNMARK-CHAIN-0 - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
-A PREROUTING -i eni+ -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -j CONNMARK --restore-mark --mask 0x80
-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/8 -j RETURN
-A AWS-CONNMARK-CHAIN-0 -j CONNMARK --set-xmark 0x80/0x80
-A POSTROUTING -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/8 -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.0.10 --random-fully
COMMIT
";

/// ADD for the pod, as a runtime would call it.
fn enroll(program: &str, node: &Netns, pod: &Netns, backend: &str) {
    let input = format!(
        "{{\"cniVersion\":\"1.0.0\",\"name\":\"bench\",\"type\":\"symroute\",\"uplinks\":[\"eth0\"],\
         \"backend\":\"{backend}\",\"prevResult\":{{\"cniVersion\":\"1.0.0\",\"ips\":\
         [{{\"address\":\"{POD}/16\"}}]}}}}"
    );
    let (netns, command) = (format!("CNI_NETNS={}", pod.path()), "CNI_COMMAND=ADD");
    let words = [
        command,
        "CNI_CONTAINERID=pod",
        "CNI_IFNAME=eth0",
        "CNI_PATH=/opt/cni/bin",
        &netns,
        program,
    ];
    node.exec("env", &words, &input);
}

/// Makes all neighbours permanent: ARP is not what is measured.
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

/// One flow of packets, seen in both directions. Neither end reads: both drop what does not fit, at a
/// cost that is the same for all.
fn udp(client: &Netns, pod: &Netns, port: u16, called: (&str, u16)) -> [UdpSocket; 2] {
    let near = client.run(|| UdpSocket::bind((CLIENT, port))).expect("bind");
    let far = pod.run(|| UdpSocket::bind((POD, port))).expect("bind");
    near.connect(called).expect("connect");
    far.connect((CLIENT, port)).expect("connect");
    for (from, to) in [(&near, &far), (&far, &near)] {
        to.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
        from.send(&PAYLOAD).expect("send");
        to.recv(&mut [0; 64]).expect("the way works");
    }
    [near, far]
}

/// A batch of packets; gives how many were sent: none where the queue is full, or where the kernel
/// has an ICMP error of an earlier packet to report.
fn send_many(socket: &UdpSocket) -> u64 {
    const COUNT: usize = 64;
    let mut payload = PAYLOAD;
    let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
    // SAFETY: mmsghdr is plain numbers and pointers, for which zero is a value.
    let mut messages: [libc::mmsghdr; COUNT] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut vector;
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: all messages, and the vector and payload they point to, outlive the call.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), 64, 0) };
    match Errno::result(sent) {
        Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => 0,
        sent => u64::try_from(sent.expect("send")).expect("a number of packets"),
    }
}

/// Packets that `eth0` of a namespace has received.
fn received(netns: &Netns) -> u64 {
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("read");
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.expect("the counter of eth0")
}

fn tcp(client: &Netns, pod: &Netns, port: u16, serve: fn(TcpStream)) -> TcpStream {
    let listener = pod.run(|| TcpListener::bind((POD, port))).expect("bind");
    let stream = client.run(|| TcpStream::connect((POD, port))).expect("the way works");
    let (accepted, _) = listener.accept().expect("accept");
    thread::spawn(move || serve(accepted));
    stream
}

fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).expect("no delay");
    let mut byte = [0];
    while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
}

fn discard(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 17];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}
