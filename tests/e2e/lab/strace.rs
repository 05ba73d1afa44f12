//! Runs a program under strace: its system calls, and what happens when the kernel refuses one or
//! kills the program. This affects the program alone, not the tools that it starts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::cmd;
use super::node::Node;
use super::plugin::{Call, Ran};

/// One system call of a run.
#[derive(Clone)]
pub(crate) struct Syscall {
    pub(crate) name: String,
    /// The number of this call among those of this name by the same process, from 1 on.
    pub(crate) nth: usize,
    /// A tool that the program started made the call.
    pub(crate) of_tool: bool,
    /// The line that strace printed.
    pub(crate) line: String,
}

/// What strace does to a run at a system call.
#[derive(Clone, Copy)]
pub(crate) enum Blow {
    /// The call fails with this error, and the kernel does not make it.
    Error(&'static str),
    /// The program dies before the kernel makes the call.
    Kill,
}

impl Syscall {
    /// Whether the call changes something that outlives the program.
    pub(crate) fn is_change(&self) -> bool {
        if self.line.contains(" = -1 ") {
            return false;
        }
        let any = |words: &[&str]| words.iter().any(|word| self.line.contains(word));
        match self.name.as_str() {
            "sendto" | "sendmsg" => any(&["RTM_NEW", "RTM_DEL", "NFNL_MSG_BATCH_BEGIN"]),
            "openat" => any(&["O_CREAT", "O_WRONLY", "O_RDWR"]),
            // The program is about to start a tool, or waits for one that may be anywhere in its
            // work.
            "clone" | "clone3" | "fork" | "vfork" | "wait4" | "waitid" => true,
            name => {
                let kinds = ["write", "rename", "mkdir", "rmdir", "link", "truncate"];
                name != "readlink" && kinds.iter().any(|kind| name.contains(kind))
            }
        }
    }

    /// Whether the call sends a netlink request or waits for a lock.
    pub(crate) fn is_request(&self) -> bool {
        // Unlocking cannot fail.
        let locks = self.name == "flock" && !self.line.contains("LOCK_UN");
        locks || ["sendto", "sendmsg"].contains(&self.name.as_str())
    }

    /// Whether the call reads a netlink answer.
    pub(crate) fn is_answer(&self) -> bool {
        ["recvfrom", "recvmsg"].contains(&self.name.as_str())
    }
}

impl Node {
    /// Runs the call. Returns every system call that it makes.
    pub(crate) fn traced(&self, call: &Call) -> (Ran, Vec<Syscall>) {
        let (ran, text) = self.under_strace(&["-f"], call);
        (ran, parse(&text))
    }

    /// Runs the call and strikes it at this system call, which an earlier, equal run made.
    pub(crate) fn struck(&self, call: &Call, at: &Syscall, blow: Blow) -> Ran {
        let Syscall { name, nth, line, .. } = at;
        let what = match blow {
            Blow::Error(error) => format!("error={error}"),
            Blow::Kill => "signal=SIGKILL".into(),
        };
        let inject = format!("inject={name}:{what}:when={nth}");
        let (ran, text) = self.under_strace(&["-e", &format!("trace={name}"), "-e", &inject], call);
        self.await_tools();
        let (killed, refused) = (text.contains("killed by SIGKILL"), text.contains("(INJECTED)"));
        let struck = if matches!(blow, Blow::Kill) { killed } else { refused };
        assert!(struck, "{inject} did not come about, wanted at:\n{line}\n{text}");
        ran
    }

    /// Waits for the tools that a killed program has left behind.
    pub(crate) fn await_tools(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = cmd::run(&["ip", "netns", "pids", self.ns.name()], "");
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "tools that do not end: {left}");
            thread::yield_now();
        }
    }

    fn under_strace(&self, options: &[&str], call: &Call) -> (Ran, String) {
        let file = self.dir.join("strace");
        let path = file.to_str().expect("UTF-8");
        let ran = self.call_under(&[&["strace", "-y", "-o", path], options].concat(), call);
        (ran, fs::read_to_string(&file).expect("strace wrote its file"))
    }
}

/// Parses lines like `4711 rename("a", "b") = 0`. Other lines report signals, exits, or the rest of
/// a call that strace had interrupted for another process.
fn parse(text: &str) -> Vec<Syscall> {
    let mut found: Vec<Syscall> = Vec::new();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let program = text.split(' ').next().unwrap_or_default();
    for line in text.lines() {
        let (process, line) = line.split_once(' ').unwrap_or_default();
        let line = line.trim_start();
        let Some((name, _)) = line.split_once('(') else {
            continue;
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let nth = counts.entry((process, name)).or_default();
        *nth += 1;
        let of_tool = process != program;
        found.push(Syscall { name: name.into(), nth: *nth, of_tool, line: line.into() });
    }
    found
}
