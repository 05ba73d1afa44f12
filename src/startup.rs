//! How the process begins and ends, where that costs time.

use std::fs::File;
use std::io::{Read as _, stdout};
use std::os::fd::{BorrowedFd, IntoRawFd as _};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, pipe2, write};

use crate::state::State;

/// Makes a closed pipe an error of the write, not the end of the process, and sees to it that the
/// numbers 0, 1 and 2 are not given to other files. Rust's own start-up does the same.
pub fn standard_streams() {
    // SAFETY: to ignore a signal calls no handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    // SAFETY: the descriptors are only asked about; one that is closed is told of as such.
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

/// Writes to standard output, and once more where that failed.
pub fn print(mut text: &[u8]) -> nix::Result<()> {
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

/// How long the kernel may take to free what was removed from `nf_tables`, with room to spare.
const FREED: Duration = Duration::from_millis(50);

/// How often a child waits for others that remove something.
const TURNS: u32 = 20;

/// Waits until nothing was removed for a while; in a stream of removals that does not end, until the
/// next full second. All children of such a stream close then, and only the first of them waits.
fn wait_for_quiet(goes_on: impl Fn() -> bool) {
    for _ in 0..TURNS {
        thread::sleep(FREED);
        if !goes_on() {
            return;
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = Duration::from_nanos(now.subsec_nanos().into());
    thread::sleep(Duration::from_secs(1).saturating_sub(since));
}

/// What a child does when its parent has ended.
pub type Work<'a> = &'a dyn Fn();

/// Ends the work of a call that has one thread and holds netfilter sockets. Where something was
/// removed from `nf_tables` just now, by this call or by a DEL before it, a child closes them. It
/// does `work` before, which need not be done where there can be no child.
pub fn leave(state: &State, removed: bool, work: Option<Work<'_>>) {
    let lately = || state.has_removed_within(FREED);
    if removed || work.is_some() || lately() {
        leave_the_rest_to_a_child(lately, work);
    }
}

/// Lets a child wait for what this process need not wait for. After something was removed from
/// `nf_tables`, the kernel frees it an RCU period later, 5 to 16 ms, and who closes a netfilter
/// socket before that waits for it, with the lock that every change needs
/// (`nft_rcv_nl_event`, `net/netfilter/nf_tables_api.c`). The removal itself is done by then. The
/// child holds the sockets until all is freed. Where there can be no child, this process waits.
///
/// `goes_on` tells whether others have removed something meanwhile: closing now would wait for that.
fn leave_the_rest_to_a_child(goes_on: impl Fn() -> bool, work: Option<Work<'_>>) {
    let Ok((read, write)) = pipe2(OFlag::O_CLOEXEC) else { return };
    // SAFETY: this process has one thread, so the child has all there is.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            // The runtime reads until nobody has its end of the pipe.
            for stream in 0..=2 {
                // SAFETY: the child uses none of these any more.
                unsafe { libc::close(stream) };
            }
            drop(write);
            // Ends when the other process does.
            let _ = File::from(read).read(&mut [0]);
            if let Some(work) = work {
                standard_streams();
                work();
            }
            wait_for_quiet(goes_on);
            // SAFETY: ends the process, without what the other one has left to do at its end.
            unsafe { libc::_exit(0) }
        }
        // The end of the process closes it, and it comes after the sockets.
        Ok(ForkResult::Parent { .. }) => drop(write.into_raw_fd()),
        Err(errno) => log::debug!("no child to wait in this process's place: {errno}"),
    }
}
