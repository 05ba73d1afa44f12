//! A child process that removes the tracefs instance when the trace can't: after SIGKILL, or when the OOM
//! killer ended it. Otherwise the kernel would keep the instance and its buffers until the next boot.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

/// Maximum number of attempts of the child to remove the instance.
const TRIES: u32 = 100;
/// Pause between two attempts, in microseconds.
const PAUSE: u32 = 10_000;

/// The child process. A drop removes the instance and waits for the child's end.
#[derive(Debug)]
pub(super) struct Guard {
    /// The writing end of a pipe to the child. The kernel closes it however the trace ends. `None` only
    /// during the drop.
    alive: Option<OwnedFd>,
    child: Pid,
}

impl Guard {
    /// Starts the child for the directory of an instance. Call it before `trace_pipe` is open; otherwise the
    /// child inherits that file.
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

/// Waits until the other end of the pipe is closed, then removes the directory if it still exists.
fn keep_watch(end: &OwnedFd, path: &CString) -> ! {
    let mut byte = 0_u8;
    // SAFETY: system calls on numbers and on memory that outlives them. The child uses descriptor 0 alone, so it
    // may close those from 3 on.
    unsafe {
        // A session of its own: Ctrl-C at the terminal must not end the child. No descriptors of the trace: the
        // child would keep the trace's files open after the trace has ended.
        libc::setsid();
        libc::dup2(end.as_raw_fd(), 0);
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        while libc::read(0, (&raw mut byte).cast(), 1) < 0 && Errno::last() == Errno::EINTR {}
        // The kernel closes the files of a killed trace one after the other, and refuses `rmdir` while
        // `trace_pipe` is open.
        for _ in 0..TRIES {
            if libc::rmdir(path.as_ptr()) == 0 || Errno::last() != Errno::EBUSY {
                break;
            }
            libc::usleep(PAUSE);
        }
        libc::_exit(0)
    }
}
