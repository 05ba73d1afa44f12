//! The plugin gives up the capabilities that it does not need, and passes hardly any to its tools.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::lab::agent::until;
use crate::lab::plugin::{Call, PLUGIN};
use crate::lab::process::capabilities;
use crate::lab::two_nics::{NICS, two_nics};

/// `NET_ADMIN` and `NET_RAW`.
const NETWORK: u64 = 1 << 12 | 1 << 13;
/// Allows the plugin to take capabilities from its tools.
const SETPCAP: u64 = 1 << 8;
/// Allows a look at a network namespace below `/proc/PID`.
const SYS_PTRACE: u64 = 1 << 19;
/// Allows the plugin to enter a network namespace.
const SYS_ADMIN: u64 = 1 << 21;
/// Allows the tools to load kernel modules.
const SYS_MODULE: u64 = 1 << 16;

/// A plugin that waits for its configuration on stdin.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_plugin_keeps_what_a_verb_needs() {
    for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
        let mut command = Command::new(PLUGIN);
        command.env("CNI_COMMAND", verb).stdin(Stdio::piped()).stdout(Stdio::null());
        let waiting = Waiting(command.spawn().expect("start the plugin"));
        let file = format!("/proc/{}/status", waiting.0.id());
        let status = || fs::read_to_string(&file).expect("it runs");
        let wanted = NETWORK | SETPCAP | SYS_PTRACE;
        // Whether the plugin has to enter a pod's namespace depends on the settings. Until it reads
        // them, it keeps the capability permitted but not effective.
        let reserve = wanted | SYS_ADMIN;
        until("it has given up the others", || capabilities(&status(), "CapPrm") & !reserve == 0);
        assert_eq!(capabilities(&status(), "CapPrm"), reserve, "{verb}");
        assert_eq!(capabilities(&status(), "CapEff"), wanted, "{verb}");
        drop(waiting);
    }
}

/// Puts a stand-in for an iptables tool first in `PATH`. It records its capabilities.
#[test]
fn its_tools_are_bounded() {
    let layout = two_nics();
    let node = &layout.node;
    let (folder, said) = (node.dir.join("tools"), node.dir.join("said"));
    fs::create_dir(&folder).expect("make the folder");
    let tool = folder.join("iptables-nft-restore");
    let real = "/usr/sbin/iptables-nft-restore";
    let script =
        format!("#!/bin/sh\ncat /proc/$$/status > {}\nexec {real} \"$@\"\n", said.display());
    fs::write(&tool, script).expect("write the tool");
    fs::set_permissions(&tool, Permissions::from_mode(0o755)).expect("make it a program");
    let settings = json!({"uplinks": NICS, "backend": "iptables-nft"});
    let network = node.network(&settings, Some(&layout.pods[0].prev_result));
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").expect("a PATH"));
    let pod = &layout.pods[0];
    let add = Call::cni("ADD", &network, &pod.id, &pod.ns.path(), "eth0").with("PATH", &path);
    node.call(&add).assert_success("ADD");
    let status = fs::read_to_string(&said).expect("the tool was called");
    for name in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(capabilities(&status, name) & !(NETWORK | SYS_MODULE), 0, "{name}: {status}");
    }
    node.del(&settings, pod);
}
