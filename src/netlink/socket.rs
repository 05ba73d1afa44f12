//! A small blocking netlink socket for requests, dumps and batches, which reports every error.
//!
//! It reports what general clients often lose: the errno that ends a failed dump, interrupted
//! dumps, truncated datagrams, and the kernel's own error text. A socket belongs to the network
//! namespace of the thread that opened it.

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

/// Bytes of buffer for the reply to a single request.
const REPLY_BUFFER: usize = 2 * 1024;
/// Bytes of buffer for one datagram of a dump. The kernel fills at most 32 KiB.
const DUMP_BUFFER: usize = 64 * 1024;
/// Maximum number of attempts to read a dump that changes meanwhile.
const DUMP_TRIES: u32 = 16;
/// Requests above this size need a larger send buffer (`wmem_default` is about 208 KiB).
const LARGE_REQUEST: usize = 96 * 1024;

/// An error that the kernel returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) errno: Errno,
    /// The kernel's explanation, if it gave one.
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

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
    buf: Vec<u8>,
    /// Whether [`Self::enable_strict_checks`] has run.
    has_strict_checks: bool,
    /// Time at which a dump ends with an error, because a pod's namespace may hold any number of
    /// objects.
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

    /// Opens a socket to xfrm (`IPsec`) in the network namespace of this thread.
    pub(crate) fn xfrm() -> Result<Self, Error> {
        // SAFETY: there is no pointer among the arguments.
        let fd = unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_XFRM)
        };
        // SAFETY: the kernel has just opened the descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(Errno::result(fd)?) };
        Ok(Self::new(fd))
    }

    fn open(protocol: SockProtocol) -> Result<Self, Error> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self::new(fd))
    }

    pub(crate) fn new(fd: OwnedFd) -> Self {
        // The first message makes the kernel bind the socket.
        Self { fd, seq: 1, buf: vec![0; REPLY_BUFFER], has_strict_checks: false, deadline: None }
    }

    /// Prepares for a namespace whose owner symroute does not trust. The kernel then refuses
    /// messages of other senders (`netlink_getsockbyportid`, `net/netlink/af_netlink.c`), and dumps
    /// end at the deadline.
    pub(crate) fn distrust(&mut self, deadline: Instant) -> Result<(), Error> {
        connect(self.fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        self.deadline = Some(deadline);
        Ok(())
    }

    /// Cookie of the network namespace: a number that no other namespace has had since boot. `None`
    /// before Linux 5.14.
    pub(crate) fn namespace_cookie(&self) -> Option<u64> {
        let mut cookie: u64 = 0;
        #[expect(clippy::cast_possible_truncation, reason = "eight")]
        let mut len = size_of_val(&cookie) as libc::socklen_t;
        // SAFETY: the pointers describe `cookie` and its length, which outlive the call; the
        // descriptor is open for as long as `self` lives.
        let rc = unsafe {
            let (fd, value) = (self.fd.as_raw_fd(), (&raw mut cookie).cast());
            libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut len)
        };
        Errno::result(rc).ok().map(|_| cookie)
    }

    /// Asks the kernel to check requests strictly and to explain its errors. The few look-ups of a
    /// fast path do not need this.
    fn enable_strict_checks(&mut self) {
        if !self.has_strict_checks {
            self.has_strict_checks = true;
            // symroute works without these options: kernels before 4.20 lack some.
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

    /// Device and inode of the socket's network namespace, as those of `/proc/PID/ns/net`.
    pub(crate) fn namespace(&self) -> io::Result<(u64, u64)> {
        // SAFETY: the descriptor is open for as long as `self` lives; there is no argument.
        let fd = Errno::result(unsafe { libc::ioctl(self.fd.as_raw_fd(), SIOCGSKNS) })?;
        // SAFETY: the kernel has just opened the descriptor, and nothing else owns it.
        let namespace = unsafe { File::from_raw_fd(fd) }.metadata()?;
        Ok((namespace.dev(), namespace.ino()))
    }

    fn send(&mut self, request: &mut Writer) -> Result<u32, Error> {
        let last = request.number_messages(self.seq);
        self.seq = last.wrapping_add(1);
        let bytes = request.as_bytes();
        if bytes.len() > LARGE_REQUEST {
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
    /// `net/netlink/af_netlink.c`), so a missing answer was lost and never arrives.
    fn receive(&mut self) -> Result<usize, Error> {
        let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        loop {
            match recv(self.fd.as_fd().as_raw_fd(), &mut self.buf, flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(lost_answer()),
                Err(errno) => return Err(errno.into()),
                Ok(len) if len > self.buf.len() => return Err(Errno::EMSGSIZE.into()),
                Ok(len) => return Ok(len),
            }
        }
    }

    /// Sends one message that asks for an acknowledgement, and reads it.
    pub(crate) fn acknowledged(&mut self, request: &mut Writer) -> Result<(), Error> {
        self.enable_strict_checks();
        let last = self.send(request)?;
        self.wait(last, last)
    }

    /// Sends an nfnetlink batch whose last change (the message before the closing one) asks for an
    /// acknowledgement. Returns the first error; the kernel has then changed nothing.
    pub(crate) fn batch(&mut self, request: &mut Writer) -> Result<(), Error> {
        let first = self.seq;
        let last = self.send(request)?;
        self.wait(first, last.wrapping_sub(1))
    }

    /// Reads until an error of any message from `first` on, or the answer to `last`.
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

    /// Sends one message to which the kernel answers with one message, and parses the answer.
    pub(crate) fn query<T>(
        &mut self,
        request: &mut Writer,
        parse: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        self.queries(request, parse)?.pop().unwrap_or(Err(Errno::ENODATA.into()))
    }

    /// Sends several messages at once, to each of which the kernel answers with one message.
    /// Returns the parsed answers in the order of the messages.
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

    /// Sends a dump request, and collects the results of `parse` for each message. Reads the dump
    /// again if the kernel marks it as interrupted.
    pub(crate) fn dump<T>(
        &mut self,
        request: &mut Writer,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        self.enable_strict_checks();
        self.buf.resize(DUMP_BUFFER, 0);
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

fn lost_answer() -> Error {
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
    // With NETLINK_CAP_ACK the kernel repeats only the header of the request before the attributes.
    let at = if message.kind == NLMSG_ERROR { 4 + HEADER } else { 4 };
    let text = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| message.body.get(at..))
        .flatten()
        .and_then(|attrs| find(attrs, NLMSGERR_ATTR_MSG))
        .map(string);
    // `i32::MIN` has no positive counterpart.
    Err(error_of_number(number.saturating_neg(), text))
}

/// Makes an error from an errno, or from one of ipset's own numbers, which are larger than any
/// errno.
fn error_of_number(number: i32, text: Option<String>) -> Error {
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
