//! `symroutectl agent` on a node; it runs until its value is dropped.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::node::Node;
use super::plugin::TOOL;

/// How long an effect of an event may take.
pub(crate) const PATIENT: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(20);
/// Address where an agent listens by default.
pub(crate) const LISTENS: &str = "127.0.0.1:9617";

/// Waits until `done` returns true, and returns the time that took. Panics after [`PATIENT`].
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENT, "{what}: not after {PATIENT:?}");
        thread::sleep(PACE);
    }
    let took = begin.elapsed();
    println!("{what}: after {took:?}");
    took
}

pub(crate) struct Agent<'a> {
    node: &'a Node,
    child: Child,
}

impl<'a> Agent<'a> {
    /// Starts the agent and waits until it is ready. Work that the clock alone starts does not
    /// happen during a test, unless `arguments` shorten the resync.
    pub(crate) fn ready(node: &'a Node, arguments: &[&str]) -> Self {
        let agent = Self::start(node, arguments);
        until("the agent is ready", || agent.get("/readyz").0 == 200);
        agent
    }

    /// Starts the agent and waits until it answers.
    pub(crate) fn start(node: &'a Node, arguments: &[&str]) -> Self {
        Self::with(node, arguments, &[])
    }

    /// Starts the agent with these environment variables and waits until it answers.
    pub(crate) fn with(node: &'a Node, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = node.agents_command(&[], arguments);
        let child = command.envs(variables.iter().copied()).spawn().expect("start the agent");
        let mut agent = Self { node, child };
        until("the agent answers", || {
            if let Some(status) = agent.child.try_wait().expect("look at the agent") {
                panic!("the agent ended: {status}");
            }
            agent.get("/healthz").0 == 200
        });
        agent
    }

    pub(crate) fn pid(&self) -> u32 {
        // `ip` and `sh` execute the agent in their place, so the process id stays.
        self.child.id()
    }

    /// Status and text of a page; status 0 without an answer.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        self.node.agents_page(path)
    }

    /// Value of a metric, by its name and labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        value.parse().expect("a number")
    }

    /// Sends the agent a signal and waits for its end.
    pub(crate) fn end(mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(self.pid().try_into().expect("a process id"));
        kill(pid, signal).expect("send a signal");
        self.child.wait().expect("wait for the agent")
    }
}

impl Node {
    /// The command that starts the agent on this node, `under` another program if that is named.
    pub(crate) fn agents_command(&self, under: &[&str], arguments: &[&str]) -> Command {
        fs::create_dir_all("/run/symroute").expect("make /run/symroute");
        let private = "mount --bind \"$0\" /run/symroute && exec \"$@\"";
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", self.ns.name(), "sh", "-c", private])
            .arg(self.dir.join("run"))
            .args(under)
            .args([&program()[..], "agent", "--resync", "1h"])
            .arg("--cache-dir")
            .arg(self.dir.join("cache"))
            .args(arguments)
            .env_remove("CNI_COMMAND")
            .stdin(Stdio::null());
        command
    }

    /// Status and text of a page of the agent on this node, see [`Agent::get`].
    pub(crate) fn agents_page(&self, path: &str) -> (u16, String) {
        self.agents_page_by(LISTENS, path)
    }

    /// Asks the agent on this node for a page, with this `Host` header.
    pub(crate) fn agents_page_by(&self, host: &str, path: &str) -> (u16, String) {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(LISTENS)?;
            stream.set_read_timeout(Some(PATIENT))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let Ok(answer) = self.ns.run(ask) else { return (0, String::new()) };
        let status = answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
        let text = answer.split_once("\r\n\r\n").map_or("", |(_, text)| text);
        (status, text.to_owned())
    }
}

/// Path of the tool. With `SYMROUTE_BIN`, the plugin of another build to measure, it is the tool
/// beside that plugin.
pub(crate) fn program() -> String {
    let beside = |plugin| {
        let tool = PathBuf::from(plugin).with_file_name("symroutectl");
        tool.into_os_string().into_string().expect("UTF-8")
    };
    std::env::var_os("SYMROUTE_BIN").map_or_else(|| TOOL.to_owned(), beside)
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // This also runs after `end`, and while a test unwinds.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
