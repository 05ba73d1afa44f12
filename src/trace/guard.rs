//! A process that removes an instance of tracefs when the trace can't: after SIGKILL, or when it was killed for
//! want of memory. Nothing else does, and its buffers take memory until the next boot.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// How often, and after how many microseconds, the child tries again.
const TRIES: u32 = 100;
const PAUSE: u32 = 10_000;

/// Waits for the end of the trace. Dropped, it ends with it.
#[derive(Debug)]
pub(super) struct Guard {
    /// Closed with the trace, however that ends; none only while this is dropped.
    alive: Option<OwnedFd>,
    child: Pid,
}

impl Guard {
    /// Watches over the folder of an instance. Called before `trace_pipe` is open, which the child would hold.
    pub(super) fn of(instance: &Path) -> Result<Self, String> {
        let watch = || {
            let path = CString::new(instance.as_os_str().as_bytes())?;
            let (end, alive) = pipe2(OFlag::O_CLOEXEC)?;
            // SAFETY: the child calls nothing but system calls, and never returns.
            match unsafe { fork() }? {
                ForkResult::Child => keep_watch(&end, &path),
                ForkResult::Parent { child } => Ok(Self { alive: Some(alive), child }),
            }
        };
        watch().map_err(|error: io::Error| format!("watch over {}: {error}", instance.display()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.alive = None;
        while waitpid(self.child, None) == Err(Errno::EINTR) {}
    }
}

/// Removes the folder when the other end of the pipe has been closed. It may be gone by then.
fn keep_watch(end: &OwnedFd, path: &CString) -> ! {
    let mut byte = 0_u8;
    // SAFETY: system calls on numbers and on memory that outlives them. Descriptors from 3 on belong to the trace:
    // held here, they would keep what the trace has open after its end. ^C reaches the session of its terminal alone.
    unsafe {
        libc::setsid();
        libc::dup2(end.as_raw_fd(), 0);
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        while libc::read(0, (&raw mut byte).cast(), 1) < 0 && Errno::last() == Errno::EINTR {}
        // The kernel closes the trace's files one after the other, and refuses while `trace_pipe` is open.
        for _ in 0..TRIES {
            if libc::rmdir(path.as_ptr()) == 0 || Errno::last() != Errno::EBUSY {
                break;
            }
            libc::usleep(PAUSE);
        }
        libc::_exit(0)
    }
}
