//! How the process begins, where that costs time, and what it prints.

use std::fs::{self, File};
use std::io::stdout;
use std::os::fd::{BorrowedFd, IntoRawFd as _};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::write;

/// Makes a closed pipe an error of the write, not the end of the process, and sees to it that the
/// numbers 0, 1 and 2 are not given to other files. Rust's own start-up does the same.
pub fn standard_streams() {
    // SAFETY: to ignore a signal calls no handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    // SAFETY: poll only inspects the descriptors; a closed one is reported as POLLNVAL.
    let streams = [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
    let mut asked = streams.map(|fd| PollFd::new(fd, PollFlags::empty()));
    let closed = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLNVAL));
    if poll(&mut asked, PollTimeout::ZERO).is_ok_and(|count| count > 0) && asked.iter().any(closed)
    {
        // Each takes the lowest number that is free.
        while let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            if null.into_raw_fd() > 2 {
                break;
            }
        }
    }
}

/// The text without signs that steer a terminal. Names of processes, chains and interfaces may have some.
pub(crate) fn harmless(text: &str) -> String {
    let steers = |sign: char| sign.is_control() && sign != '\n' && sign != '\t';
    text.chars().map(|sign| if steers(sign) { '?' } else { sign }).collect()
}

/// The name that the kernel has for this machine.
pub(crate) fn host_name() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    text.trim().to_owned()
}

/// Version and level of the running kernel (`uname -r`), as (6, 12).
pub(crate) fn kernel_release() -> Option<(u32, u32)> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = text.split(|sign: char| !sign.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// No value of another program takes more bytes of a message.
pub(crate) const VALUE_MOST: usize = 256;

/// The text, or its beginning where it is longer than so many bytes.
pub(crate) fn cut(text: impl Into<String>, most: usize) -> String {
    let text = text.into();
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}… ({} bytes)", &text[..end], text.len())
}

/// Becomes readable when a signal asks for the end, which then ends nothing by itself: there may be something to
/// clean up.
pub(crate) fn ending_signals() -> nix::Result<SignalFd> {
    let mut ending = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ending.add(signal);
    }
    ending.thread_block()?;
    SignalFd::with_flags(&ending, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Ends the limit on the processor's time when it is dropped.
pub(crate) struct CpuLimit {
    before: u64,
    most: u64,
}

impl CpuLimit {
    /// Limits the processor's time of this process from now on, and that of each program that it starts (`setrlimit`).
    /// The kernel ends what goes beyond. A limit that can't be set is none.
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

/// Writes to standard output, and once more where that failed.
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
