//! A connection of which the test holds both ends, so that the server may speak without being
//! asked.

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
    /// Connected to the other end.
    Udp(UdpSocket),
}

/// Where a server listens, for the time until a client has come.
pub(crate) enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listening {
    /// Port 0 is any that is free.
    pub(crate) fn at(ns: &Netns, proto: Proto, address: &str, port: u16) -> Self {
        let at = SocketAddr::new(address.parse().expect("an address"), port);
        let begin = Instant::now();
        // A program that another test is about to start holds our closed socket for a moment.
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
    /// A client asks the server, directly, and is answered.
    pub(crate) fn begin(client: &Netns, server: &Netns, proto: Proto, address: &str) -> Self {
        let listening = Listening::at(server, proto, address, 0);
        let to = listening.address();
        Self::through(client, listening, to)
    }

    /// The same where the client calls another address than the server's own.
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

    /// The client's end, as the server sees it: behind masquerading, for instance.
    pub(crate) fn client_as_seen(&self) -> SocketAddr {
        match &self.server {
            End::Tcp(stream) => stream.peer_addr(),
            End::Udp(socket) => socket.peer_addr(),
        }
        .expect("a connected socket")
    }

    /// The server speaks, and the client hears it.
    pub(crate) fn reply(&mut self) -> io::Result<()> {
        self.said += 1;
        self.server.say(self.said)?;
        self.client.hear(self.said)
    }

    /// The client speaks, whether the server hears it or not.
    pub(crate) fn say(&self) -> io::Result<()> {
        self.client.say(u32::MAX)
    }

    /// The client speaks, and the server hears it.
    pub(crate) fn ask(&mut self) -> io::Result<()> {
        self.said += 1;
        self.client.say(self.said)?;
        self.server.hear(self.said)
    }

    /// The client speaks, and nobody has to hear it.
    pub(crate) fn call(&mut self) {
        self.said += 1;
        // An error is what the last word met.
        let _ = self.client.say(self.said);
    }

    /// The client speaks, and is answered that there is no such connection.
    pub(crate) fn is_reset(&mut self) -> bool {
        self.call();
        let heard = self.client.hear(self.said);
        heard.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }

    /// The other end is this socket from now on, at the same address. Datagrams do not mind.
    pub(crate) fn is_served_by(&mut self, server: Listening) {
        let Listening::Udp(socket) = server else { panic!("a stream has one server") };
        socket.connect(self.client_as_seen()).expect("connect to the client");
        socket.set_read_timeout(Some(PATIENT)).expect("set a deadline");
        self.server = End::Udp(socket);
    }

    /// The server says so many bytes, and then the client does; each hears all that the other says.
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

    /// The server speaks first: what was moved would only come back with the client's next packet.
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

    /// Many bytes for the other end, over UDP in one datagram. One that is too large for the path is lost, and the
    /// kernel learns from it.
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

    /// A UDP socket tells with the next call what an ICMP error has said about an earlier one.
    fn forget_errors(&self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Udp(socket) => socket.take_error().map(drop),
        }
    }

    /// Waits for this word. Datagrams of others are no matter.
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
