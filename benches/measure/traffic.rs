//! Traffic between client and pod.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::lab::Netns;
use crate::way::{CLIENT, POD};

/// UDP payload of a frame of 64 bytes: 14 for Ethernet, 4 for its checksum, 20 for IPv4, 8 for UDP.
pub(crate) const PAYLOAD: [u8; 18] = [0; 18];
/// Short connections in one sample. Few, because the kernel keeps each one for a while.
const CONNECTIONS: u16 = 25;

/// Sockets of one UDP flow that has passed packets in both directions. Neither end reads later: the
/// kernel drops packets that do not fit, at an equal cost for all candidates.
pub(crate) fn udp(client: &Netns, pod: &Netns, port: u16, called: (&str, u16)) -> [UdpSocket; 2] {
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

/// Sends a batch of packets, and returns their number. 0 if the queue is full, or if the kernel
/// reports an ICMP error for an earlier packet.
pub(crate) fn send_many(socket: &UdpSocket) -> u64 {
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
pub(crate) fn received(netns: &Netns) -> u64 {
    let text = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("read");
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.expect("the counter of eth0")
}

/// Opens a lasting connection to the pod. `serve` is the pod's end.
pub(crate) fn tcp(
    client: &Netns,
    pod: &Netns,
    port: u16,
    serve: impl FnOnce(TcpStream) + Send + 'static,
) -> TcpStream {
    let listener = pod.run(|| TcpListener::bind((POD, port))).expect("bind");
    let stream = client.run(|| TcpStream::connect((POD, port))).expect("the way works");
    let (accepted, _) = listener.accept().expect("accept");
    thread::spawn(move || serve(accepted));
    stream
}

pub(crate) fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).expect("no delay");
    let mut byte = [0];
    while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
}

/// Reads and counts bytes until the connection ends.
pub(crate) fn discard(mut stream: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 1 << 17];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}

/// Serves short connections on a port of the pod: one byte as the answer to each.
pub(crate) fn answer(pod: &Netns, port: u16) {
    let listener = pod.run(|| TcpListener::bind((POD, port))).expect("bind");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            let mut byte = [0];
            stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).expect("answer");
            // Let the client close first: TIME_WAIT is then at the client and not at the pod.
            let _ = stream.read(&mut byte);
        }
    });
}

/// Mean duration in microseconds of a connection with one request and one reply.
pub(crate) fn short_connections(client: &Netns, port: u16) -> f64 {
    let took = client.run(|| {
        let begin = Instant::now();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect((POD, port)).expect("connect");
            let mut byte = [0];
            stream.write_all(&byte).and_then(|()| stream.read_exact(&mut byte)).expect("talk");
        }
        begin.elapsed()
    });
    took.as_secs_f64() * 1e6 / f64::from(CONNECTIONS)
}
