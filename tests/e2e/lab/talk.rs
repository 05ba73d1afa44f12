//! A connection of which the test holds both ends, so that the server can speak without a question.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use super::netns::Netns;
use super::traffic::Proto;

const PATIENT: Duration = Duration::from_secs(8);

pub(crate) struct Talk {
    client: End,
    server: End,
    said: u32,
}

enum End {
    Tcp(TcpStream),
    /// A socket that is connected to the other end.
    Udp(UdpSocket),
}

/// A server socket, until a client connects.
pub(crate) enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listening {
    /// Binds a server socket; with port 0 to any free port.
    pub(crate) fn at(ns: &Netns, proto: Proto, address: &str, port: u16) -> Self {
        let at = SocketAddr::new(address.parse().expect("an address"), port);
        let begin = Instant::now();
        // A child process of another test holds a copy of a closed socket until it executes its
        // program.
        loop {
            let bound = ns.run(|| match proto {
                Proto::Tcp => TcpListener::bind(at).map(Self::Tcp),
                Proto::Udp => UdpSocket::bind(at).map(Self::Udp),
            });
            match bound {
                Ok(listening) => return listening,
                Err(error) => assert!(begin.elapsed() < PATIENT, "bind {at}: {error}"),
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
        .expect("a bound socket")
    }
}

impl Talk {
    /// Connects a client to a server directly, and exchanges a question and an answer.
    pub(crate) fn begin(client: &Netns, server: &Netns, proto: Proto, address: &str) -> Self {
        let listening = Listening::at(server, proto, address, 0);
        let to = listening.address();
        Self::through(client, listening, to)
    }

    /// Connects a client to a server through `to`, another address than the server's own.
    pub(crate) fn through(client: &Netns, server: Listening, to: SocketAddr) -> Self {
        let begun = match server {
            Listening::Tcp(listener) => by_tcp(client, &listener, to),
            Listening::Udp(socket) => by_udp(client, socket, to),
        };
        let mut talk = begun.unwrap_or_else(|error| panic!("{to}: {error}"));
        talk.assert_goes_on("its begin");
        talk
    }

    pub(crate) fn proto(&self) -> Proto {
        match self.client {
            End::Tcp(_) => Proto::Tcp,
            End::Udp(_) => Proto::Udp,
        }
    }

    /// The client's end, as the client sees it.
    pub(crate) fn client(&self) -> SocketAddr {
        self.client.local()
    }

    /// The server's end, as the server sees it.
    pub(crate) fn server(&self) -> SocketAddr {
        self.server.local()
    }

    /// The client's end as the server sees it, for instance after masquerading.
    pub(crate) fn client_as_seen(&self) -> SocketAddr {
        match &self.server {
            End::Tcp(stream) => stream.peer_addr(),
            End::Udp(socket) => socket.peer_addr(),
        }
        .expect("a connected socket")
    }

    /// Sends a word from the server, and waits until the client receives it.
    pub(crate) fn reply(&mut self) -> io::Result<()> {
        self.said += 1;
        self.server.say(self.said)?;
        self.client.hear(self.said)
    }

    /// Sends a word from the client, whether the server receives it or not.
    pub(crate) fn say(&self) -> io::Result<()> {
        self.client.say(u32::MAX)
    }

    /// Sends a word from the client, and waits until the server receives it.
    pub(crate) fn ask(&mut self) -> io::Result<()> {
        self.said += 1;
        self.client.say(self.said)?;
        self.server.hear(self.said)
    }

    /// Sends a new word from the client. It may get lost.
    pub(crate) fn call(&mut self) {
        self.said += 1;
        // An error belongs to the previous word.
        let _ = self.client.say(self.said);
    }

    /// Sends a word from the client. Returns whether the other end resets the connection.
    pub(crate) fn is_reset(&mut self) -> bool {
        self.call();
        let heard = self.client.hear(self.said);
        heard.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }

    /// Replaces the server's UDP socket by another one at the same address.
    pub(crate) fn replace_server(&mut self, server: Listening) {
        let Listening::Udp(socket) = server else { panic!("a stream has one server") };
        socket.connect(self.client_as_seen()).expect("connect to the client");
        socket.set_read_timeout(Some(PATIENT)).expect("set a deadline");
        self.server = End::Udp(socket);
    }

    /// Sends this many bytes from the server and then from the client. Each end receives all of
    /// them.
    pub(crate) fn carry(&self, bytes: usize) -> io::Result<()> {
        self.server.hand(&self.client, bytes)?;
        self.client.hand(&self.server, bytes)
    }

    /// The sockets of client and server.
    pub(crate) fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [&self.client, &self.server].map(|end| match end {
            End::Tcp(stream) => stream.as_fd(),
            End::Udp(socket) => socket.as_fd(),
        })
    }

    /// Asserts that both directions work. The server speaks first, because the client's next packet
    /// would move the connection back.
    pub(crate) fn assert_goes_on(&mut self, after: &str) {
        self.reply().unwrap_or_else(|error| panic!("a reply after {after}: {error}"));
        self.ask().unwrap_or_else(|error| panic!("a question after {after}: {error}"));
    }
}

fn by_tcp(client: &Netns, listener: &TcpListener, to: SocketAddr) -> io::Result<Talk> {
    let ours = client.run(|| TcpStream::connect_timeout(&to, PATIENT))?;
    listener.set_nonblocking(true)?;
    let begin = Instant::now();
    let theirs = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if begin.elapsed() > PATIENT => return Err(error),
            Err(_) => thread::yield_now(),
        }
    };
    theirs.set_nonblocking(false)?;
    for end in [&ours, &theirs] {
        end.set_read_timeout(Some(PATIENT))?;
        end.set_nodelay(true)?;
    }
    Ok(Talk { client: End::Tcp(ours), server: End::Tcp(theirs), said: 0 })
}

fn by_udp(client: &Netns, server: UdpSocket, to: SocketAddr) -> io::Result<Talk> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let ours = client.run(|| UdpSocket::bind((any, 0)))?;
    ours.connect(to)?;
    for end in [&ours, &server] {
        end.set_read_timeout(Some(PATIENT))?;
    }
    ours.send(&0_u32.to_be_bytes())?;
    let (_, peer) = server.recv_from(&mut [0; 4])?;
    server.connect(peer)?;
    Ok(Talk { client: End::Udp(ours), server: End::Udp(server), said: 0 })
}

impl End {
    fn local(&self) -> SocketAddr {
        match self {
            Self::Tcp(stream) => stream.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
        .expect("a connected socket")
    }

    fn say(&self, word: u32) -> io::Result<()> {
        self.forget_errors()?;
        match self {
            Self::Tcp(stream) => (&mut &*stream).write_all(&word.to_be_bytes()),
            Self::Udp(socket) => socket.send(&word.to_be_bytes()).map(drop),
        }
    }

    /// Sends many bytes to the other end, over UDP in one datagram. A datagram that is too large
    /// for the path is lost, and the kernel learns the path MTU from the error.
    fn hand(&self, other: &Self, bytes: usize) -> io::Result<()> {
        let (data, mut heard) = (vec![7; bytes], vec![0; bytes]);
        match (self, other) {
            (Self::Tcp(from), Self::Tcp(to)) => thread::scope(|scope| {
                let saying = scope.spawn(|| (&mut &*from).write_all(&data));
                (&mut &*to).read_exact(&mut heard)?;
                saying.join().expect("no panic")
            })?,
            (Self::Udp(from), Self::Udp(to)) => {
                to.set_read_timeout(Some(PATIENT / 40))?;
                let mut tries = 0;
                loop {
                    self.forget_errors()?;
                    let said = from.send(&data);
                    match said.and_then(|_| to.recv(&mut heard)) {
                        Ok(length) if length == bytes => break,
                        Err(error) if tries == 40 => return Err(error),
                        _ => tries += 1,
                    }
                }
                to.set_read_timeout(Some(PATIENT))?;
            }
            _ => unreachable!("ends of one connection"),
        }
        if heard == data { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Clears the ICMP error of an earlier call, which a UDP socket reports with the next call.
    fn forget_errors(&self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Udp(socket) => socket.take_error().map(drop),
        }
    }

    /// Waits for this word and ignores other datagrams.
    fn hear(&self, word: u32) -> io::Result<()> {
        self.forget_errors()?;
        let mut heard = [0; 4];
        loop {
            match self {
                Self::Tcp(stream) => (&mut &*stream).read_exact(&mut heard)?,
                Self::Udp(socket) => drop(socket.recv(&mut heard)?),
            }
            if heard == word.to_be_bytes() {
                return Ok(());
            }
        }
    }
}
