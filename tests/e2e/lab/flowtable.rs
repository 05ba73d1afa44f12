//! Whether connections are in a flowtable, and whether their packets bypass the rules.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::netns::Netns;
use super::not_run::kernel_lacks;
use super::talk::Talk;

const PATIENT: Duration = Duration::from_secs(12);

/// Whether the kernel has flowtables. Otherwise prints that the test does not run.
#[track_caller]
pub(crate) fn kernel_has_flowtables() -> bool {
    let scratch = Netns::new("flows");
    let ruleset = "table inet t {
        flowtable f { hook ingress priority 0; devices = { lo }; }
        chain c { type filter hook forward priority 0; meta l4proto tcp flow add @f; }
    }";
    let mut command = Command::new("ip");
    command.args(["netns", "exec", scratch.name(), "nft", ruleset]);
    let output = command.output().expect("start nft");
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("No such file or directory") || error.contains("Operation not supported") {
        kernel_lacks("flowtable");
        return false;
    }
    assert!(output.status.success(), "{error}");
    true
}

/// Counts the packets that pass the hook forward, in a table of its own.
pub(crate) struct Forwarded<'a>(&'a Netns);

impl<'a> Forwarded<'a> {
    pub(crate) fn watch(node: &'a Netns) -> Self {
        node.nft(
            "table inet watch {
                counter seen { }
                chain forward {
                    type filter hook forward priority 10
                    meta l4proto { tcp, udp } counter name seen
                }
            }",
        );
        Self(node)
    }

    pub(crate) fn packets(&self) -> u64 {
        self.0.counter("watch", "seen")
    }

    /// Asserts that both ends hear each other and that none of their packets passes forward.
    pub(crate) fn assert_bypasses_rules(&self, talk: &mut Talk, what: &str) {
        let before = self.packets();
        for _ in 0..5 {
            talk.assert_goes_on(what);
        }
        assert_eq!(self.packets() - before, 0, "{what}: packets that pass forward");
    }

    /// Asserts that both ends hear each other and that their packets pass forward.
    pub(crate) fn assert_passes_rules(&self, talk: &mut Talk, what: &str) {
        let before = self.packets();
        talk.assert_goes_on(what);
        assert!(self.packets() - before >= 2, "{what}: packets that pass forward");
    }
}

/// The connection's line of `conntrack -L`.
pub(crate) fn line_of(node: &Netns, talk: &Talk) -> String {
    node.conntrack("-L", talk.proto(), talk.client())
}

/// Deletes the connection from conntrack.
pub(crate) fn forget(node: &Netns, talk: &Talk) {
    node.conntrack("-D", talk.proto(), talk.client());
}

pub(crate) fn is_offloaded(node: &Netns, talk: &Talk) -> bool {
    line_of(node, talk).contains("[OFFLOAD]")
}

/// Number of requests after which a connection is in the flowtable. One request in 16 puts it
/// there, so 150 fail once in more than 10,000 times.
pub(crate) const ENOUGH: usize = 150;

/// Lets both ends speak until the connection is in the flowtable. A UDP connection has to last two
/// seconds first.
#[track_caller]
pub(crate) fn offload(node: &Netns, talk: &mut Talk) {
    let begin = Instant::now();
    while !is_offloaded(node, talk) {
        assert!(begin.elapsed() < PATIENT, "not offloaded: {}", line_of(node, talk));
        for _ in 0..16 {
            talk.assert_goes_on("a word");
        }
    }
}

/// The devices whose packets the flowtable takes; empty where there is no flowtable.
pub(crate) fn flowtable_devices(node: &Netns) -> BTreeSet<String> {
    let text = node.exec(&["nft", "-j", "list", "flowtables"], "");
    let listing: Value = serde_json::from_str(&text).expect("nft prints JSON");
    let found = listing["nftables"].as_array().expect("a list").iter();
    let devices = found.filter_map(|entry| entry.get("flowtable")?.get("dev"));
    let names =
        devices.flat_map(|dev| dev.as_array().cloned().unwrap_or_else(|| vec![dev.clone()]));
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}
