//! A tracefs instance for one trace, with buffers and enabled events of its own.
//!
//! All network namespaces share the instances, so their names contain the process that created them. A [`Guard`]
//! removes the instance of a killed trace. If the guard was killed too, the next trace removes it. The kernel
//! refuses to remove an instance while its `trace_pipe` is open (`instance_rmdir` of kernel/trace/trace.c).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::{process, thread};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::guard::Guard;
use crate::names::{TRACE_INSTANCE, TRACEFS};

/// Size of the buffers of all processors together, in KiB.
const BUFFER: usize = 32 * 1024;
/// Minimum size of the buffer of one processor, in KiB.
const BUFFER_LEAST: usize = 512;
/// Maximum number of reads of the pipe in one call. The kernel returns at most a page for each.
const READS: usize = 256;

/// `PID-START` of this process: its id and its start time in ticks since the boot.
pub(crate) fn own_suffix() -> String {
    let pid = process::id();
    format!("{pid}-{}", start_time(pid).unwrap_or(0))
}

/// Start time of a process in ticks since the boot. `None` if there is no such process.
fn start_time(pid: u32) -> Option<u64> {
    start_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of `/proc/PID/stat`. The name, field 2, may have spaces and parentheses.
fn start_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Whether the name is that of a trace whose process has ended.
fn is_leftover(name: &str, start_time: impl Fn(u32) -> Option<u64>) -> bool {
    let parse = || {
        let (pid, start) = name.strip_prefix(TRACE_INSTANCE)?.split_once('-')?;
        Some((pid.parse().ok()?, start.parse().ok()?))
    };
    parse().is_some_and(|(pid, start)| start_time(pid) != Some(start))
}

/// Path of tracefs. If tracefs is not mounted, mounts it in a new mount namespace of this process, which
/// ends with the process.
pub(crate) fn mounted() -> Result<&'static Path, String> {
    let root = Path::new(TRACEFS);
    if root.join("instances").is_dir() {
        return Ok(root);
    }
    let private = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tracefs"), root, Some("tracefs"), flags, none)
    };
    private().map_err(|errno| format!("mount tracefs on {TRACEFS}: {}", errno.desc()))?;
    Ok(root)
}

/// Removes the instances of killed traces. Returns their number.
pub(crate) fn remove_leftovers(root: &Path) -> usize {
    let Ok(found) = fs::read_dir(root.join("instances")) else { return 0 };
    let left = found.flatten().filter(|entry| {
        entry.file_name().to_str().is_some_and(|name| is_leftover(name, start_time))
    });
    left.filter(|entry| fs::remove_dir(entry.path()).is_ok()).count()
}

/// A tracefs instance. A drop removes it.
#[derive(Debug)]
pub(crate) struct Instance {
    path: PathBuf,
    /// `trace_pipe`. `None` only during the drop.
    pipe: Option<File>,
    _guard: Guard,
    /// Beginning of a line that is not complete yet.
    rest: Vec<u8>,
    /// Whether the last call of [`Self::lines`] read all lines.
    is_drained: bool,
}

impl Instance {
    /// Creates an instance without enabled events.
    pub(crate) fn new(root: &Path) -> Result<Self, String> {
        let path = root.join("instances").join(format!("{TRACE_INSTANCE}{}", own_suffix()));
        fs::create_dir(&path).map_err(|error| format!("make {}: {error}", path.display()))?;
        let guard = Guard::of(&path).inspect_err(|_| {
            let _ = fs::remove_dir(&path);
        })?;
        let mut instance =
            Self { path, pipe: None, _guard: guard, rest: Vec::new(), is_drained: false };
        let pipe = instance.path.join("trace_pipe");
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe);
        instance.pipe = Some(open.map_err(|error| format!("open {}: {error}", pipe.display()))?);
        instance.write("trace_clock", "mono")?;
        // With a smaller buffer the kernel drops events earlier, and reports that.
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let each = (BUFFER / processors).max(BUFFER_LEAST);
        let _ = instance.write("buffer_size_kb", &each.to_string());
        Ok(instance)
    }

    /// Writes a file of the instance.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<(), String> {
        let path = self.path.join(file);
        let written = OpenOptions::new().write(true).open(&path);
        let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| format!("write {text:?} to {}: {error}", path.display()))
    }

    /// Reads a file of the instance. Empty if the kernel has no such file.
    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).unwrap_or_default()
    }

    /// Enables an event such as `skb/kfree_skb`.
    pub(crate) fn enable(&self, event: &str, filter: Option<&str>) -> Result<(), String> {
        if let Some(filter) = filter {
            self.write(&format!("events/{event}/filter"), filter)?;
        }
        self.write(&format!("events/{event}/enable"), "1")
    }

    /// The pipe, for a caller that waits for lines.
    pub(crate) fn pipe(&self) -> Option<&File> {
        self.pipe.as_ref()
    }

    /// Whether the last call of [`Self::lines`] read all lines.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_drained
    }

    /// Reads the complete lines that the pipe has now.
    pub(crate) fn lines(&mut self) -> Result<Vec<String>, io::Error> {
        let Some(pipe) = &mut self.pipe else { return Ok(Vec::new()) };
        let mut buffer = vec![0; 64 * 1024];
        self.is_drained = false;
        // Limited, so that a flood of events does not starve the other sources.
        for _ in 0..READS {
            match pipe.read(&mut buffer) {
                Ok(0) => {
                    self.is_drained = true;
                    break;
                }
                Ok(count) => self.rest.extend_from_slice(&buffer[..count]),
                Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => {
                    self.is_drained = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        Ok(String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.pipe = None;
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_instances_of_ended_traces_are_leftovers() {
        let start_time = |pid| (pid == 7).then_some(1234);
        for (name, expected) in [
            ("symroute-7-1234", false),
            ("symroute-7-99", true),
            ("symroute-8-1234", true),
            ("symroute-8", false),
            ("symroute-8-", false),
            ("symroute-8-12-3", false),
            ("other-8-1234", false),
            ("symroute", false),
        ] {
            assert_eq!(is_leftover(name, start_time), expected, "{name}");
        }
        assert!(!is_leftover(&format!("symroute-{}", own_suffix()), super::start_time));
    }

    #[test]
    fn the_start_of_a_process_of_any_name() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 99887 5 6";
        assert_eq!(start_of(stat), Some(99887));
        assert_eq!(start_of(""), None);
    }
}
