//! Real TCP and UDP: clients, and servers that answer with their name and the client's address.
//!
//! The protocol is one line each way: any line from the client, `<who> <address of the client>`
//! from the server. A connection may carry many questions.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt,
    shutdown, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::netns::Netns;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Proto {
    Tcp,
    Udp,
}

impl Proto {
    /// The protocol's name in iptables, nftables, conntrack and `explain`.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A server's answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) who: String,
    /// The client's address as the server saw it.
    pub(crate) seen_as: IpAddr,
}

/// A server on the wildcard address of both families. It stops when dropped.
pub(crate) enum Server {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Server {
    pub(crate) fn start(ns: &Netns, proto: Proto, port: u16, who: &str) -> Self {
        Self::at(ns, proto, (Ipv6Addr::UNSPECIFIED, port).into(), who)
    }

    /// Starts a server on one address.
    pub(crate) fn at(ns: &Netns, proto: Proto, address: SocketAddr, who: &str) -> Self {
        let who = who.to_owned();
        // A socket stays in the namespace that it was made in, whichever thread uses it.
        match proto {
            Proto::Tcp => {
                let listener = ns.run(|| TcpListener::bind(address)).expect("bind a TCP server");
                let accepting = listener.try_clone().expect("a second handle");
                thread::spawn(move || serve_tcp(&accepting, &who));
                Self::Tcp(listener)
            }
            Proto::Udp => {
                let socket = ns.run(|| UdpSocket::bind(address)).expect("bind a UDP server");
                let receiving = socket.try_clone().expect("a second handle");
                thread::spawn(move || serve_udp(&receiving, &who));
                Self::Udp(socket)
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the serving thread. This works on an unconnected UDP socket too, although
        // `shutdown` reports ENOTCONN.
        let _ = match self {
            Self::Tcp(listener) => shutdown(listener.as_raw_fd(), Shutdown::Both),
            Self::Udp(socket) => shutdown(socket.as_raw_fd(), Shutdown::Both),
        };
    }
}

fn serve_tcp(listener: &TcpListener, who: &str) {
    while let Ok((stream, peer)) = listener.accept() {
        let reply = reply(who, peer);
        thread::spawn(move || {
            let mut lines = BufReader::new(&stream).lines();
            while let Some(Ok(_)) = lines.next() {
                if (&stream).write_all(reply.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

fn serve_udp(socket: &UdpSocket, who: &str) {
    let mut buffer = [0; 64];
    // Clients never send an empty datagram, so no bytes means that the socket was shut down.
    while let Ok((1.., peer)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(reply(who, peer).as_bytes(), peer);
    }
}

fn reply(who: &str, peer: SocketAddr) -> String {
    format!("{who} {}\n", peer.ip().to_canonical())
}

/// A TCP connection that stays open between questions.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(ns: &Netns, to: SocketAddr, deadline: Duration) -> io::Result<Self> {
        ns.run(|| Self::open_here(to, deadline))
    }

    /// Opens a connection from the calling thread's namespace.
    pub(crate) fn open_here(to: SocketAddr, deadline: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, deadline)?;
        stream.set_read_timeout(Some(deadline))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Opens a connection from this address.
    fn open_bound(from: IpAddr, to: SocketAddr, deadline: Duration) -> io::Result<Self> {
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        let patience = TimeVal::milliseconds(deadline.as_millis().try_into().unwrap_or(i64::MAX));
        // This time limit also applies to `connect`.
        setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(deadline))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// The client's end.
    pub(crate) fn local(&self) -> SocketAddr {
        self.0.get_ref().local_addr().expect("a connected socket")
    }

    pub(crate) fn ask(&mut self) -> io::Result<Answer> {
        self.0.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        parse(&line)
    }
}

/// Asks the server at `to` once, from inside `ns`. Fails after `deadline` at the latest.
pub(crate) fn ask(
    ns: &Netns,
    proto: Proto,
    to: SocketAddr,
    deadline: Duration,
) -> io::Result<Answer> {
    match proto {
        Proto::Tcp => Connection::open(ns, to, deadline)?.ask(),
        Proto::Udp => {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            ask_udp(ns, any, to, deadline)
        }
    }
}

/// Asks the server at `to` once, from a socket that is bound to `from`.
pub(crate) fn ask_from(
    ns: &Netns,
    from: IpAddr,
    proto: Proto,
    to: SocketAddr,
    deadline: Duration,
) -> io::Result<Answer> {
    match proto {
        Proto::Tcp => ns.run(|| Connection::open_bound(from, to, deadline))?.ask(),
        Proto::Udp => ask_udp(ns, from, to, deadline),
    }
}

fn ask_udp(ns: &Netns, from: IpAddr, to: SocketAddr, deadline: Duration) -> io::Result<Answer> {
    let socket = ns.run(|| UdpSocket::bind((from, 0)))?;
    // The socket is connected, so that a reply from another address than `to` does not count.
    socket.connect(to)?;
    socket.set_read_timeout(Some(deadline / 4))?;
    let end = Instant::now() + deadline;
    let mut buffer = [0; 128];
    loop {
        let received = socket.send(b"who\n").and_then(|_| socket.recv(&mut buffer));
        match received {
            Ok(length) => return parse(&String::from_utf8_lossy(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {}
            Err(error) => return Err(error),
        }
    }
}

fn parse(line: &str) -> io::Result<Answer> {
    let (who, address) = line.trim().split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
    let seen_as = address.parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Answer { who: who.to_owned(), seen_as })
}
