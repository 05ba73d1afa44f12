//! Calls the real programs on a node: the plugin as a runtime does, the tool as an operator does.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::backend::Backend;
use super::node::{Node, Pod};

/// Path of the plugin.
pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_symroute");
/// Path of the tool.
pub(crate) const TOOL: &str = env!("CARGO_BIN_EXE_symroutectl");

/// One call of a program, with what a runtime or an operator would pass.
#[derive(Clone)]
pub(crate) struct Call {
    program: &'static str,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    input: String,
}

impl Call {
    /// A call of the plugin with the variables that a runtime sets.
    pub(crate) fn cni(verb: &str, network: &str, id: &str, netns: &str, ifname: &str) -> Self {
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", ifname),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        Self {
            program: PLUGIN,
            arguments: Vec::new(),
            variables: variables.map(|(name, value)| (name, value.to_owned())).to_vec(),
            input: network.to_owned(),
        }
    }

    /// A call of the tool.
    pub(crate) fn tool(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self { program: TOOL, arguments, variables: Vec::new(), input: String::new() }
    }

    /// A call of the plugin with arguments and without a runtime's variables.
    pub(crate) fn of_plugin(arguments: &[&str]) -> Self {
        Self { program: PLUGIN, ..Self::tool(arguments) }
    }

    pub(crate) fn has_stdin(&self) -> bool {
        !self.input.is_empty()
    }

    /// Sets a variable of the call; an empty value counts as unset.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }
}

/// Outcome of one call of a program.
pub(crate) struct Ran {
    pub(crate) success: bool,
    /// The exit code; `None` when a signal ended the program.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Panics with stdout and stderr unless the call succeeded.
    pub(crate) fn assert_success(&self, what: &str) {
        let Self { success, stdout, stderr, .. } = self;
        assert!(success, "{what} failed\nstdout: {stdout}\nstderr: {stderr}");
    }

    /// The error code and all words of a call that has to end in a CNI error.
    pub(crate) fn cni_error(&self) -> (u64, String) {
        assert_eq!(self.code, Some(1), "it fails: {}{}", self.stdout, self.stderr);
        let error: Value = serde_json::from_str(&self.stdout).expect("a CNI error on stdout");
        (error["code"].as_u64().expect("a code"), format!("{}; {}", error["msg"], error["details"]))
    }
}

impl Node {
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("symroute.log")
    }

    /// A network configuration. `settings` are symroute's keys; `prev_result` is inserted
    /// unchanged.
    pub(crate) fn network(&self, settings: &Value, prev_result: Option<&str>) -> String {
        let mut network = json!({"cniVersion": "1.0.0", "name": "lab", "type": "symroute"});
        network["log"] = json!({"level": "debug", "file": self.log()});
        for (key, value) in settings.as_object().expect("settings are an object") {
            network[key] = value.clone();
        }
        Backend::of_run().into_settings(&mut network);
        // Every test then also covers the flowtable.
        if env::var_os("SYMROUTE_OFFLOAD").is_some_and(|value| value == "1") {
            network.as_object_mut().expect("an object").entry("offload").or_insert(json!(true));
        }
        if network["backend"] == Backend::IptablesLegacy.name() {
            self.legacy.store(true, Ordering::Relaxed);
        }
        let Some(prev_result) = prev_result else {
            return network.to_string();
        };
        let parsed: Value = serde_json::from_str(prev_result).expect("prevResult is JSON");
        network["cniVersion"] = parsed["cniVersion"].clone();
        let text = network.to_string();
        format!("{},\"prevResult\":{prev_result}}}", text.strip_suffix('}').expect("an object"))
    }

    /// Calls the plugin with the variables that a runtime sets.
    pub(crate) fn cni(
        &self,
        verb: &str,
        network: &str,
        id: &str,
        netns: &str,
        ifname: &str,
    ) -> Ran {
        self.call(&Call::cni(verb, network, id, netns, ifname))
    }

    /// Calls the tool.
    pub(crate) fn symroute(&self, arguments: &[&str]) -> Ran {
        self.call(&Call::tool(arguments))
    }

    pub(crate) fn call(&self, call: &Call) -> Ran {
        self.call_under(&[], call)
    }

    /// The call of an ADD, CHECK or DEL for the pod's `eth0`.
    pub(crate) fn call_of(&self, verb: &str, settings: &Value, pod: &Pod) -> Call {
        let network = self.network(settings, Some(&pod.prev_result));
        Call::cni(verb, &network, &pod.id, &pod.ns.path(), "eth0")
    }

    /// ADD of the pod's `eth0`. Asserts that it succeeds and prints prevResult byte for byte.
    pub(crate) fn add(&self, settings: &Value, pod: &Pod) {
        let ran = self.call(&self.call_of("ADD", settings, pod));
        ran.assert_success("ADD");
        assert_eq!(
            ran.stdout.trim_end_matches('\n'),
            pod.prev_result,
            "ADD prints prevResult as it came"
        );
    }

    /// DEL of the pod's `eth0`. Asserts that it succeeds and prints nothing.
    pub(crate) fn del(&self, settings: &Value, pod: &Pod) {
        let ran = self.call(&self.call_of("DEL", settings, pod));
        ran.assert_success("DEL");
        assert_eq!(ran.stdout, "", "DEL prints nothing");
    }

    /// Runs `symroutectl up` with these settings.
    pub(crate) fn up(&self, settings: &Value) {
        let file = self.dir.join("network.json");
        fs::write(&file, self.network(settings, None)).expect("write the configuration");
        let ran = self.symroute(&["up", "--config", file.to_str().expect("UTF-8")]);
        ran.assert_success("up");
    }

    /// Runs `symroutectl down`.
    pub(crate) fn down(&self) {
        let ran = self.symroute(&["down"]);
        ran.assert_success("down");
    }

    /// Asserts that `status` reports a fault with this word in it, as a table and as JSON.
    pub(crate) fn assert_status_names(&self, word: &str) {
        for arguments in [&["status"][..], &["status", "--json"]] {
            let status = self.symroute(arguments);
            assert_eq!(status.code, Some(4), "{}{}", status.stdout, status.stderr);
            assert!(status.stdout.contains(word), "does not say {word}:\n{}", status.stdout);
        }
    }

    /// A GC with this list of valid attachments: container id and interface of each.
    pub(crate) fn gc_call(&self, settings: &Value, valid: &[(&str, &str)]) -> Call {
        let network = self.network(settings, None);
        let mut network: Value = serde_json::from_str(&network).expect("a configuration");
        let valid = valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}));
        network["cniVersion"] = json!("1.1.0");
        network["cni.dev/valid-attachments"] = valid.collect();
        Call::cni("GC", &network.to_string(), "", "", "")
    }

    /// Runs the call's program in the node's network namespace, with the node's own `/run/symroute`
    /// and `/run/xtables.lock`. `prefix` is the start of the command line, for instance strace.
    pub(crate) fn call_under(&self, prefix: &[&str], call: &Call) -> Ran {
        self.call_program(&[prefix, &[call.program]].concat(), call)
    }

    /// Runs any program, for instance another plugin, with the variables and the stdin of the call.
    pub(crate) fn call_program(&self, argv: &[&str], call: &Call) -> Ran {
        // The mount point has to exist. The mount itself is private to `ip netns exec`.
        fs::create_dir_all("/run/symroute").expect("make /run/symroute");
        let private = "mount --bind \"$0\" /run/symroute && mount --bind \"$1\" /run/xtables.lock && shift && exec \"$@\"";
        let mut child = Command::new("timeout")
            .args([
                "--kill-after=1",
                "60",
                "ip",
                "netns",
                "exec",
                self.ns.name(),
                "sh",
                "-c",
                private,
            ])
            .arg(self.dir.join("run"))
            .arg(self.ns.xtables_lock())
            .args(argv)
            .args(&call.arguments)
            .env_remove("CNI_COMMAND")
            .envs(call.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the program");
        // A call such as VERSION may end without reading stdin. That is not an error.
        let _ = child.stdin.take().expect("stdin was piped").write_all(call.input.as_bytes());
        let output = child.wait_with_output().expect("wait for the program");
        Ran {
            success: output.status.success(),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
