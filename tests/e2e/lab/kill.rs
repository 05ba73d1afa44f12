//! Runs a program with all its threads under ptrace up to one of its changes, and kills it there.
//!
//! strace counts the calls of each thread separately, so the third rename of a program with threads
//! is not a fixed place. This tracer keeps one count for all threads. It does not follow tools that
//! the program starts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::changes::Call;

/// Start of a command line for [`run`]: waits until it is traced.
pub(crate) const GATE: [&str; 4] = ["sh", "-c", "read -r _ && exec \"$@\"", "sh"];

const PATIENT: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(5);

/// A run that has ended, with all its threads.
#[derive(Default)]
pub(crate) struct Run {
    pub(crate) changes: Vec<Change>,
    /// Whether the program was killed at its last change, before the kernel made that.
    pub(crate) was_struck: bool,
}

pub(crate) struct Change {
    pub(crate) what: String,
    /// Whether the kernel made the change.
    pub(crate) made: bool,
}

/// Runs the command behind [`GATE`], which executes `program`. Kills it before the change with this
/// number, or once `is_done`. When this returns, the program has ended and its files are closed.
pub(crate) fn run(
    command: Command,
    program: &Path,
    strike_at: Option<usize>,
    is_done: impl Fn() -> bool,
) -> Run {
    let (tell, told) = channel();
    let (begin, mut late) = (Instant::now(), false);
    let run = thread::scope(|scope| {
        // A separate thread, because the tracer waits for every child of its thread.
        let tracer = scope.spawn(move || trace(command, program, strike_at, &tell));
        let pid = told.recv().expect("the program starts");
        while !late && !tracer.is_finished() && !is_done() {
            thread::sleep(PACE);
            late = begin.elapsed() > PATIENT;
        }
        if !tracer.is_finished() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        tracer.join().expect("the tracer does not panic")
    });
    assert!(!late, "neither struck nor done after {PATIENT:?}");
    run
}

#[expect(clippy::zombie_processes, reason = "the tracer waits for it")]
fn trace(
    mut command: Command,
    program: &Path,
    strike_at: Option<usize>,
    tell: &Sender<Pid>,
) -> Run {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("start the program");
    let pid = Pid::from_raw(child.id().try_into().expect("a process id"));
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).expect("trace the program");
    ptrace::interrupt(pid).expect("stop the program");
    tell.send(pid).expect("somebody listens");
    let mut gate = child.stdin.take().expect("stdin was piped");
    gate.write_all(b"\n").expect("open the gate");
    let begun = BTreeMap::new();
    let mut tracer = Tracer { pid, strike_at, has_begun: false, begun, run: Run::default() };
    while tracer.turn(program) {}
    tracer.run
}

struct Tracer {
    pid: Pid,
    strike_at: Option<usize>,
    /// Whether the program itself runs by now, instead of [`GATE`].
    has_begun: bool,
    /// Changes that threads are making: the thread, and the change's number.
    begun: BTreeMap<Pid, usize>,
    run: Run,
}

impl Tracer {
    /// Waits for a thread to stop and resumes it. Returns false when the program has ended.
    fn turn(&mut self, program: &Path) -> bool {
        let of_this_thread = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let (thread, signal) = match waitpid(Pid::from_raw(-1), Some(of_this_thread)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                self.at_call(thread);
                (thread, None)
            }
            Ok(WaitStatus::PtraceEvent(thread, _, event)) => {
                if event == libc::PTRACE_EVENT_EXEC {
                    let now = fs::read_link(format!("/proc/{thread}/exe"));
                    self.has_begun = now.is_ok_and(|now| now == program);
                }
                (thread, None)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            // The kernel reports the end of the first thread after that of the others.
            Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..)) => {
                return thread != self.pid;
            }
            Err(Errno::EINTR) => return true,
            other => panic!("the program was lost: {other:?}"),
        };
        // The thread may be dying.
        let _ = ptrace::syscall(thread, signal);
        true
    }

    fn at_call(&mut self, thread: Pid) {
        let Ok(info) = ptrace::syscall_info(thread) else { return };
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            // SAFETY: `op` says that the kernel has filled this part of the union.
            let failed = unsafe { info.u.exit }.is_error != 0;
            if let Some(at) = self.begun.remove(&thread) {
                self.run.changes[at].made = !failed;
            }
        } else if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY
            && self.has_begun
            && !self.run.was_struck
        {
            // SAFETY: `op` says that the kernel has filled this part of the union.
            let entry = unsafe { info.u.entry };
            let call = Call { thread, number: entry.nr, arguments: entry.args };
            if let Some(what) = call.change() {
                self.at_change(thread, what);
            }
        }
    }

    fn at_change(&mut self, thread: Pid, what: String) {
        let at = self.run.changes.len();
        self.run.changes.push(Change { what, made: false });
        self.begun.insert(thread, at);
        if self.strike_at == Some(at) {
            // The kernel does not make a call that a killed thread is about to begin.
            kill(self.pid, Signal::SIGKILL).expect("kill the program");
            self.run.was_struck = true;
        }
    }
}
