//! Start-up, output, limits and signals of the process.

use std::fs::{self, File};
use std::io::stdout;
use std::os::fd::{BorrowedFd, IntoRawFd as _};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::write;

/// Ignores `SIGPIPE`, so that a write to a closed pipe fails and does not end the process. Opens /dev/null for
/// closed descriptors 0 to 2, so that no other file gets these numbers. Rust's own start-up does both.
pub fn standard_streams() {
    // SAFETY: to ignore a signal calls no handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    // SAFETY: poll only inspects the descriptors; a closed one is reported as POLLNVAL.
    let streams = [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
    let mut asked = streams.map(|fd| PollFd::new(fd, PollFlags::empty()));
    let closed = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLNVAL));
    if poll(&mut asked, PollTimeout::ZERO).is_ok_and(|count| count > 0) && asked.iter().any(closed)
    {
        // Each open takes the lowest free number.
        while let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            if null.into_raw_fd() > 2 {
                break;
            }
        }
    }
}

/// The text without characters that control a terminal. Names of processes, chains and interfaces may have
/// some.
pub(crate) fn without_control_characters(text: &str) -> String {
    let steers_terminal = |sign: char| sign.is_control() && sign != '\n' && sign != '\t';
    text.chars().map(|sign| if steers_terminal(sign) { '?' } else { sign }).collect()
}

/// The kernel's host name of this machine.
pub(crate) fn host_name() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_owned()
}

/// First two numbers of the running kernel's version (`uname -r`), as (6, 12).
pub(crate) fn kernel_release() -> Option<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text.split(|sign: char| !sign.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Maximum length in bytes of another program's value in a message.
pub(crate) const VALUE_MOST: usize = 256;

/// The text, or its beginning and its length if it is longer than `most` bytes.
pub(crate) fn cut(text: impl Into<String>, most: usize) -> String {
    let text = text.into();
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}… ({} bytes)", &text[..end], text.len())
}

/// Blocks the signals that end a process, and returns a descriptor that becomes readable when one arrives. So
/// the process can clean up first.
pub(crate) fn ending_signals() -> nix::Result<SignalFd> {
    let mut ending = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ending.add(signal);
    }
    ending.thread_block()?;
    SignalFd::with_flags(&ending, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// A limit on processor time, which ends when this is dropped.
pub(crate) struct CpuLimit {
    before: u64,
    most: u64,
}

impl CpuLimit {
    /// Limits the processor time of this process from now on, and of each program that it starts (`setrlimit`).
    /// The kernel ends a process that exceeds it. None if the limit can't be set.
    pub(crate) fn of(seconds: u64) -> Option<Self> {
        let (before, most) = getrlimit(Resource::RLIMIT_CPU).ok()?;
        let used = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let used = used.user_time().tv_sec() + used.system_time().tv_sec() + 1;
        let soft = seconds.saturating_add(u64::try_from(used).ok()?);
        setrlimit(Resource::RLIMIT_CPU, soft.min(before), most).ok()?;
        Some(Self { before, most })
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::RLIMIT_CPU, self.before, self.most);
    }
}

/// Writes to standard output, and tries again once after an error.
pub(crate) fn print(mut text: &[u8]) -> nix::Result<()> {
    let mut again = true;
    while !text.is_empty() {
        match write(stdout(), text) {
            Ok(written) => text = &text[written..],
            Err(Errno::EINTR) => {}
            Err(_) if again => again = false,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
