//! The change that a system call is about to make and that outlives the program, read from the
//! program's memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use nix::unistd::Pid;

/// System calls that name a path: the number, a word, and which arguments are paths.
const BY_PATH: [(i64, &str, &[usize]); 7] = [
    (libc::SYS_renameat, "rename", &[1, 3]),
    (libc::SYS_renameat2, "rename", &[1, 3]),
    (libc::SYS_mkdirat, "mkdir", &[1]),
    (libc::SYS_unlinkat, "unlink", &[1]),
    (libc::SYS_symlinkat, "symlink", &[0, 2]),
    (libc::SYS_linkat, "link", &[1, 3]),
    (libc::SYS_fchmodat, "chmod", &[1]),
];
/// System calls by path that newer platforms do not have: the number, a word, and which arguments
/// are paths.
#[cfg(target_arch = "x86_64")]
const OLD_BY_PATH: [(i64, &str, &[usize]); 7] = [
    (libc::SYS_rename, "rename", &[0, 1]),
    (libc::SYS_mkdir, "mkdir", &[0]),
    (libc::SYS_rmdir, "rmdir", &[0]),
    (libc::SYS_unlink, "unlink", &[0]),
    (libc::SYS_symlink, "symlink", &[0, 1]),
    (libc::SYS_link, "link", &[0, 1]),
    (libc::SYS_chmod, "chmod", &[0]),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_BY_PATH: [(i64, &str, &[usize]); 0] = [];
/// System calls that change an open file: the number, a word, and which argument is the descriptor.
const BY_FILE: [(i64, &str, usize); 8] = [
    (libc::SYS_write, "write", 0),
    (libc::SYS_pwrite64, "write", 0),
    (libc::SYS_writev, "write", 0),
    (libc::SYS_ftruncate, "truncate", 0),
    (libc::SYS_fchmod, "chmod", 0),
    (libc::SYS_fchown, "chown", 0),
    (libc::SYS_copy_file_range, "copy", 2),
    (libc::SYS_sendfile, "copy", 0),
];

/// A system call at its entry.
pub(super) struct Call {
    pub(super) thread: Pid,
    pub(super) number: u64,
    pub(super) arguments: [u64; 6],
}

impl Call {
    /// The change in words; `None` if the call changes nothing.
    pub(super) fn change(&self) -> Option<String> {
        let number = i64::try_from(self.number).ok()?;
        let mut by_path = BY_PATH.iter().chain(&OLD_BY_PATH);
        if let Some((_, name, paths)) = by_path.find(|(of, ..)| *of == number) {
            let paths: Vec<_> = paths.iter().map(|&at| self.text(at)).collect();
            return Some(format!("{name} {}", paths.join(" ")));
        }
        if let Some((_, name, file)) = BY_FILE.iter().find(|(of, ..)| *of == number) {
            return self.file(*file).map(|file| format!("{name} {file}"));
        }
        match number {
            libc::SYS_openat => self.opened(),
            libc::SYS_sendto => self.sent(),
            libc::SYS_clone => starts_a_tool(self.arguments[0]),
            libc::SYS_clone3 => {
                starts_a_tool(u64::from_ne_bytes(self.memory(0, 8).try_into().ok()?))
            }
            // A tool that the program waits for may be anywhere in its work.
            libc::SYS_wait4 | libc::SYS_waitid => Some("wait for a tool".into()),
            _ => None,
        }
    }

    /// A file that the call creates or empties. Opening a sysctl changes nothing; the write does.
    fn opened(&self) -> Option<String> {
        let changing = u64::try_from(libc::O_CREAT | libc::O_TRUNC).expect("flags");
        let path = self.text(1);
        let changes = self.arguments[2] & changing != 0 && !path.starts_with("/proc/");
        changes.then(|| format!("open {path}"))
    }

    /// The change that a netlink request makes, by type and family of its first message.
    fn sent(&self) -> Option<String> {
        let length = usize::try_from(self.arguments[2]).ok()?;
        let bytes = self.memory(1, length.min(20));
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let said = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        if usize::try_from(said).ok()? > length {
            return None;
        }
        let name = match kind {
            // RTM_NEWLINK has the same number, but the program creates no links.
            0x10 => return Some("netfilter batch".into()),
            libc::RTM_NEWROUTE => "route add",
            libc::RTM_DELROUTE => "route del",
            libc::RTM_NEWRULE => "rule add",
            libc::RTM_DELRULE => "rule del",
            // Commands of ipset that change something.
            0x602..=0x606 | 0x609 | 0x60a => return Some("ipset".into()),
            _ => return None,
        };
        Some(format!("{name} family {}", bytes.get(16)?))
    }

    /// Path of the file on disk that is open under this descriptor. Standard output and error do
    /// not count.
    fn file(&self, at: usize) -> Option<String> {
        let number = self.arguments[at];
        let link = fs::read_link(format!("/proc/{}/fd/{number}", self.thread)).ok()?;
        let path = link.to_str()?;
        (number > 2 && path.starts_with('/') && !path.starts_with("/dev/")).then(|| path.into())
    }

    /// The text that an argument points to.
    fn text(&self, at: usize) -> String {
        let mut bytes = self.memory(at, libc::PATH_MAX.unsigned_abs() as usize);
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that an argument points to; fewer where the memory ends.
    fn memory(&self, at: usize, length: usize) -> Vec<u8> {
        let memory = File::open(format!("/proc/{}/mem", self.thread));
        let mut bytes = vec![0; length];
        let read = memory.and_then(|memory| memory.read_at(&mut bytes, self.arguments[at]));
        bytes.truncate(read.unwrap_or(0));
        bytes
    }
}

fn starts_a_tool(flags: u64) -> Option<String> {
    let of_thread = u64::try_from(libc::CLONE_THREAD).expect("a flag");
    (flags & of_thread == 0).then(|| "start a tool".into())
}
