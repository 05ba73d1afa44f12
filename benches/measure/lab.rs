//! Creates nodes and pods in namespaces, and calls programs on them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::panic;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::unistd::Pid;

/// `PATH` of the called programs.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with a mount namespace, which has an empty `/run/symroute` and a separate
/// lock of iptables-legacy.
pub(crate) struct Netns {
    pub(crate) name: String,
    net: File,
    mounts: File,
}

impl Netns {
    pub(crate) fn new(role: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("symbench{}-{number}-{role}", std::process::id());
        run("ip", &["netns", "add", &name], "");
        let net = File::open(format!("/run/netns/{name}")).expect("open the namespace");
        let mounts = in_thread(own_mounts);
        let netns = Self { name, net, mounts };
        netns.ip("link set lo up");
        netns
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `work` on a thread in both namespaces. Processes that it starts are in them, too.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_thread(|| {
            unshare(CloneFlags::CLONE_FS).expect("a file system view of its own");
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("enter the mounts");
            setns(&self.net, CloneFlags::CLONE_NEWNET).expect("enter the network");
            work()
        })
    }

    /// Runs lines of `ip` commands.
    pub(crate) fn ip(&self, batch: &str) {
        self.exec("ip", &["-batch", "-"], batch);
    }

    pub(crate) fn exec(&self, program: &str, words: &[&str], input: &str) {
        self.run(|| run(program, words, input));
    }

    /// Whether a command succeeds here.
    pub(crate) fn can(&self, program: &str, words: &[&str]) -> bool {
        self.run(|| {
            let quiet = || Stdio::null();
            let mut command = Command::new(program);
            command.args(words).stdin(quiet()).stdout(quiet()).stderr(quiet());
            command.status().is_ok_and(|status| status.success())
        })
    }

    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs `work` on a thread whose namespaces it may change. Passes on a panic.
fn in_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|cause| panic::resume_unwind(cause))
    })
}

/// Moves the thread to a new mount namespace, and returns a file of the namespace for `setns`.
fn own_mounts() -> File {
    let nothing = None::<&str>;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    let run = Path::new("/run");
    let directory = run.join("symroute");
    fs::create_dir_all(&directory).expect("make the mount point");
    let lock = run.join("xtables.lock");
    File::options().append(true).create(true).open(&lock).expect("make the lock");
    unshare(CloneFlags::CLONE_NEWNS).expect("mounts of its own");
    mount(nothing, "/", nothing, slave, nothing).expect("mount privately");
    mount(Some("tmpfs"), &directory, Some("tmpfs"), MsFlags::empty(), nothing).expect("a tmpfs");
    let own = directory.join("xtables.lock");
    File::create(&own).expect("a lock of its own");
    mount(Some(&own), &lock, nothing, MsFlags::MS_BIND, nothing).expect("mount the lock");
    // Empties /run/symroute. The bind mount keeps the lock file.
    fs::remove_file(&own).expect("unlink the lock");
    File::open("/proc/thread-self/ns/mnt").expect("the key to the mounts")
}

/// Runs a tool to its end. Panics if it fails.
pub(crate) fn run(program: &str, words: &[&str], input: &str) {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).unwrap_or_else(|error| panic!("{program}: {error}"));
    drop(stdin);
    let status = child.wait().expect("wait");
    assert!(status.success(), "{program} {words:?}: {status}");
}

/// Pins the calling thread and its later children to the highest core; the lowest tends to serve
/// interrupts. One core is enough, because a runtime sleeps while it waits for a plugin. To wake
/// another core takes long and varies in virtual machines.
pub(crate) fn pin() {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut set = CpuSet::new();
    set.set(cores - 1).expect("a core");
    sched_setaffinity(Pid::from_raw(0), &set).expect("stay on one core");
}

/// A node with a pod's namespace beside it.
pub(crate) struct Lab {
    pub(crate) node: Netns,
    pub(crate) pod: Netns,
    pub(crate) uplinks: u32,
}

impl Lab {
    pub(crate) fn new(role: &str, uplinks: u32) -> Self {
        let (node, pod) = (Netns::new(role), Netns::new("pod"));
        // As on every node. Without it, half of the look-ups of an ADD would find no route.
        node.sysctl("ipv4/ip_forward", "1");
        node.sysctl("ipv4/conf/all/rp_filter", "1");
        let mut lines = format!(
            "link add eni0 type veth peer name eth0 netns {}\nlink set eni0 up\n\
             link add eth0 type veth peer name peer0\naddr add 10.0.0.10/24 dev eth0\n\
             link set peer0 up\nlink set eth0 up\nroute add default via 10.0.0.1\n\
             route add 10.99.0.0/16 dev eni0\n",
            pod.name
        );
        for n in 1..uplinks {
            let _ = write!(
                lines,
                "link add eth{n} type veth peer name peer{n}\naddr add 10.0.{n}.10/24 dev eth{n}\n\
                 link set peer{n} up\nlink set eth{n} up\n\
                 route add default via 10.0.{n}.1 table {}\n",
                100 + n
            );
        }
        node.ip(&lines);
        pod.ip("addr add 10.99.255.1/16 dev eth0\nlink set eth0 up\n\
                route add default via 10.99.0.1\n");
        Self { node, pod, uplinks }
    }

    /// The plugin of a release, with the settings for this node.
    pub(crate) fn symroute(&self, release: &Release) -> Plugin {
        let uplinks: Vec<String> = (0..self.uplinks).map(|n| format!("\"eth{n}\"")).collect();
        Plugin {
            program: release.program.clone(),
            version: "1.1.0".into(),
            settings: format!("\"type\":\"symroute\",\"uplinks\":[{}]", uplinks.join(",")),
            path: None,
        }
    }
}

/// A release of symroute.
pub(crate) struct Release {
    /// Name in the tables.
    pub(crate) label: &'static str,
    /// Path of the plugin.
    pub(crate) program: String,
    /// Path of the tool in the same directory, or of the plugin in releases without a tool.
    pub(crate) tool: String,
}

impl Release {
    /// The release to measure.
    pub(crate) fn now() -> Self {
        Self::of("symroute", variable("SYMROUTE_BIN"))
    }

    fn of(label: &'static str, program: String) -> Self {
        let tool = Path::new(&program).with_file_name("symroutectl");
        let tool = if tool.exists() { tool.display().to_string() } else { program.clone() };
        Self { label, program, tool }
    }

    /// The release to measure, and the one to compare with, if any.
    pub(crate) fn all() -> Vec<Self> {
        let before = std::env::var("SYMROUTE_BEFORE").ok().filter(|program| !program.is_empty());
        let before = before.map(|program| Self::of("symroute before", program));
        std::iter::once(Self::now()).chain(before).collect()
    }

    /// Name of a call in tables whose label is a node. For the release to compare with, it ends
    /// with " before".
    pub(crate) fn call(&self, verb: &str) -> String {
        format!("{verb}{}", self.label.trim_start_matches("symroute"))
    }
}

/// A program with its settings.
#[derive(Clone)]
pub(crate) struct Plugin {
    pub(crate) program: String,
    pub(crate) version: String,
    pub(crate) settings: String,
    /// `PATH` for the programs that it calls. `None` for the usual directories.
    pub(crate) path: Option<String>,
}

impl Plugin {
    fn input(&self, lab: &Lab, verb: &str, pod: u32) -> String {
        let Self { version, settings, .. } = self;
        let head = format!("{{\"cniVersion\":\"{version}\",\"name\":\"bench\",{settings}");
        if verb == "STATUS" || verb == "VERSION" {
            return head + "}";
        }
        let (high, low) = (pod / 250, pod % 250 + 1);
        format!(
            "{head},\"prevResult\":{{\"cniVersion\":\"{version}\",\"interfaces\":\
             [{{\"name\":\"eni0\"}},{{\"name\":\"eth0\",\"sandbox\":\"{}\"}}],\"ips\":[{{\"address\":\
             \"10.99.{high}.{low}/16\",\"gateway\":\"10.99.0.1\",\"interface\":1}}]}}}}",
            lab.pod.path()
        )
    }

    /// The command of a call, and its input on stdin. `words` come before the program.
    pub(crate) fn command(
        &self,
        words: &[&str],
        lab: &Lab,
        verb: &str,
        pod: u32,
    ) -> (Command, String) {
        let mut command = match words {
            [] => Command::new(&self.program),
            [first, others @ ..] => {
                let mut command = Command::new(first);
                command.args(others).arg(&self.program);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", self.path.as_deref().unwrap_or(PATH))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("pod{pod}"))
            .env("CNI_NETNS", lab.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        (command, self.input(lab, verb, pod))
    }

    /// Calls the plugin from this thread as a runtime does: starts it, writes its input, reads all
    /// output, waits. Returns the duration in microseconds.
    pub(crate) fn call_here(&self, lab: &Lab, verb: &str, pod: u32) -> f64 {
        let (command, input) = self.command(&[], lab, verb, pod);
        let (took, status, output) = time(command, &input);
        let program = &self.program;
        assert!(status.success(), "{program} {verb} of pod {pod}: {status}: {output}");
        took
    }

    /// Calls the plugin on the lab's node. Returns the duration in microseconds.
    pub(crate) fn call(&self, lab: &Lab, verb: &str, pod: u32) -> f64 {
        lab.node.run(|| self.call_here(lab, verb, pod))
    }
}

/// Runs a process to its end. Returns the duration in microseconds, the status and the output.
fn time(mut command: Command, input: &str) -> (f64, ExitStatus, String) {
    let mut output = Vec::new();
    let begin = Instant::now();
    let mut child = command.spawn().expect("start the program");
    // A program that does not read its input may have ended by now.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.stdout.take().expect("piped").read_to_end(&mut output).expect("read");
    let status = child.wait().expect("wait");
    let took = begin.elapsed().as_secs_f64() * 1e6;
    (took, status, String::from_utf8_lossy(&output).into_owned())
}

/// Calls the tool from this thread, as an operator or systemd does. Returns the duration in
/// microseconds.
pub(crate) fn tool_here(program: &str, word: &str) -> f64 {
    let mut command = Command::new(program);
    command.arg(word).env_clear().env("PATH", PATH);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let (took, status, output) = time(command, "");
    // 4: in force, but the tool reports a problem of the node.
    assert!(matches!(status.code(), Some(0 | 4)), "{program} {word}: {status}: {output}");
    took
}

/// The static program that does nothing.
pub(crate) fn noop() -> Plugin {
    Plugin {
        program: variable("SYMROUTE_NOOP"),
        version: "1.0.0".into(),
        settings: "\"type\":\"noop\"".into(),
        path: None,
    }
}

/// The program to run before each timed call: a plugin in Go, like most plugins before symroute in
/// a chain. It enters the pod's namespace, reads the state of `lo`, and changes nothing.
pub(crate) fn disturber() -> Plugin {
    Plugin {
        program: format!("{}/loopback", variable("SYMROUTE_PEERS")),
        version: "1.0.0".into(),
        settings: "\"type\":\"loopback\"".into(),
        path: None,
    }
}

/// Value of an environment variable that `benches/run` sets.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name}: see benches/run"))
}
