//! A network namespace that lives as long as its value. Its name is unique, it shares no state, and
//! the drop deletes it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, panic, process, thread};

use nix::sched::{CloneFlags, setns};

use super::cmd;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A number that no other namespace, MAC address or directory of this test run has.
pub(crate) fn unique() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether `SYMROUTE_KEEP=1` asks to keep namespaces and files after the test.
pub(crate) fn has_to_keep() -> bool {
    env::var_os("SYMROUTE_KEEP").is_some_and(|value| value == "1")
}

/// Shell command that mounts the lock file `$0` and executes the program. The mount is private to
/// `ip netns exec`.
const BEHIND_LOCK: &str = "mount --bind \"$0\" /run/xtables.lock && exec \"$@\"";

pub(crate) struct Netns {
    name: String,
    handle: File,
    lock: PathBuf,
    /// Whether dropping this value deletes the namespace.
    is_owner: bool,
}

impl Netns {
    /// Makes a namespace with `lo` up, without duplicate address detection and with every source
    /// check off.
    pub(crate) fn new(role: &str) -> Self {
        let name = format!("sr{}-{}-{role}", process::id(), unique());
        cmd::run(&["ip", "netns", "add", &name], "");
        Self::named(name)
    }

    /// Makes a namespace that belongs to a user namespace, like a pod with `hostUsers: false`: its
    /// root has no rights elsewhere.
    pub(crate) fn of_user_namespace(role: &str) -> Self {
        let name = format!("sr{}-{}-{role}", process::id(), unique());
        let mut owner = process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .args(["sh", "-c", "echo; read end"])
            .stdin(process::Stdio::piped())
            .stdout(process::Stdio::piped())
            .spawn()
            .expect("start unshare");
        let mut out = BufReader::new(owner.stdout.take().expect("stdout was piped"));
        out.read_line(&mut String::new()).expect("it is in its namespaces");
        cmd::run(&["ip", "netns", "attach", &name, &owner.id().to_string()], "");
        drop(owner.stdin.take());
        owner.wait().expect("it ends");
        Self::named(name)
    }

    fn named(name: String) -> Self {
        let handle = File::open(format!("/run/netns/{name}")).expect("open the new namespace");
        let lock = env::temp_dir().join(format!("{name}.xtables.lock"));
        let netns = Self { name, handle, lock, is_owner: true };
        netns.run(|| {
            for scope in ["all", "default"] {
                sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0");
                sysctl(&format!("ipv4/conf/{scope}/send_redirects"), "0");
                sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0");
                sysctl(&format!("ipv6/conf/{scope}/dad_transmits"), "0");
                sysctl(&format!("ipv6/conf/{scope}/accept_ra"), "0");
            }
        });
        netns.ip("link set lo up");
        netns
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A second value for this namespace. Dropping it does not delete the namespace.
    pub(super) fn twin(&self) -> Self {
        let handle = self.handle.try_clone().expect("a second handle");
        Self { name: self.name.clone(), handle, lock: self.lock.clone(), is_owner: false }
    }

    pub(super) fn is_owner(&self) -> bool {
        self.is_owner
    }

    /// Whether the namespace has this address.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        self.run(|| UdpSocket::bind((address, 0))).is_ok()
    }

    /// The path that a container runtime would pass to a plugin.
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// The hardware address of an interface.
    pub(crate) fn mac(&self, ifname: &str) -> String {
        let path = format!("/sys/class/net/{ifname}/address");
        self.exec(&["cat", &path], "").trim().to_owned()
    }

    /// Runs lines of `ip` commands (without the word `ip`) as one batch.
    pub(crate) fn ip(&self, batch: &str) {
        cmd::run(&["ip", "-n", &self.name, "-batch", "-"], &trimmed(batch));
    }

    /// Runs lines of `ip -6` commands as one batch, for commands such as `rule` that do not name
    /// the family.
    pub(crate) fn ip6(&self, batch: &str) {
        cmd::run(&["ip", "-6", "-n", &self.name, "-batch", "-"], &trimmed(batch));
    }

    /// Runs a tool inside the namespace.
    pub(crate) fn exec(&self, argv: &[&str], input: &str) -> String {
        let inside = ["ip", "netns", "exec", &self.name];
        if !argv[0].contains("tables-legacy") {
            return cmd::run(&[&inside, argv].concat(), input);
        }
        let lock = self.xtables_lock();
        let lock = lock.to_str().expect("UTF-8");
        cmd::run(&[&inside, &["sh", "-c", BEHIND_LOCK, lock], argv].concat(), input)
    }

    /// The file that programs in here see as `/run/xtables.lock`. With the machine's own lock,
    /// parallel tests would wait for each other and for other programs.
    pub(crate) fn xtables_lock(&self) -> PathBuf {
        // Both the mount point and the mounted file have to exist.
        for file in [Path::new("/run/xtables.lock"), &self.lock] {
            let opened = OpenOptions::new().append(true).create(true).open(file);
            opened.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        self.lock.clone()
    }

    /// Applies nft commands as one transaction.
    pub(crate) fn nft(&self, ruleset: &str) {
        self.exec(&["nft", "-f", "-"], ruleset);
    }

    /// Writes `/proc/sys/net/<key>` of this namespace.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        self.run(|| sysctl(key, value));
    }

    /// A handle with which another thread can enter the namespace. It stays valid after this value
    /// is dropped.
    pub(crate) fn handle(&self) -> Handle {
        Handle(self.handle.try_clone().expect("a second handle"))
    }

    /// Runs `work` on a thread inside the namespace. A panic of `work` is passed on.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                work()
            });
            worker.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.is_owner {
            return;
        }
        if has_to_keep() {
            println!("kept: ip netns exec {} sh", self.name);
            return;
        }
        // This also runs while a test unwinds, so it must not panic.
        let _ = process::Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = fs::remove_file(&self.lock);
    }
}

fn trimmed(batch: &str) -> String {
    let lines: Vec<&str> = batch.lines().map(str::trim).collect();
    lines.join("\n") + "\n"
}

/// Writes a sysctl of the calling thread's network namespace.
fn sysctl(key: &str, value: &str) {
    let path = format!("/proc/sys/net/{key}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
}

/// Keeps a namespace reachable for another thread.
pub(crate) struct Handle(File);

impl Handle {
    /// Moves the calling thread into the namespace for good.
    pub(crate) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
    }
}
