//! One small blocking netlink socket: requests, dumps and batches, with every error seen.
//!
//! What a general client tends to lose is kept here: the errno that ends a failed dump, dumps
//! that the kernel marks as interrupted, truncated datagrams, the kernel's own error text.
//! A socket belongs to the network namespace of the thread that opened it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    setsockopt, socket, sockopt,
};

use super::uapi::*;
use super::wire::{HEADER, Message, Writer, find, messages, string};

/// Room for one reply of a single request.
const REPLY: usize = 2 * 1024;
/// Room for one datagram of a dump: the kernel fills at most 32 KiB.
const DUMP: usize = 64 * 1024;
/// How often a dump that changed under the reader is read again.
const DUMP_TRIES: u32 = 16;
/// Send buffers above this size are asked for explicitly (`wmem_default` is about 208 KiB).
const LARGE: usize = 96 * 1024;

/// What the kernel said no to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) errno: Errno,
    /// The kernel's explanation, where it gave one.
    pub(crate) text: Option<String>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{} ({})", self.errno.desc(), text),
            None => f.write_str(self.errno.desc()),
        }
    }
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
    buf: Vec<u8>,
    /// Whether the kernel was asked for strictness and its own words.
    thorough: bool,
    /// When a dump is given up: what a pod's namespace holds may have no end.
    deadline: Option<Instant>,
}

impl Socket {
    /// Opens a socket to rtnetlink in the network namespace of this thread.
    pub(crate) fn route() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Opens a socket to nfnetlink in the network namespace of this thread.
    pub(crate) fn netfilter() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    /// Opens a socket to generic netlink in the network namespace of this thread.
    pub(crate) fn generic() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkGeneric)
    }

    /// Opens a socket to the kernel's `IPsec` in the network namespace of this thread.
    pub(crate) fn xfrm() -> Result<Self, Error> {
        // SAFETY: there is no pointer among the arguments.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_XFRM)
        };
        // SAFETY: the kernel has just opened it, and nothing else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(Errno::result(fd)?) };
        Ok(Self::new(fd))
    }

    fn open(protocol: SockProtocol) -> Result<Self, Error> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self::new(fd))
    }

    pub(crate) fn new(fd: OwnedFd) -> Self {
        // The first message binds it.
        Self { fd, seq: 1, buf: vec![0; REPLY], thorough: false, deadline: None }
    }

    /// Prepares for a namespace whose owner is not trusted: the kernel refuses messages of other senders
    /// (`netlink_getsockbyportid`, `net/netlink/af_netlink.c`), and dumps end at the deadline.
    pub(crate) fn distrust(&mut self, deadline: Instant) -> Result<(), Error> {
        connect(self.fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        self.deadline = Some(deadline);
        Ok(())
    }

    /// A number that no other network namespace has had since the machine was booted. None before kernel 5.14.
    pub(crate) fn namespace_cookie(&self) -> Option<u64> {
        let mut cookie: u64 = 0;
        #[expect(clippy::cast_possible_truncation, reason = "eight")]
        let mut len = size_of_val(&cookie) as libc::socklen_t;
        // SAFETY: the pointers describe `cookie` and its length, which outlive the call; the descriptor is open
        // for as long as `self` lives.
        let rc = unsafe {
            let (fd, value) = (self.fd.as_raw_fd(), (&raw mut cookie).cast());
            libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut len)
        };
        Errno::result(rc).ok().map(|_| cookie)
    }

    /// Asks the kernel to check requests strictly and to explain its errors. The few look-ups of a
    /// fast path do without.
    fn be_thorough(&mut self) {
        if !self.thorough {
            self.thorough = true;
            // Each is a help, none a need: kernels before 4.20 lack some.
            for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK] {
                let _ = self.enable(option);
            }
        }
    }

    fn enable(&self, option: i32) -> Result<(), Errno> {
        let on: libc::c_int = 1;
        #[expect(clippy::cast_possible_truncation, reason = "four")]
        let len = size_of_val(&on) as libc::socklen_t;
        // SAFETY: the pointer and the length describe `on`, which outlives the call; the
        // descriptor is open for as long as `self` lives.
        let rc = unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), SOL_NETLINK, option, (&raw const on).cast(), len)
        };
        Errno::result(rc).map(drop)
    }

    /// Device and inode of the network namespace that it belongs to, as those of `/proc/PID/ns/net`.
    pub(crate) fn namespace(&self) -> io::Result<(u64, u64)> {
        // SAFETY: the descriptor is open for as long as `self` lives; there is no argument.
        let fd = Errno::result(unsafe { libc::ioctl(self.fd.as_raw_fd(), SIOCGSKNS) })?;
        // SAFETY: the kernel has just opened it, and nobody else knows it.
        let namespace = unsafe { File::from_raw_fd(fd) }.metadata()?;
        Ok((namespace.dev(), namespace.ino()))
    }

    fn send(&mut self, request: &mut Writer) -> Result<u32, Error> {
        let last = request.number(self.seq);
        self.seq = last.wrapping_add(1);
        let bytes = request.as_bytes();
        if bytes.len() > LARGE {
            setsockopt(&self.fd, sockopt::SndBufForce, &(bytes.len() * 2))?;
        }
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => return Ok(last),
            }
        }
    }

    /// Reads one datagram. The kernel answers within the call that sends (`netlink_unicast_kernel`,
    /// `net/netlink/af_netlink.c`), so an answer that is not there was lost and never comes.
    fn receive(&mut self) -> Result<usize, Error> {
        let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        loop {
            match recv(self.fd.as_fd().as_raw_fd(), &mut self.buf, flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(lost()),
                Err(errno) => return Err(errno.into()),
                Ok(len) if len > self.buf.len() => return Err(Errno::EMSGSIZE.into()),
                Ok(len) => return Ok(len),
            }
        }
    }

    /// Sends one message that asks for an acknowledgement, and waits for it.
    pub(crate) fn acknowledged(&mut self, request: &mut Writer) -> Result<(), Error> {
        self.be_thorough();
        let last = self.send(request)?;
        self.wait(last, last)
    }

    /// Sends an nfnetlink batch whose last change (the message before the closing one) asks for
    /// an acknowledgement. The first error is the answer; the kernel has then changed nothing.
    pub(crate) fn batch(&mut self, request: &mut Writer) -> Result<(), Error> {
        let first = self.seq;
        let last = self.send(request)?;
        self.wait(first, last.wrapping_sub(1))
    }

    /// Waits for an error of any message from `first` on, or for the answer to `last`.
    fn wait(&mut self, first: u32, last: u32) -> Result<(), Error> {
        loop {
            let len = self.receive()?;
            for message in messages(&self.buf[..len]) {
                // Anything older is left over from a request that ended in an error.
                let current = message.seq.wrapping_sub(first) <= last.wrapping_sub(first) + 1;
                if message.kind == NLMSG_ERROR && current {
                    let answer = outcome(message);
                    if answer.is_err() || message.seq == last {
                        return answer;
                    }
                }
            }
        }
    }

    /// Sends one message that is answered by one message, and parses that.
    pub(crate) fn query<T>(
        &mut self,
        request: &mut Writer,
        parse: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        self.queries(request, parse)?.pop().unwrap_or(Err(Errno::ENODATA.into()))
    }

    /// Sends messages that are answered by one message each, all at once, and parses the answers.
    /// They are in the order of the questions.
    pub(crate) fn queries<T>(
        &mut self,
        requests: &mut Writer,
        parse: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Vec<Result<T, Error>>, Error> {
        let mut awaited = self.seq;
        let last = self.send(requests)?;
        let mut answers = Vec::new();
        while awaited != last.wrapping_add(1) {
            let len = self.receive()?;
            for message in messages(&self.buf[..len]) {
                // Anything older is left over from a request that ended in an error.
                if message.seq != awaited {
                    continue;
                }
                awaited = awaited.wrapping_add(1);
                answers.push(if message.kind == NLMSG_ERROR {
                    outcome(message).and(Err(Errno::ENODATA.into()))
                } else {
                    parse(message).ok_or_else(|| Errno::EBADMSG.into())
                });
            }
        }
        Ok(answers)
    }

    /// Sends a dump request and collects what `parse` makes of each message. A dump that the
    /// kernel marks as interrupted is read again from the start.
    pub(crate) fn dump<T>(
        &mut self,
        request: &mut Writer,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.be_thorough();
        self.buf.resize(DUMP, 0);
        for _ in 0..DUMP_TRIES {
            if let Some(found) = self.dump_once(request, &parse)? {
                return Ok(found);
            }
        }
        Err(Error {
            errno: Errno::EINTR,
            text: Some("the table changed each time it was read".into()),
        })
    }

    fn dump_once<T>(
        &mut self,
        request: &mut Writer,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let last = self.send(request)?;
        let (mut found, mut whole) = (Vec::new(), true);
        loop {
            if self.deadline.is_some_and(|deadline| Instant::now() > deadline) {
                let text = "the namespace holds more than can be read in time";
                return Err(Error { errno: Errno::ETIMEDOUT, text: Some(text.into()) });
            }
            let len = self.receive()?;
            for message in messages(&self.buf[..len]) {
                if message.seq != last {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_ERROR => return outcome(message).map(|()| Some(found)),
                    // The kernel ends a failed dump with DONE and an error number.
                    NLMSG_DONE => return outcome(message).map(|()| whole.then_some(found)),
                    _ => found.extend(parse(message.body)),
                }
            }
        }
    }
}

fn lost() -> Error {
    let text = "an answer of the kernel was lost: the socket's buffer is full";
    Error { errno: Errno::ENOBUFS, text: Some(text.into()) }
}

/// The error number of an `NLMSG_ERROR` or `NLMSG_DONE` message, with the kernel's text.
fn outcome(message: Message<'_>) -> Result<(), Error> {
    let number =
        message.body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if number == 0 {
        return Ok(());
    }
    // With NETLINK_CAP_ACK only the header of the request is repeated before the attributes.
    let at = if message.kind == NLMSG_ERROR { 4 + HEADER } else { 4 };
    let text = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| message.body.get(at..))
        .flatten()
        .and_then(|attrs| find(attrs, NLMSGERR_ATTR_MSG))
        .map(string);
    // The least number has no positive one.
    Err(numbered(number.saturating_neg(), text))
}

/// ipset answers with numbers of its own, above all of errno's.
fn numbered(number: i32, text: Option<String>) -> Error {
    let errno = match number {
        IPSET_ERR_EXIST => Errno::EEXIST,
        IPSET_ERR_BUSY | IPSET_ERR_REFERENCED => Errno::EBUSY,
        IPSET_ERR_FIND_TYPE => Errno::EOPNOTSUPP,
        IPSET_ERR_TYPE_MISMATCH => Errno::EINVAL,
        _ => Errno::from_raw(number),
    };
    let own = || (number > IPSET_ERR_PRIVATE).then(|| format!("ipset error {number}"));
    Error { errno, text: text.or_else(own) }
}
