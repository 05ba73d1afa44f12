//! Limits the capabilities of this process: from its start on, a verb or command keeps only those that it
//! needs. Source: capabilities(7) and `linux/capability.h`.

use std::cell::Cell;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::geteuid;

/// Numbers of `linux/capability.h`.
const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const FOWNER: u32 = 3;
const SETPCAP: u32 = 8;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_MODULE: u32 = 16;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;
/// Numbers to drop. `CAP_LAST_CAP` has stayed below the end; the kernel refuses unknown numbers.
const NUMBERS: std::ops::Range<u32> = 0..64;
/// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 capabilities.
const VERSION: u32 = 0x2008_0522;

/// A set of capabilities, one bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    pub(crate) const NONE: Self = Self(0);
    /// For netlink, network sysctls, and iptables, which opens a raw socket. [`limit_programs`] needs
    /// `SETPCAP`.
    pub(crate) const NETWORK: Self = Self::of(&[NET_ADMIN, NET_RAW, SETPCAP]);
    /// For a verb about a pod: only a process that may trace another one can look at the network namespace
    /// below its `/proc/PID`.
    pub(crate) const POD: Self = Self::NETWORK.and(Self::of(&[SYS_PTRACE]));
    /// For a verb that enters the network namespace of a pod (setns(2)).
    pub(crate) const NAMESPACES: Self = Self::POD.and(Self::of(&[SYS_ADMIN]));
    /// For a command that reads an operator's file, which another user may own.
    pub(crate) const TOOL: Self = Self::NETWORK.and(Self::of(&[DAC_READ_SEARCH]));
    /// For a command that writes a file where the operator wants it.
    pub(crate) const WRITES: Self = Self::of(&[DAC_OVERRIDE]);
    /// For a conflist, which keeps its owner, mode and security label. Its folder may have another owner.
    pub(crate) const CONFLIST: Self =
        Self::TOOL.and(Self::WRITES).and(Self::of(&[CHOWN, FOWNER, SYS_ADMIN]));
    /// For finding a socket's process, and BPF programs.
    pub(crate) const SEARCH: Self =
        Self::TOOL.and(Self::of(&[SYS_PTRACE, SYS_ADMIN, PERFMON, BPF]));
    /// For tracefs, mounted in a mount namespace of its own.
    pub(crate) const TRACE: Self = Self::TOOL.and(Self::of(&[SYS_ADMIN]));
    /// For iptables and nft, which load kernel modules.
    const PROGRAMS: Self = Self::of(&[NET_ADMIN, NET_RAW, SYS_MODULE]);

    const fn of(numbers: &[u32]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < numbers.len() {
            bits |= 1 << numbers[at];
            at += 1;
        }
        Self(bits)
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn has(self, number: u32) -> bool {
        self.0 >> number & 1 == 1
    }
}

/// `struct __user_cap_header_struct`
#[repr(C)]
struct Header {
    version: u32,
    /// 0 for the calling thread.
    pid: i32,
}

/// `struct __user_cap_data_struct`
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops all capabilities of this thread, and of threads that it starts, except these. The thread gets none
/// that it does not have. A user without root keeps all.
pub(crate) fn keep(wanted: Capabilities) {
    keep_in_reserve(wanted, wanted);
}

/// Drops capabilities like [`keep`], but a later [`keep`] can take up those of `reserve` again. Until then they
/// have no effect.
pub(crate) fn keep_in_reserve(wanted: Capabilities, reserve: Capabilities) {
    // Usually one system call is enough: a runtime's plugins have all capabilities.
    if set(wanted, reserve) == Err(Errno::EPERM) && geteuid().is_root() {
        if let Ok(has) = permitted() {
            let _ = set(Capabilities(wanted.0 & has.0), Capabilities(reserve.0 & has.0));
        }
    }
}

/// Whether this thread has all of these, or can take them up.
pub(crate) fn has(wanted: Capabilities) -> bool {
    permitted().is_ok_and(|has| has.0 & wanted.0 == wanted.0)
}

/// Limits the capabilities of programs that this thread starts. As root, they would get all.
pub(crate) fn limit_programs() {
    thread_local! {
        static IS_LIMITED: Cell<bool> = const { Cell::new(false) };
    }
    if IS_LIMITED.replace(true) {
        return;
    }
    for number in NUMBERS.filter(|number| !Capabilities::PROGRAMS.has(*number)) {
        // SAFETY: the call reads numbers only.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
    }
}

fn set(wanted: Capabilities, permitted: Capabilities) -> nix::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let data = [0, 32].map(|at| {
        // The cast takes the lower half.
        #[expect(clippy::cast_possible_truncation, reason = "one word of the two")]
        let word = |all: Capabilities| (all.0 >> at) as u32;
        Data { effective: word(wanted), permitted: word(permitted), inheritable: 0 }
    });
    // SAFETY: version 3 has one header and two words of data, which outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(done).map(drop)
}

fn permitted() -> nix::Result<Capabilities> {
    let header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: the kernel writes two words of version 3, which outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    Errno::result(done)?;
    let [low, high] = data.map(|word| u64::from(word.permitted));
    Ok(Capabilities(low | high << 32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_is_in_reserve_can_be_taken_up() {
        let (had, left) = thread::spawn(|| {
            let had = permitted().unwrap();
            keep_in_reserve(Capabilities::POD, Capabilities::NAMESPACES);
            assert_eq!(permitted().unwrap().0, had.0 & Capabilities::NAMESPACES.0);
            keep(Capabilities::NAMESPACES);
            (had, permitted().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(left.0, had.0 & Capabilities::NAMESPACES.0);
    }

    #[test]
    fn what_is_given_up_is_gone_and_what_was_not_there_is_no_error() {
        // Each thread has its own capabilities.
        let left = thread::spawn(|| {
            let had = permitted().unwrap();
            keep(Capabilities::POD);
            assert_eq!(permitted().unwrap().0, had.0 & Capabilities::POD.0);
            keep(Capabilities::SEARCH);
            let both = had.0 & Capabilities::POD.0 & Capabilities::SEARCH.0;
            assert_eq!(permitted().unwrap().0, both, "none comes back");
            keep(Capabilities::NONE);
            permitted().unwrap()
        });
        assert_eq!(left.join().unwrap(), Capabilities::NONE);
    }
}
